"""Patches times weights are the layer: held against torch's own convolutions in float64."""

import numpy as np
import pytest
import torch
from onnx import helper
from test_nets import Net, run

from quantize.recover.patches import PatchLayout, gather_patches, read_layout

EVERYTHING = 10**9


def _random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((1, 1), (2, 2), (0, 0), (1, 1)),
        ((3, 2), (2, 1), (2, 0), (1, 3)),
        ((5, 5), (1, 3), (0, 4), (2, 1)),
        ((4,), (3,), (2,), (2,)),
        ((2, 3, 1), (1, 2, 1), (1, 0, 1), (1, 1, 1)),
    ],
)
def test_conv_is_patches_times_weights(groups, kernel, stride, pads, dilation) -> None:
    random = _random()
    shape = (12, 6 // groups, *kernel)
    weight = random.standard_normal(shape)
    x = random.standard_normal((3, 6, *(11, 9, 5)[: len(kernel)]))
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        group=groups,
        strides=stride,
        pads=[*pads, *pads],
        dilations=dilation,
    )
    layout = read_layout(node, shape, 0)
    patches = gather_patches(x, layout, EVERYTHING, _random())
    got = layout.to_matrix(weight) @ patches
    convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[len(kernel) - 1]
    expected = convolve(
        torch.from_numpy(x), torch.from_numpy(weight), None, stride, pads, dilation, groups
    ).numpy()
    flat = expected.reshape(3, 12, -1).transpose(1, 0, 2).reshape(groups, 12 // groups, -1)
    np.testing.assert_allclose(got, flat, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(layout.to_weight(layout.to_matrix(weight)), weight)


@pytest.mark.parametrize("auto_pad", ["VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_automatic_padding_is_that_of_onnxruntime(tmp_path, auto_pad: str, stride: int) -> None:
    net = Net(2, 8, 7)
    weight = net.random.standard_normal((4, 2, 3, 2)).astype(np.float32)
    y = net.op("Conv", "x", net.constant("w", weight), auto_pad=auto_pad, strides=[stride, stride])
    model = net.save(tmp_path / "m.onnx", y)
    layout = read_layout(net.nodes[0], weight.shape, 0)
    patches = gather_patches(net.feed(2)["x"], layout, EVERYTHING, _random())
    expected = run(model, net.feed(2))[0].reshape(2, 4, -1).transpose(1, 0, 2).reshape(1, 4, -1)
    np.testing.assert_allclose(layout.to_matrix(weight) @ patches, expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "trans"), [("Gemm", 0), ("Gemm", 1), ("MatMul", 0)])
def test_products_are_patches_times_weights(kind: str, trans: int) -> None:
    random = _random()
    weight = random.standard_normal((5, 7) if trans else (7, 5))
    x = random.standard_normal((4, 3, 7) if kind == "MatMul" else (4, 7))
    node = helper.make_node(kind, ["x", "w"], ["y"], **({"transB": trans} if trans else {}))
    layout = read_layout(node, weight.shape, 0 if trans else 1)
    got = layout.to_matrix(weight) @ gather_patches(x, layout, EVERYTHING, _random())
    expected = (x @ (weight.T if trans else weight)).reshape(-1, 5).T
    np.testing.assert_allclose(got[0], expected, rtol=1e-12)
    np.testing.assert_array_equal(layout.to_weight(layout.to_matrix(weight)), weight)


def test_a_limit_takes_the_same_positions_of_float_and_quantized_input() -> None:
    x = _random().standard_normal((2, 3, 8, 8))
    layout = read_layout(helper.make_node("Conv", ["x", "w"], ["y"]), (4, 3, 3, 3), 0)
    every = gather_patches(x, layout, EVERYTHING, _random())
    some = gather_patches(x, layout, 10, _random())
    same = gather_patches(2 * x, layout, 10, _random())
    assert (every.shape, some.shape) == ((1, 27, 72), (1, 27, 20))
    np.testing.assert_array_equal(same, 2 * some)
    columns = {column.tobytes() for column in every[0].T}
    assert all(column.tobytes() in columns for column in some[0].T)


def test_other_operators_say_so() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"])
    assert "ConvTranspose" in str(read_layout(node, (4, 3, 3, 3), 1))


def test_a_limit_holds_for_the_rows_of_a_product_as_well() -> None:
    x = np.random.default_rng(0).standard_normal((3, 40, 6))
    layout = read_layout(helper.make_node("MatMul", ["x", "w"], ["y"]), (6, 4), 1)
    assert isinstance(layout, PatchLayout)
    patches = gather_patches(x, layout, 7, _random())
    assert patches.shape == (1, 6, 21)
    rows = {tuple(row) for row in x.reshape(-1, 6)}
    assert {tuple(patch) for patch in patches[0].T} <= rows
    assert len({tuple(patch) for patch in patches[0].T}) == 21
