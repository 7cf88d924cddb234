"""The layers of a model that are linear in their input, and where the channels of tensors lie."""

from onnx import TensorProto

from export.onnx.graph import FIXED, GraphIndex, attribute, is_standard

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_PRODUCTS = frozenset({"Gemm", "MatMul"})


def linear_layers(graph: GraphIndex) -> tuple[int, ...]:
    """Numbers of the nodes with constant float32 weights: convolutions, Gemm and MatMul.

    Left out are products with weights of more than two axes, a Gemm that transposes its input,
    whose rows are not samples, and what stands for the arithmetic of an operator.
    """
    found = []
    for number, node in enumerate(graph.nodes):
        if node.op_type not in _CONVOLUTIONS | _PRODUCTS or not is_standard(node):
            continue
        weight = graph.constant(node.input[1])
        if weight is None or weight.data_type != TensorProto.FLOAT:
            continue
        if node.op_type in _PRODUCTS and (len(weight.dims) != 2 or attribute(node, "transA", 0)):
            continue
        if graph.constant(node.input[0]) is None and not node.input[1].startswith(FIXED):
            found.append(number)
    return tuple(found)


def channel_axes(graph: GraphIndex) -> dict[str, int]:
    """The axis of the channels of every tensor that such a layer reads or makes.

    1 of a convolution, -1 of a product; where two disagree, the convolution is right.
    """
    axes: dict[str, int] = {}
    for number in linear_layers(graph):
        node = graph.nodes[number]
        axis = 1 if node.op_type in _CONVOLUTIONS else -1
        for name in (node.input[0], node.output[0]):
            axes[name] = max(axes.get(name, -1), axis)
    return axes
