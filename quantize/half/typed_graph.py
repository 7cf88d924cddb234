"""A float32 ONNX graph seen by element types: which tensor of which node may be 16 bits wide."""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from export.errors import QuantizeError
from export.onnx.graph import name_node, node_label
from export.onnx.tensor_types import element_types

FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class HalfType:
    """One of the two 16-bit floats.

    Attributes:
        name: as precisions are called.
        words: as people and ONNX call it.
        element: its `TensorProto.DataType`.
        dtype: numpy's.
        largest: finite number.
        tiny: smallest normal number.
    """

    name: str
    words: str
    element: int
    dtype: np.dtype
    largest: float
    tiny: float


FP16 = HalfType("fp16", "float16", TensorProto.FLOAT16, np.dtype(np.float16), 65504.0, 2.0**-14)
BF16 = HalfType(
    "bf16",
    "bfloat16",
    TensorProto.BFLOAT16,
    np.dtype(ml_dtypes.bfloat16),
    float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),
    2.0**-126,
)
Slot = tuple[bool, int, str, bool]
"""(is output, position, tensor, may be half) of one float tensor of a node."""


class TypedGraph:
    """Nodes, element types, float initializers and readers of the original float32 graph.

    Raises:
        QuantizeError: subgraphs (If, Loop, Scan), whose outer tensors have no place for a Cast.
    """

    def __init__(self, proto: onnx.ModelProto, half: HalfType) -> None:
        refuse_subgraphs(proto)
        lift_constants(proto)
        self.half = half
        self.nodes = [copy_node(node) for node in proto.graph.node]
        self.types = element_types(proto)
        self.outputs = {value.name for value in proto.graph.output}
        inputs = {value.name for value in proto.graph.input}
        self.inputs = {name for name in inputs if self.types.get(name) == FLOAT}
        self.constants = {
            tensor.name: tensor
            for tensor in proto.graph.initializer
            if tensor.name not in inputs and tensor.data_type == FLOAT
        }
        self.readers: dict[str, list[int]] = defaultdict(list)
        self.producer: dict[str, int] = {}
        for number, node in enumerate(self.nodes):
            for name in node.input:
                self.readers[name].append(number)
            self.producer.update((name, number) for name in node.output if name)
        self._opsets = {item.domain: item.version for item in proto.opset_import}

    def slots(self, node: NodeProto) -> Iterator[Slot]:
        """Every float tensor of `node`."""
        schema = self.schema(node)
        for is_output, names in ((False, node.input), (True, node.output)):
            for position, name in enumerate(names):
                if name and self.types.get(name) == FLOAT:
                    yield is_output, position, name, self._allows(schema, is_output, position)

    def schema(self, node: NodeProto) -> onnx.defs.OpSchema | None:
        """The operator's schema; None for an operator that ONNX does not define."""
        version = self._opsets.get(node.domain, self._opsets.get("ai.onnx", 1))
        try:
            return onnx.defs.get_schema(node.op_type, version, node.domain)
        except onnx.defs.SchemaError:
            return None

    def scalar(self, name: str) -> float | None:
        """The one value of a float constant; None for anything else."""
        tensor = self.constants.get(name)
        if tensor is None or int(np.prod(tensor.dims)) != 1:
            return None
        return float(numpy_helper.to_array(tensor).reshape(()))

    def opset(self) -> int:
        """Version of the default domain."""
        return int(self._opsets.get("", self._opsets.get("ai.onnx", 1)))

    def _allows(self, schema: onnx.defs.OpSchema | None, is_output: bool, position: int) -> bool:
        if schema is None:
            return False
        formals = schema.outputs if is_output else schema.inputs
        formal = formals[min(position, len(formals) - 1)]
        return f"tensor({self.half.words})" in formal.types


def check_names(proto: onnx.ModelProto, names: Collection[str]) -> None:
    """Raises QuantizeError where one of `names` is no node."""
    known = {name_node(node) for node in proto.graph.node}
    if unknown := sorted(set(names) - known):
        raise QuantizeError(f"keep_fp32 names no node of the model: {', '.join(unknown)}")


def refuse_subgraphs(proto: onnx.ModelProto) -> None:
    """Raises QuantizeError where a node holds one."""
    kinds = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    for node in proto.graph.node:
        if any(item.type in kinds for item in node.attribute):
            raise QuantizeError(
                f"{node_label(node)} ({node.op_type}) holds a subgraph, whose outer tensors "
                "have no place for a Cast; export without control flow, or keep fp32."
            )


def lift_constants(proto: onnx.ModelProto) -> None:
    """Float Constant nodes become initializers, so that there is one kind of constant."""
    outputs = {value.name for value in proto.graph.output}
    for node in list(proto.graph.node):
        if node.op_type != "Constant" or node.output[0] in outputs:
            continue
        value = helper.get_attribute_value(node.attribute[0])
        if node.attribute[0].name in ("value_float", "value_floats"):
            value = numpy_helper.from_array(np.asarray(value, np.float32))
        if isinstance(value, TensorProto) and value.data_type == FLOAT:
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            proto.graph.node.remove(node)


def copy_node(node: NodeProto) -> NodeProto:
    """A copy that can be changed."""
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
