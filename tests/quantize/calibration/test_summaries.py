"""Summaries made in the graph against numpy on the tensors themselves."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_nets import Net, classifier

from export.errors import EngineError
from export.onnx.execute import ExposedModel
from export.onnx.graph import GraphIndex
from export.onnx.tensor_types import float_tensors
from quantize.calibration.summaries import SAMPLE_LIMIT, SummarizedModel, Wanted, summarize
from quantize.placement.layers import channel_axes


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_every_tensor_is_summed_up_as_numpy_does(tmp_path: Path, opset: int) -> None:
    net, model = classifier(tmp_path, opset=opset)
    names = float_tensors(model.path)
    axes = channel_axes(GraphIndex(onnx.load(model.path)))
    with ExposedModel(model.path, names) as exposed:
        tensors = exposed(net.feed(5))
    with SummarizedModel(model.path, Wanted(names, axes, frozenset(names))) as summarized:
        summaries = summarized(net.feed(5))
    assert set(summaries) == set(names)
    for name, summary in summaries.items():
        expected = summarize(tensors[name], axes.get(name))
        assert summary.channels == expected.channels == (name in axes)
        assert summary.low.shape == expected.low.shape
        for part in ("low", "high", "mean", "values"):
            np.testing.assert_allclose(
                getattr(summary, part), getattr(expected, part), rtol=1e-4, atol=1e-5
            )
        assert summary.size == tensors[name].size


def test_only_what_was_asked_for_has_values(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    with SummarizedModel(model.path, Wanted(("x", "gap_out"), {}, {"x"})) as summarized:
        summaries = summarized(net.feed(2))
    assert summaries["x"].values is not None
    assert summaries["gap_out"].values is None


def test_of_large_tensors_every_nth_value_is_taken_from_a_place_that_moves(tmp_path: Path) -> None:
    net = Net(3, 112, 112)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 3, 1))
    feeds = net.feed(8)
    flat = feeds["x"].ravel()
    step = flat.size // (2 * SAMPLE_LIMIT) * 2 + 1
    assert step == 5
    places = []
    for _ in range(2):  # the same values, however often it is opened
        with SummarizedModel(model.path, Wanted(("x",), {}, {"x"})) as summarized:
            for _ in range(4):
                values = summarized(feeds)["x"].values
                assert values is not None
                assert SAMPLE_LIMIT / 2 < values.size < 2 * SAMPLE_LIMIT
                start = int(np.flatnonzero(flat[:step] == values[0])[0])
                np.testing.assert_array_equal(values, flat[start::step])
                places.append(start)
    assert places[:4] == places[4:]
    assert len(set(places)) > 2


def _half_precision(path: Path) -> Path:
    """float16 and float64 tensors, one of no known rank."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["x"], ["double"], to=TensorProto.DOUBLE),
            helper.make_node("Reshape", ["x", "shape"], ["unknown"]),
            helper.make_node("ReduceSum", ["x"], ["scalar"], keepdims=0),
        ],
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 3]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [None]),
        ],
        [
            helper.make_tensor_value_info("half", TensorProto.FLOAT16, None),
            helper.make_tensor_value_info("double", TensorProto.DOUBLE, None),
            helper.make_tensor_value_info("unknown", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("scalar", TensorProto.FLOAT, None),
        ],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_any_float_type_and_rank(tmp_path: Path) -> None:
    path = _half_precision(tmp_path / "m.onnx")
    x = np.linspace(-3, 4, 24, dtype=np.float32).reshape(4, 2, 3)
    names = ("half", "double", "unknown", "scalar")
    with SummarizedModel(path, Wanted(names, {"half": 1}, set(names))) as summarized:
        found = summarized({"x": x, "shape": np.array([2, 3, 4, 1])})
    for name in ("half", "double", "unknown"):
        assert (found[name].low.min(), found[name].high.max()) == (-3, 4)
        assert found[name].values is not None
        assert found[name].values.size == 24
    assert found["half"].low.shape == (4, 2)
    assert found["scalar"].high == pytest.approx(x.sum(), rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rank", [2, 4])
def test_what_is_not_finite_shows(tmp_path: Path, value: float, rank: int) -> None:
    net = Net(*(3, 9, 9)[: rank - 1])
    x = net.op("Relu", "x")
    model = net.save(tmp_path / "m.onnx", x)
    feeds = net.feed(4)
    feeds["x"][2, 1] = value
    with SummarizedModel(model.path, Wanted(("x",), {"x": 1})) as summarized:
        assert not summarized(feeds)["x"].is_finite
        assert summarized(net.feed(4))["x"].is_finite


def test_names_of_the_model_that_look_like_ours_are_kept(tmp_path: Path) -> None:
    net = Net(3)
    model = net.save(tmp_path / "m.onnx", net.op("Relu", "x", name="summary.1"))
    proto = onnx.load(model.path)
    proto.graph.node[0].output[0] = proto.graph.output[0].name = "summary.1"
    onnx.save(proto, model.path)
    with SummarizedModel(model.path, Wanted(("x", "summary.1"), {}, {"x"})) as summarized:
        found = summarized({"x": np.array([[-1.0, 2.0, 3.0]], np.float32)})
    assert (found["summary.1"].low, found["summary.1"].high) == (0, 3)


def test_external_data_is_read_from_beside_the_file(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    proto = onnx.load(model.path)
    onnx.save(proto, tmp_path / "e.onnx", save_as_external_data=True, size_threshold=0)
    wanted = Wanted(("gap_out",))
    results = []
    for path in (model.path, tmp_path / "e.onnx"):
        with SummarizedModel(path, wanted) as summarized:
            results.append(float(summarized(net.feed(3))["gap_out"].high.max()))
    assert results[0] == results[1]


def test_a_batch_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    wanted = Wanted(("x",), {}, {"x"})
    with SummarizedModel(model.path, wanted) as summarized, pytest.raises(EngineError):
        summarized({"x": np.zeros((1, 4, 16, 16), np.float32)})


def test_an_empty_tensor_has_an_empty_summary() -> None:
    assert summarize(np.zeros((0, 3))).is_empty
