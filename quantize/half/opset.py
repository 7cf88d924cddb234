"""Raises the opset of a model whose operators mean the same in the newer one."""

import onnx
from onnx import NodeProto

from export.errors import QuantizeError
from export.onnx.graph import STANDARD_DOMAINS, is_standard, node_label

_IR_VERSION = 10
"""The first that goes with opsets 21 to 23."""


def raise_opset(proto: onnx.ModelProto, version: int) -> int:
    """Declare `proto` to be of opset `version`, unless it is newer; changed in place.

    Between many opsets operators only gain types. ONNX's own converter would rewrite the graph and
    lose what the exporter noted on its nodes.

    Returns:
        The opset of the default domain now.

    Raises:
        QuantizeError: an operator has other inputs, outputs or attributes in the newer opset.
    """
    entry = next(item for item in proto.opset_import if item.domain in STANDARD_DOMAINS)
    if entry.version >= version:
        return int(entry.version)
    for node in proto.graph.node:
        if is_standard(node) and not _means_the_same(node, entry.version, version):
            raise QuantizeError(
                f"{node_label(node)} ({node.op_type}) is not the same at opset {version} as at "
                f"{entry.version}; export with opset {version} or later"
            )
    entry.version = version
    proto.ir_version = max(proto.ir_version, _IR_VERSION)
    return version


def _means_the_same(node: NodeProto, old: int, new: int) -> bool:
    try:
        schemas = [onnx.defs.get_schema(node.op_type, version) for version in (old, new)]
    except onnx.defs.SchemaError:
        return False
    if schemas[0].since_version == schemas[1].since_version:
        return True
    if any(schema.deprecated for schema in schemas):
        return False
    return _shape_of(schemas[0]) == _shape_of(schemas[1])


def _shape_of(schema: onnx.defs.OpSchema) -> tuple[object, ...]:
    """Inputs, outputs and attributes, without their types."""
    attributes = {
        name: (item.type, item.default_value.SerializeToString())
        for name, item in schema.attributes.items()
    }
    return (
        [(formal.name, formal.option) for formal in schema.inputs],
        [(formal.name, formal.option) for formal in schema.outputs],
        attributes,
    )
