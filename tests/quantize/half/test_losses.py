"""What single nodes lose in 16 bits, beside numpy's own rounding."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from encoder_net import encoder
from test_nets import Net, sqnr

from export.artifacts import OnnxModel
from export.errors import QuantizeError
from export.progress import Progress
from quantize.half.losses import measure_rounding

DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def _scalar(net: Net, name: str, value: float) -> str:
    return net.constant(name, np.float32(value).reshape(()))


def _losses(model: OnnxModel, *feeds: dict[str, np.ndarray], half: str = "fp16") -> dict:
    before = model.path.read_bytes()
    losses = measure_rounding(model, feeds, half=half)
    assert model.path.read_bytes() == before
    assert (losses.half, losses.samples) == (half, sum(len(f["x"]) for f in feeds))
    return dict(losses.sqnr_db)


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_a_product_loses_what_numpy_loses(tmp_path: Path, half: str) -> None:
    net = Net(37)
    weight = net.random.normal(0, 0.2, (37, 61)).astype(np.float32)
    y = net.op("MatMul", "x", net.constant("w", weight), name="product")
    model = net.save(tmp_path / "m.onnx", y)
    one, two = net.feed(5, seed=3), net.feed(2, seed=4)
    x = np.concatenate([one["x"], two["x"]])
    narrow = (array.astype(DTYPES[half]).astype(np.float64) for array in (x, weight))
    rounded = np.matmul(*narrow).astype(DTYPES[half]).astype(np.float64)
    expected = sqnr(x.astype(np.float64) @ weight, rounded)
    got = _losses(model, one, two, half=half)["y"]
    assert got == pytest.approx(expected, abs=0.05)
    assert (40 if half == "bf16" else 60) < got < (55 if half == "bf16" else 80)


def test_cancellation_is_blamed_on_the_node_that_cancels(tmp_path: Path) -> None:
    net = Net(64)
    shifted = net.op("Add", "x", _scalar(net, "shift", 1000), name="shifted")
    back = net.op("Sub", shifted, _scalar(net, "again", 999), name="back")
    losses = _losses(net.save(tmp_path / "m.onnx", net.op("Neg", back)), net.feed(8))
    assert losses["shifted_out"] > 60
    assert losses["back_out"] < 20  # steps of 0.5 between 512 and 1024, values around 1
    assert losses["y"] > 60


def test_overflow_and_underflow_lose_everything(tmp_path: Path) -> None:
    net = Net(16)
    wide = net.op("Mul", "x", _scalar(net, "k", 1e6), name="wide")
    tiny = net.op("Mul", "x", _scalar(net, "t", 1e-9), name="tiny")
    model = net.save(tmp_path / "m.onnx", wide, tiny, net.op("Neg", "x"))
    losses = _losses(model, net.feed(4))
    assert losses["y"] == -np.inf
    assert losses["y1"] == pytest.approx(0, abs=1e-6)
    assert losses["y2"] > 60
    wider = _losses(model, net.feed(4), half="bf16")
    assert min(wider.values()) > 40  # bfloat16 has float32's range


def test_infinities_of_the_model_itself_are_no_loss(tmp_path: Path) -> None:
    net = Net(6, 6)
    mask = np.where(np.tri(6) > 0, 0, -np.inf).astype(np.float32)
    masked = net.op("Add", "x", net.constant("mask", mask), name="masked")
    model = net.save(tmp_path / "m.onnx", net.op("Softmax", masked, axis=-1))
    assert min(_losses(model, net.feed(3)).values()) > 55


def test_integers_and_moved_values_are_not_measured(tmp_path: Path) -> None:
    net = Net(4, 4)
    index = net.op("ArgMax", "x", axis=-1, name="index")
    moved = net.op("Transpose", "x", perm=[0, 2, 1])
    total = net.op("Add", moved, net.op("Cast", index, to=1), name="total")
    assert set(_losses(net.save(tmp_path / "m.onnx", total), net.feed(3))) == {"y"}


def test_every_computing_node_of_an_encoder_is_measured(tmp_path: Path) -> None:
    net, model = encoder(tmp_path, opset=23)
    losses = _losses(model, net.feed(3))
    assert {"q_out", "scores_out", "softmax_out", "norm1_out", "y"} <= set(losses)
    assert min(losses.values()) > 55


def test_no_data_and_old_opsets_are_refused(tmp_path: Path) -> None:
    net = Net(4)
    model = net.save(tmp_path / "m.onnx", net.op("Relu", "x"))
    with pytest.raises(QuantizeError, match="No batches to measure rounding on"):
        measure_rounding(model, [])
    old = Net(4, opset=9)
    with pytest.raises(QuantizeError, match="opset 9 cannot compare floats"):
        measure_rounding(old.save(tmp_path / "old.onnx", old.op("Relu", "x")), [old.feed(2)])


def test_it_runs_on_as_many_threads_as_asked_and_says_how_far_it_is(tmp_path: Path) -> None:
    net = Net(32)
    model = net.save(tmp_path / "m.onnx", net.op("Relu", "x"))
    for threads, more in ((1, 0), (4, 3)):
        told: list[tuple[Progress, int]] = []
        before = set(os.listdir("/proc/self/task"))  # those of other tests may end meanwhile

        def listen(
            progress: Progress,
            told: list[tuple[Progress, int]] = told,
            before: set[str] = before,
        ) -> None:
            told.append((progress, len(set(os.listdir("/proc/self/task")) - before)))

        feeds = [net.feed(2), net.feed(3)]
        measure_rounding(model, feeds, threads=threads, progress=listen)
        assert [progress.done for progress, _ in told] == [2, 5]
        assert [tasks for _, tasks in told] == [more, more]


def test_what_16_bits_hold_exactly_loses_nothing(tmp_path: Path) -> None:
    net = Net(8)
    model = net.save(tmp_path / "m.onnx", net.op("Relu", "x"))
    feeds = {"x": np.arange(-8, 8, dtype=np.float32).reshape(2, 8)}
    assert _losses(model, feeds) == {"y": np.inf}
