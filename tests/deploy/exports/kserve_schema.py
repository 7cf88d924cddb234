"""What KServe's v1beta1 InferenceService takes, of the parts that an export may write.

Names and types of the fields are those of the published custom resource and of Kubernetes' core v1
Container and Probe. Every object is closed: a field that is misspelt does not pass.
"""

from typing import Any


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1}
LABEL = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
QUANTITY = {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = closed(requests=QUANTITIES, limits=QUANTITIES)
PROBE = closed(
    httpGet=closed(("path", "port"), path=TEXT, port=PORT),
    periodSeconds={"type": "integer", "minimum": 1},
    timeoutSeconds={"type": "integer", "minimum": 1},
)
CONTAINER = {
    "name": LABEL,
    "image": TEXT,
    "args": {"type": "array", "items": TEXT},
    "env": {"type": "array", "items": closed(("name",), name=TEXT, value=TEXT)},
    "ports": {
        "type": "array",
        "items": closed(
            ("containerPort",),
            containerPort=PORT,
            name={"type": "string", "pattern": "^[a-z0-9-]{1,15}$"},
            protocol={"enum": ["TCP", "UDP", "SCTP"]},
        ),
    },
    "resources": RESOURCES,
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
    "securityContext": closed(
        allowPrivilegeEscalation={"type": "boolean"},
        capabilities=closed(drop={"type": "array", "items": TEXT}),
        runAsNonRoot={"type": "boolean"},
    ),
}
MODEL = {
    **CONTAINER,
    "modelFormat": closed(("name",), name=TEXT, version=TEXT),
    "runtime": TEXT,
    "runtimeVersion": TEXT,
    "protocolVersion": {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]},
    "storageUri": {"type": "string", "pattern": "^[a-z][a-z0-9+.-]*://"},
}
INFERENCE_SERVICE = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "serving.kserve.io/v1beta1"},
    kind={"const": "InferenceService"},
    metadata=closed(("name",), name=LABEL),
    spec=closed(
        ("predictor",),
        predictor={
            "oneOf": [
                closed(
                    ("containers",),
                    containers={
                        "type": "array",
                        "items": closed(("name", "image"), **CONTAINER),
                        "minItems": 1,
                    },
                ),
                closed(("model",), model=closed(("modelFormat",), **MODEL)),
            ]
        },
    ),
)
