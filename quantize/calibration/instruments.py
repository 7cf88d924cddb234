"""Nodes added to a model that measure it, under names of their own."""

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.onnx.graph import find_opset


class Instruments:
    """What is added to a graph; nothing of the graph itself is changed.

    Args:
        proto: the model; `finish` changes it.
        prefix: of all names that are added, made longer where the model has it.
    """

    def __init__(self, proto: onnx.ModelProto, prefix: str) -> None:
        self._proto = proto
        taken = {name for node in proto.graph.node for name in (*node.input, *node.output)}
        while any(name.startswith(prefix) for name in taken):
            prefix += "_"
        self._prefix = prefix
        self._nodes: list[NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], TensorProto] = {}
        self._inputs: list[str] = []

    @property
    def opset(self) -> int:
        """Of the default domain."""
        return find_opset(self._proto)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node of one output; the name of that."""
        result = f"{self._prefix}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [result], **attributes))
        return result

    def repeat(self, node: NodeProto, source: str) -> str:
        """The same node, reading `source` instead of its first input; the name of its output."""
        result = self.add(node.op_type, source, *node.input[1:])
        self._nodes[-1].attribute.extend(node.attribute)
        return result

    def constant(self, array: np.ndarray) -> str:
        """An initializer; one for all who ask for the same."""
        key = (array.dtype.str, array.shape, array.tobytes())
        name = f"{self._prefix}.constant.{len(self._constants)}"
        return self._constants.setdefault(key, numpy_helper.from_array(array, name)).name

    def integers(self, *values: int) -> str:
        """An int64 vector."""
        return self.constant(np.array(values, np.int64))

    def input(self, name: str) -> str:
        """A graph input of one int64, [1]; its name."""
        self._inputs.append(f"{self._prefix}.{name}")
        return self._inputs[-1]

    def finish(self) -> onnx.ModelProto:
        """The model with all that was added."""
        graph = self._proto.graph
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._constants.values())
        graph.input.extend(
            helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in self._inputs
        )
        return self._proto
