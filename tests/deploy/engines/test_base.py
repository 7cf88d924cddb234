"""What a backend is given agrees with its signature, or a message says what does not."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from deploy.engines import Array, EngineSpec, Feeds, open_engine
from deploy.engines.base import BackendEngine, check_feeds
from export.artifacts import TensorSpec
from export.errors import EngineError

IMAGE = TensorSpec("image", ("batch", 3, "height", 4), "float32")
IDS = TensorSpec("ids", ("batch", 2), "int64")
SCALE = TensorSpec("scale", (), "float32")


def good(batch: int = 2) -> dict[str, Any]:
    return {
        "image": np.zeros((batch, 3, 5, 4), np.float32),
        "ids": np.zeros((batch, 2), np.int64),
        "scale": np.float32(1) * np.ones((), np.float32),
    }


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_feeds_that_agree_pass(batch: int) -> None:
    feeds = good(batch) | {"scale": np.array(1, np.float32)}
    check_feeds((IMAGE, IDS, SCALE), feeds)
    check_feeds((IMAGE, IDS, SCALE), dict(reversed(feeds.items())))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"picture": np.zeros(1)}, r"no input 'picture'; the inputs are: image, ids\."),
        ({"ids": None}, r"Input 'ids' is missing; it is ids:batchx2:int64\."),
        ({"ids": np.zeros((2, 2), np.int32)}, r"'ids' has dtype int32; the engine takes int64"),
        ({"ids": np.zeros((2, 2), ">i8")}, r"'ids' has dtype >i8; the engine takes int64"),
        ({"image": np.zeros((2, 3, 5, 4))}, r"'image' has dtype float64; .* takes float32"),
        (
            {"image": np.zeros((2, 3, 5, 4), ml_dtypes.bfloat16)},
            r"'image' has dtype bfloat16; the engine takes float32",
        ),
        (
            {"image": np.zeros((2, 1, 5, 4), np.float32)},
            r"'image' has shape \[2, 1, 5, 4\]; the engine takes image:batchx3xheightx4:float32",
        ),
        ({"image": np.zeros((3, 5, 4), np.float32)}, r"'image' has shape \[3, 5, 4\]"),
        ({"image": np.zeros((0, 3, 5, 4), np.float32)}, r"shape \[0, 3, 5, 4\]"),
        ({"image": np.zeros((2, 3, 0, 4), np.float32)}, r"shape \[2, 3, 0, 4\]"),
        ({"ids": np.zeros((3, 2), np.int64)}, r"different batch sizes: image 2, ids 3"),
        ({"ids": [[0, 0], [0, 0]]}, r"'ids' is no numpy array but list; it is ids:batchx2:int64"),
    ],
    ids=range(12),
)
def test_feeds_that_do_not_agree_are_refused(change: dict[str, Any], words: str) -> None:
    feeds = {k: v for k, v in {**good(), **change}.items() if v is not None and k != "scale"}
    with pytest.raises(EngineError, match=words):
        check_feeds((IMAGE, IDS), feeds)


def test_a_static_batch_takes_no_other() -> None:
    spec = TensorSpec("x", (4, 2), "float32")
    check_feeds((spec,), {"x": np.zeros((4, 2), np.float32)})
    with pytest.raises(EngineError, match=r"shape \[3, 2\]; the engine takes x:4x2:float32"):
        check_feeds((spec,), {"x": np.zeros((3, 2), np.float32)})


@pytest.mark.parametrize(
    ("engine", "precision", "name"),
    [
        ("torch", "fp32", "torch"),
        ("onnxruntime", "int8", "onnxruntime-int8"),
        ("openvino", "bf16", "openvino-bf16"),
    ],
)
def test_a_spec_has_the_name_of_its_candidate(engine: str, precision: str, name: str) -> None:
    assert EngineSpec(engine, precision, "model", 1).name == name


@pytest.mark.parametrize("engine", ["tvm", ""])
def test_an_engine_that_cannot_be_run_is_said(engine: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="it runs torch, onnxruntime, openvino"):
        open_engine(EngineSpec(engine, "fp16", str(tmp_path / "x"), 1))


def test_a_bare_array_is_told_how_to_be_passed() -> None:
    spec = TensorSpec("x", ("batch", 4), "float32")
    with pytest.raises(EngineError, match=r"not ndarray: engine\(\{'x': x\}\)"):
        check_feeds((spec,), np.zeros((1, 4), np.float32))  # type: ignore[arg-type]


class _Doubling(BackendEngine):
    inputs = (TensorSpec("x", ("batch",), "float32"),)
    outputs = (TensorSpec("y", ("batch",), "float32"),)

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        return {"y": feeds["x"] * 2}


def test_an_engine_that_was_closed_says_so_and_shows_what_it_takes() -> None:
    feeds = {"x": np.ones(3, np.float32)}
    with _Doubling() as engine:
        assert engine(feeds)["y"].tolist() == [2, 2, 2]
        assert repr(engine) == "_Doubling(x:batch:float32 -> y:batch:float32)"
    with pytest.raises(EngineError, match="closed"):
        engine(feeds)


def test_what_fitted_before_does_not_let_others_pass() -> None:
    engine = _Doubling()
    fits = np.zeros(2, np.float32)
    for _ in range(2):
        engine({"x": fits})
    bad: tuple[Any, ...] = (
        {"x": fits.astype(np.float64)},
        {"x": fits.astype(">f4")},
        {"x": fits.tolist()},
        {"x": fits, "y": fits},
        {"y": fits},
        {"x": fits[None]},
        {},
        fits,
    )
    for feeds in bad:
        with pytest.raises(EngineError):
            engine(feeds)
        engine({"x": fits})
