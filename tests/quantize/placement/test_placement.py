"""Which nodes and tensors each rule table takes, and which it must leave."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_nets import Net, classifier, run, sqnr

from export.onnx.graph import GraphIndex, node_label
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.placement.rules import RULES
from quantize.placement.walk import Placement, place
from quantize.scheme import PRESETS


def _place(net: Net, path: Path, target: str, *results: str) -> tuple[Placement, list[str]]:
    model = net.save(path / "m.onnx", *results)
    graph = GraphIndex(onnx.load(model.path))
    placement = place(graph, PRESETS[target])
    return placement, [graph.nodes[number].name for number in sorted(placement.int8)]


def test_every_preset_has_a_rule_table() -> None:
    assert {scheme.placement for scheme in PRESETS.values()} == set(RULES)


def test_x86_takes_outputs_and_tensorrt_takes_inputs(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    graph = GraphIndex(onnx.load(model.path))
    x86 = place(graph, PRESETS["onnxruntime"]).activations
    tensorrt = place(graph, PRESETS["tensorrt"]).activations
    assert "block_b_out" in x86  # an operand of the Add, and the other one
    assert "stem_relu_out" in x86
    assert "block_b_out" not in tensorrt
    assert "stem_relu_out" in tensorrt
    assert ("main_out" in tensorrt, "shortcut_out" in tensorrt) == (False, True)
    assert not {"stem_out", "residual_out"} & (set(x86) | set(tensorrt))
    assert "gap_out" in x86
    assert "gap_out" not in tensorrt
    assert "y" not in x86  # logits stay float


def test_pool_and_flatten_share_the_parameters_of_their_source(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    uses = place(GraphIndex(onnx.load(model.path)), PRESETS["onnxruntime"]).activations
    assert uses["pool_out"].like == "relu6_out"
    assert uses["flatten15_out"].like == "gap_out"
    assert uses["gap_out"].like == "gap_out"
    assert uses["clip9_out"].ceiling == 6
    assert uses["clip9_out"].from_zero


@pytest.mark.parametrize("kind", ["Sigmoid", "HardSwish", "Gelu", "LeakyRelu", "Mul"])
def test_x86_leaves_other_activations_float(tmp_path: Path, kind: str) -> None:
    net = Net(4, 8, 8)
    x = net.conv("x", 4, 4, name="c1")
    x = net.op(kind, *([x, x] if kind == "Mul" else [x]), name="activation")
    _, names = _place(net, tmp_path, "onnxruntime", net.conv(x, 4, 4, name="c2"))
    assert names == ["c1", "c2"]


def test_relu_is_not_folded_when_the_conv_has_another_reader(tmp_path: Path) -> None:
    net = Net(4, 8, 8)
    c = net.conv("x", 4, 4, name="c1")
    r = net.op("Relu", c, name="relu")
    s = net.op("Sigmoid", c)
    placement, names = _place(net, tmp_path, "onnxruntime", net.conv(r, 4, 4, name="c2"), s)
    assert names == ["c1", "c2"]
    assert {"c1_out", "relu_out"} <= set(placement.activations)
    assert not placement.activations["c1_out"].from_zero


@pytest.mark.parametrize(("low", "folds"), [(0.0, True), (-1.0, False)])
def test_clip_is_folded_only_from_zero(tmp_path: Path, low: float, folds: bool) -> None:
    net = Net(4, 8, 8)
    bounds = [net.constant("low", np.float32(low)), net.constant("high", np.float32(1))]
    x = net.op("Clip", net.conv("x", 4, 4, name="c1"), *bounds, name="clip")
    placement, _ = _place(net, tmp_path, "onnxruntime", net.conv(x, 4, 4))
    assert ("c1_out" not in placement.activations) == folds


def test_add_of_a_float_tensor_stays_float(tmp_path: Path) -> None:
    net = Net(4, 8, 8)
    x = net.op("Add", net.conv("x", 4, 4), net.op("Sigmoid", "x", name="gate"), name="add")
    model = net.save(tmp_path / "m.onnx", net.op("Tanh", x))
    graph = GraphIndex(onnx.load(model.path))
    for target, takes in (("onnxruntime", False), ("tensorrt", True)):
        placement = place(graph, PRESETS[target])
        names = {graph.nodes[number].name for number in placement.int8}
        assert ("add" in names, "gate_out" in placement.activations) == (takes, takes)
        assert "add_out" not in placement.activations


def test_reasons_name_what_stays_float(tmp_path: Path) -> None:
    net = Net(4, 4)
    square = net.constant("square", np.eye(4, dtype=np.float32))
    scaled = net.op(
        "Gemm",
        net.op("Flatten", "x"),
        net.constant("w", np.eye(16, dtype=np.float32)),
        name="scaled",
        alpha=0.5,
    )
    attention = net.op("MatMul", "x", net.op("Transpose", "x", perm=[0, 2, 1]), name="attention")
    y = net.op("MatMul", attention, square, name="linear")
    placement, names = _place(net, tmp_path, "onnxruntime", y, scaled)
    reasons = {skip.where: skip.reason for skip in placement.skipped}
    assert names == ["linear"]
    assert reasons["attention"] == "its weights are not constant"
    assert "alpha" in reasons["scaled"]


def test_keep_float_takes_a_node_out(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    graph = GraphIndex(onnx.load(model.path))
    scheme = replace(PRESETS["onnxruntime"], keep_float=frozenset({"block_b", "down"}))
    placement = place(graph, scheme)
    names = {graph.nodes[number].name for number in placement.int8}
    assert "main" in names
    assert not {"block_b", "residual", "down", "gap"} & names
    assert ("block_b", "kept float as asked") in {
        (skip.where, skip.reason) for skip in placement.skipped
    }


def test_weights_that_are_graph_inputs_are_not_constant(tmp_path: Path) -> None:
    net = Net(4, 8, 8)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 4, 4, name="c1"))
    proto = onnx.load(model.path)
    proto.graph.input.append(helper.make_tensor_value_info("c1_w", 1, [4, 4, 3, 3]))
    placement = place(GraphIndex(proto), PRESETS["onnxruntime"])
    assert not placement.weights
    assert placement.skipped[0].reason == "its weights are not constant"


def test_a_label_names_the_users_module() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="node_conv2d_3")
    assert node_label(node) == "node_conv2d_3"
    node.metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'layer1', 'layer1.0.conv1', 'conv2d_3']"
    )
    assert node_label(node) == "layer1.0.conv1 (node_conv2d_3)"


def test_openvino_quantizes_behind_the_activation_only(tmp_path: Path) -> None:
    net = Net(4, 8, 8)
    x = net.op("HardSwish", net.conv("x", 4, 4, name="c1"), name="activation")
    placement, names = _place(net, tmp_path, "openvino", net.conv(x, 4, 4, name="c2"))
    assert names == ["c1", "c2"]
    assert set(placement.activations) == {"x", "activation_out"}


def test_openvino_pulls_a_residual_only_where_int8_reads_it(tmp_path: Path) -> None:
    net = Net(4, 8, 8)
    x = net.conv("x", 4, 4, name="c1")
    x = net.op("Add", net.conv(x, 4, 4, name="c2"), x, name="read")
    y = net.op("Add", net.conv(x, 4, 4, name="c3"), x, name="unread")
    placement, names = _place(net, tmp_path, "openvino", net.op("Tanh", y))
    assert names == ["c1", "c2", "read", "c3"]
    assert {"c2_out", "c1_out", "read_out"} <= set(placement.activations)
    assert not {"c3_out", "unread_out"} & set(placement.activations)


def test_openvino_does_not_pull_what_a_gate_scales(tmp_path: Path) -> None:
    net = Net(4, 8, 8)
    x = net.op("Relu", net.conv("x", 4, 4, name="c1"), name="wide")
    gate = net.conv(net.op("GlobalAveragePool", x, name="gap"), 4, 4, kernel=1, name="c2")
    y = net.conv(net.op("Mul", x, gate, name="scale"), 4, 4, name="c3")
    placement, names = _place(net, tmp_path, "openvino", y)
    assert names == ["c1", "c2", "c3"]
    assert not {"wide_out", "c2_out"} & set(placement.activations)


def test_what_moves_values_shares_the_pair_before_it(tmp_path: Path) -> None:
    net = Net(4, 8, 8)
    x = net.op("Relu", net.conv("x", 4, 4, name="c1"), name="relu")
    x = net.op("Transpose", x, perm=[0, 1, 3, 2], name="turn")
    placement, names = _place(net, tmp_path, "openvino", net.conv(x, 4, 4, name="c2"))
    assert names == ["c1", "relu", "turn", "c2"]
    source, moved = placement.activations["relu_out"], placement.activations["turn_out"]
    assert (source.pair, moved.pair, moved.like) == (True, False, "relu_out")


def test_parts_of_what_no_single_layer_made_keep_ranges_of_their_own(tmp_path: Path) -> None:
    net = Net(4, 8, 8)
    x = net.op("Transpose", net.conv("x", 4, 4, name="c1"), perm=[0, 1, 3, 2])
    ends = [net.constant(f"end{end}", np.array([end])) for end in (0, 2, 4)]
    axis = net.constant("axis", np.array([1]))
    parts = [net.op("Slice", x, ends[i], ends[i + 1], axis, name=f"part{i}") for i in (0, 1)]
    results = [net.conv(part, 2, 4) for part in parts]
    placement, names = _place(net, tmp_path, "openvino", *results)
    assert not {"part0", "part1"} & set(names)
    assert {"part0_out", "part1_out"} <= set(placement.activations)


@pytest.mark.parametrize(("mode", "moves"), [("nearest", True), ("linear", False)])
def test_only_a_nearest_resize_moves_codes(tmp_path: Path, mode: str, moves: bool) -> None:
    net = Net(4, 8, 8)
    x = net.op("Relu", net.conv("x", 4, 4, name="c1"))
    scales = net.constant("scales", np.array([1, 1, 2, 2], np.float32))
    x = net.op("Resize", x, "", scales, mode=mode, name="resize")
    _, names = _place(net, tmp_path, "openvino", net.conv(x, 4, 4, name="c2"))
    assert ("resize" in names) == moves


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32])
def test_products_in_other_types_are_left(tmp_path: Path, kind: int) -> None:
    """Attention under autocast stands between Casts; Q/DQ of float32 are no part of it."""
    net = Net(4, 6)
    weight = net.random.normal(0, 1, (6, 6)).astype(np.float32)
    x = net.op("Cast", net.op("MatMul", "x", net.constant("w", weight), name="q"), to=kind)
    y = net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1]), name="product")
    y = net.op("MatMul", y, x, name="mixed")
    y = net.op("Cast", y, to=TensorProto.FLOAT)
    model = net.save(tmp_path / "m.onnx", net.op("MatMul", y, "w", name="out"))
    placement = place(GraphIndex(onnx.load(model.path)), PRESETS["openvino"])
    names = [GraphIndex(onnx.load(model.path)).nodes[n].name for n in sorted(placement.int8)]
    assert names == ["q", "out"]
    ranges = calibrate(model, [net.feed(8)], observer="auto")
    path = quantize_int8(model, ranges, PRESETS["openvino"], tmp_path / "q.onnx").model.path
    assert sqnr(run(model, net.feed(8))[0], run(path, net.feed(8))[0]) > 12


def test_an_activation_behind_a_join_is_not_taken_for_a_part_of_it(tmp_path: Path) -> None:
    """ONNX Runtime has int8 kernels for Concat, and none of Concat and Relu in one."""
    net = Net(3, 8, 8)
    parts = [net.conv("x", 3, 4, name=name) for name in ("left", "right")]
    joined = net.op("Concat", *parts, axis=1, name="joined")
    y = net.conv(net.op("Relu", joined, name="relu"), 8, 4, name="head")
    placement, _ = _place(net, tmp_path, "onnxruntime", y)
    assert not placement.activations["joined_out"].from_zero
