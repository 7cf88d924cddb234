"""Which nodes are layers, and where the channels of their tensors lie."""

from pathlib import Path

import numpy as np
import onnx
from test_nets import Net, classifier

from export.onnx.graph import GraphIndex
from quantize.placement.layers import channel_axes, linear_layers


def _names(path: Path) -> list[str]:
    graph = GraphIndex(onnx.load(path))
    return [graph.nodes[number].name for number in linear_layers(graph)]


def test_convolutions_and_products_with_constant_weights_are_layers(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    layers = ["stem", "block_a", "block_b", "depthwise", "main", "shortcut", "head"]
    assert _names(model.path) == layers


def test_channels_of_a_convolution_lie_first_and_of_a_product_last(tmp_path: Path) -> None:
    net = Net(4, 9, 7)
    x = net.conv("x", 4, 6, name="conv")
    matrix = net.constant("w", net.random.normal(0, 1, (7, 5)).astype(np.float32))
    x = net.op("Relu", net.op("MatMul", x, matrix, name="product"))
    weight = net.constant("up_w", np.ones((6, 2, 2, 2), np.float32))
    model = net.save(tmp_path / "m.onnx", net.op("ConvTranspose", x, weight, name="up"))
    axes = channel_axes(GraphIndex(onnx.load(model.path)))
    assert axes == {"x": 1, "conv_out": 1, "product_out": -1, "relu2_out": 1, "y": 1}


def test_what_is_not_a_layer_is_left_out(tmp_path: Path) -> None:
    net = Net(4)
    net.constant("two", np.float32(2).reshape(()))
    scaled = net.op("Mul", net.constant("w", np.eye(4, dtype=np.float32)), "two", name="scaled")
    computed = net.op("MatMul", "x", scaled, name="computed")
    cube = net.constant("cube", np.ones((2, 4, 4), np.float32))
    net.save(tmp_path / "m.onnx", computed, net.op("MatMul", "x", cube, name="batched"))
    assert _names(tmp_path / "m.onnx") == []


def test_a_gemm_whose_rows_are_not_samples_is_left_out() -> None:
    net = Net()
    net.op("Gemm", "x", net.constant("w", np.ones((4, 3), np.float32)), transA=1)
    graph = onnx.helper.make_graph(net.nodes, "net", [], [], net.constants)
    assert linear_layers(GraphIndex(onnx.helper.make_model(graph))) == ()
