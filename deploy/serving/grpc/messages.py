"""The messages of the protocol over gRPC, from the numbers of its published interface.

Written as a table and built into a pool of its own when it is imported: no generated code that is
tied to one version of protobuf, and no clash with a client in the same process that registers the
same names.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

_SCALARS = {
    "double": 1,
    "float": 2,
    "int64": 3,
    "uint64": 4,
    "int32": 5,
    "bool": 8,
    "string": 9,
    "bytes": 12,
    "uint32": 13,
}
"""Numbers of types in protobuf's own descriptors; 11 is a message, 14 an enumeration."""

_PARAMETERS = "map InferParameter"
_TENSOR = "name:1 string, datatype:2 string, shape:3 repeated int64"
_INFERENCE = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:1 bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:1 bool",
    "ModelReadyRequest": "name:1 string, version:2 string",
    "ModelReadyResponse": "ready:1 bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:1 string, version:2 string, extensions:3 repeated string",
    "ModelMetadataRequest": "name:1 string, version:2 string",
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "ModelMetadataResponse": "name:1 string, versions:2 repeated string, platform:3 string, "
    "inputs:4 repeated ModelMetadataResponse.TensorMetadata, "
    "outputs:5 repeated ModelMetadataResponse.TensorMetadata",
    "InferParameter": "bool_param:1 oneof bool, int64_param:2 oneof int64, "
    "string_param:3 oneof string, double_param:4 oneof double, uint64_param:5 oneof uint64",
    "InferTensorContents": "bool_contents:1 repeated bool, int_contents:2 repeated int32, "
    "int64_contents:3 repeated int64, uint_contents:4 repeated uint32, "
    "uint64_contents:5 repeated uint64, fp32_contents:6 repeated float, "
    "fp64_contents:7 repeated double, bytes_contents:8 repeated bytes",
    "ModelInferRequest.InferInputTensor": f"{_TENSOR}, parameters:4 {_PARAMETERS}, "
    "contents:5 InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": f"name:1 string, parameters:2 {_PARAMETERS}",
    "ModelInferRequest": "model_name:1 string, model_version:2 string, id:3 string, "
    f"parameters:4 {_PARAMETERS}, inputs:5 repeated ModelInferRequest.InferInputTensor, "
    "outputs:6 repeated ModelInferRequest.InferRequestedOutputTensor, "
    "raw_input_contents:7 repeated bytes",
    "ModelInferResponse.InferOutputTensor": f"{_TENSOR}, parameters:4 {_PARAMETERS}, "
    "contents:5 InferTensorContents",
    "ModelInferResponse": "model_name:1 string, model_version:2 string, id:3 string, "
    f"parameters:4 {_PARAMETERS}, outputs:5 repeated ModelInferResponse.InferOutputTensor, "
    "raw_output_contents:6 repeated bytes",
    "RepositoryIndexRequest": "repository_name:1 string, ready:2 bool",
    "RepositoryIndexResponse.ModelIndex": "name:1 string, version:2 string, state:3 string, "
    "reason:4 string",
    "RepositoryIndexResponse": "models:1 repeated RepositoryIndexResponse.ModelIndex",
}
_HEALTH = {
    "HealthCheckRequest": "service:1 string",
    "HealthCheckResponse": "status:1 int32",
}
"""The status is an enumeration, which is an int32 on the wire: see `SERVING` and its like."""

UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)


def _build(package: str, table: dict[str, str]) -> dict[str, Any]:
    """Classes of all messages of `table`, by name."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"deploy/{package}.proto", package=package, syntax="proto3"
    )
    for name in [name for name in table if "." not in name]:
        message = file.message_type.add(name=name)
        for inner in [inner for inner in table if inner.startswith(f"{name}.")]:
            nested = message.nested_type.add(name=inner.partition(".")[2])
            _add_fields(nested, table[inner], f".{package}.{inner}", package)
        _add_fields(message, table[name], f".{package}.{name}", package)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in table
    }


def _add_fields(message: Any, text: str, full_name: str, package: str) -> None:
    for part in filter(None, text.split(", ")):
        head, *words = part.split()
        name, _, number = head.partition(":")
        field = message.field.add(name=name, number=int(number), label=1)
        if words[0] == "map":
            entry = message.nested_type.add(name=f"{name.title()}Entry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, label=1, type=9)
            entry.field.add(
                name="value", number=2, label=1, type=11, type_name=f".{package}.{words[1]}"
            )
            field.label, field.type = 3, 11
            field.type_name = f"{full_name}.{entry.name}"
            continue
        if words[0] == "repeated":
            field.label = 3
        elif words[0] == "oneof":
            if not message.oneof_decl:
                message.oneof_decl.add(name="parameter_choice")
            field.oneof_index = 0
        if words[-1] in _SCALARS:
            field.type = _SCALARS[words[-1]]
        else:
            field.type, field.type_name = 11, f".{package}.{words[-1]}"


INFERENCE = _build("inference", _INFERENCE)
"""Classes of the messages of ``inference.GRPCInferenceService``, by name."""

HEALTH = _build("grpc.health.v1", _HEALTH)
"""Those of the standard health service."""
