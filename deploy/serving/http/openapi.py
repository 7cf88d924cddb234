"""Our own OpenAPI document of what the server answers.

The one that is published with the protocol has a literal ``$`` in its paths, knows only versioned
routes, and lacks BF16.
"""

from typing import Any

from deploy.datatypes import DATATYPES

_ERROR = {"$ref": "#/components/schemas/Error"}
_TEXT = {"type": "string"}
_REFUSALS = {
    400: "The body, a tensor or a parameter is malformed",
    401: "The bearer token is missing or wrong",
    404: "No such model, version or path",
    405: "Another method is meant",
    413: "The body is over the limit",
    415: "The body is compressed",
    500: "The engine failed, or answered NaN or infinity",
    501: "Not offered by this server",
    503: "Not ready, shutting down, or the queue is full; see Retry-After",
    504: "Not run within the time that it had",
}


def make_document() -> dict[str, Any]:
    """The document, as plain values."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Open Inference Protocol v2",
            "version": "2",
            "description": "Inference, health and metadata of the models of a deploy server.",
        },
        "paths": _make_paths(),
        "components": {
            "schemas": _make_schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _make_paths() -> dict[str, Any]:
    paths: dict[str, Any] = {
        "/": _get("Status page", {"text/html": {"schema": _TEXT}}),
        "/docs": _get("This document, to read", {"text/html": {"schema": _TEXT}}),
        "/openapi.json": _get("This document", _json({"type": "object"})),
        "/status.json": _get("What the status page shows", _json({"type": "object"})),
        "/metrics": _get("Prometheus metrics", {"text/plain": {"schema": _TEXT}}),
        "/v2": _get("Server metadata", _json(_ref("ServerMetadata"))),
        "/v2/health/live": _get("Whether the server runs", _json(_ref("Live")), token=False),
        "/v2/health/ready": _get(
            "Whether all models are ready", _json(_ref("Ready")), 503, token=False
        ),
        "/v2/repository/index": {"post": _make_index()},
    }
    for base, parameters in (
        ("/v2/models/{model}", [_path("model")]),
        ("/v2/models/{model}/versions/{version}", [_path("model"), _path("version")]),
    ):
        metadata = _get("Model metadata", _json(_ref("ModelMetadata")), 404)
        ready = _get("Whether the model is ready", _json(_ref("ModelReady")), 404, 503)
        paths[base] = {**metadata, "parameters": parameters}
        paths[f"{base}/ready"] = {**ready, "parameters": parameters}
        paths[f"{base}/infer"] = {"post": _make_infer(), "parameters": parameters}
    return paths


def _make_index() -> dict[str, Any]:
    return {
        "summary": "The models and their states",
        "requestBody": {
            "content": _json(
                {"type": "object", "properties": {"ready": {"type": "boolean", "default": False}}}
            )
        },
        "responses": {
            "200": {
                "description": "One entry a version",
                "content": _json({"type": "array", "items": _ref("IndexEntry")}),
            },
            **_refuse(400, 401, 405),
        },
    }


def _make_infer() -> dict[str, Any]:
    header = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "Bytes of JSON before raw tensors",
        "schema": {"type": "integer", "minimum": 0},
    }
    raw = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "summary": "Run the model",
        "parameters": [header],
        "requestBody": {"required": True, "content": {**_json(_ref("InferRequest")), **raw}},
        "responses": {
            "200": {
                "description": "The outputs",
                "content": {**_json(_ref("InferResponse")), **raw},
            },
            **_refuse(400, 401, 404, 405, 413, 415, 500, 503, 504),
        },
    }


def _make_schemas() -> dict[str, Any]:
    datatype = {"type": "string", "enum": sorted(DATATYPES.values())}
    shape = {"type": "array", "items": {"type": "integer"}}
    parameters = {"type": "object"}
    tensor = {"name": _TEXT, "datatype": datatype, "shape": shape}
    data = {"type": "array", "description": "Flat in row-major order, or nested as the shape says"}
    content = {**tensor, "parameters": parameters, "data": data}
    return {
        "Error": _object({"error": _TEXT}),
        "Live": _object({"live": {"type": "boolean"}}),
        "Ready": _object({"ready": {"type": "boolean"}}),
        "ModelReady": _object({"name": _TEXT, "ready": {"type": "boolean"}}),
        "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
        "ModelMetadata": _object(
            {
                "name": _TEXT,
                "versions": _list(_TEXT),
                "platform": _TEXT,
                "inputs": _list(_object(tensor)),
                "outputs": _list(_object(tensor)),
                "parameters": parameters,
            }
        ),
        "IndexEntry": _object({"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT}),
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string", "maxLength": 256},
                "parameters": parameters,
                "inputs": _list(_object(content, required=tuple(tensor))),
                "outputs": _list(
                    _object({"name": _TEXT, "parameters": parameters}, required=("name",))
                ),
            },
        },
        "InferResponse": _object(
            {
                "model_name": _TEXT,
                "model_version": _TEXT,
                "id": _TEXT,
                "outputs": _list(_object(content, required=tuple(tensor))),
            },
            required=("model_name", "model_version", "outputs"),
        ),
    }


def _get(
    summary: str, content: dict[str, Any], *refusals: int, token: bool = True
) -> dict[str, Any]:
    """A path to read; `token`: whether it may ask for one."""
    answered = {"200": {"description": summary, "content": content}}
    refused = _refuse(*((401,) if token else ()), 405, *refusals)
    return {"get": {"summary": summary, "responses": {**answered, **refused}}}


def _refuse(*statuses: int) -> dict[str, Any]:
    return {
        str(status): {"description": _REFUSALS[status], "content": _json(_ERROR)}
        for status in statuses
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(
    properties: dict[str, Any], *, required: tuple[str, ...] | None = None
) -> dict[str, Any]:
    needed = list(properties) if required is None else list(required)
    return {"type": "object", "required": needed, "properties": properties}
