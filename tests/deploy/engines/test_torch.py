"""Eager torch from a real module file: the answers of the module, and nobody's memory but ours."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from tiny import FIRST, LAYOUTS, SECOND, answer, draw, lay_out
from torch import nn

from deploy.engines import EngineSpec, open_engine
from export.artifacts import TensorSpec
from export.errors import EngineError, LoadError, TrustError

X = TensorSpec("x", ("batch", 4), "float32")
LOGITS = TensorSpec("logits", ("batch", 3), "float32")


def save(module: nn.Module, folder: Path) -> Path:
    torch.save(module, folder / "model.pt")
    return folder / "model.pt"


def spec(path: Path, output: TensorSpec = LOGITS) -> EngineSpec:
    return EngineSpec("torch", "fp32", str(path), 1, inputs=(X,), outputs=(output,))


def own_code(path: Path, output: TensorSpec = LOGITS) -> EngineSpec:
    """The same with the classes of this file trusted."""
    return replace(spec(path, output), trust=(__name__,))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.from_numpy(FIRST.T))
        net[2].weight.copy_(torch.from_numpy(SECOND.T))
    return save(net, tmp_path)


def test_inputs_of_bfloat16_are_taken(tmp_path: Path) -> None:
    torch.manual_seed(4)
    net = nn.Linear(4, 3).bfloat16().eval()
    x = torch.randn(5, 4).bfloat16()
    inputs, output = replace(X, dtype="bfloat16"), replace(LOGITS, dtype="bfloat16")
    opened = replace(spec(save(net, tmp_path), output), inputs=(inputs,))
    with open_engine(opened) as engine, torch.no_grad():
        got = engine({"x": x.float().numpy().astype(ml_dtypes.bfloat16)})
        np.testing.assert_array_equal(got["logits"].astype(np.float32), net(x).float().numpy())


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64])
def test_every_batch_is_right(model: Path, batch: int) -> None:
    x = draw(batch)
    with open_engine(spec(model)) as engine:
        got = engine({"x": x})
    assert list(got) == ["logits"]
    assert got["logits"].dtype == np.float32
    np.testing.assert_allclose(got["logits"], answer(x), rtol=1e-5, atol=1e-5)


def test_it_runs_in_eval_mode_with_the_threads_asked_for(tmp_path: Path) -> None:
    path = save(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9)).train(), tmp_path)
    with open_engine(spec(path)) as engine:
        first, second = (engine({"x": draw(8)})["logits"] for _ in range(2))
        assert torch.get_num_threads() == 1
    np.testing.assert_array_equal(first, second)
    assert (first != 0).all()


def test_outputs_belong_to_the_caller(model: Path) -> None:
    x = draw(4)
    with open_engine(spec(model)) as engine:
        first = engine({"x": x})["logits"]
        kept = first.copy()
        engine({"x": -3 * x})
        np.testing.assert_array_equal(first, kept)
        first[:] = 0
        np.testing.assert_array_equal(engine({"x": x})["logits"], kept)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", [1, 2])
def test_any_layout_of_the_input_is_right(model: Path, layout: str, call: int) -> None:
    x = lay_out(draw(4), layout)
    with open_engine(spec(model)) as engine:
        for _ in range(call):
            got = engine({"x": x})["logits"]
    np.testing.assert_allclose(got, answer(x), rtol=1e-5, atol=1e-5)


def test_a_model_that_writes_to_its_input_does_not_reach_the_callers(tmp_path: Path) -> None:
    path = save(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)), tmp_path)
    x = draw(6)
    kept = x.copy()
    with open_engine(spec(path)) as engine:
        answers = [engine({"x": x})["logits"] for _ in range(3)]
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_array_equal(answers[0], answers[2])


@pytest.mark.parametrize("module", [nn.Identity(), nn.Flatten(), nn.Dropout()])
def test_an_input_passed_through_is_no_view_of_the_callers(
    tmp_path: Path, module: nn.Module
) -> None:
    x = draw(2)
    with open_engine(spec(save(module, tmp_path))) as engine:
        for _ in range(2):
            got = engine({"x": x})["logits"]
    assert not np.shares_memory(got, x)
    np.testing.assert_array_equal(got, x)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.view(2, 3)


def test_an_output_is_no_view_of_the_models_own_weights(tmp_path: Path) -> None:
    with open_engine(own_code(save(Constant(), tmp_path))) as engine:
        engine({"x": draw(2)})["logits"][:] = 99
        np.testing.assert_array_equal(engine({"x": draw(2)})["logits"], 1)


class Narrow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, :3] * 1.25).to(torch.bfloat16)


def test_bfloat16_outputs_arrive_as_float32(tmp_path: Path) -> None:
    output = TensorSpec("logits", ("batch", 3), "bfloat16")
    with open_engine(own_code(save(Narrow(), tmp_path), output)) as engine:
        got = engine({"x": np.ones((2, 4), np.float32)})["logits"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, 1.25)


class Picky(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 2:
            raise KeyError("two at most")
        return x[:, :3]


def test_whatever_the_model_raises_is_an_engine_error(tmp_path: Path) -> None:
    with open_engine(own_code(save(Picky(), tmp_path))) as engine:
        with pytest.raises(EngineError, match="fails on this input: KeyError: 'two at most'"):
            engine({"x": draw(3)})
        assert engine({"x": draw(2)})["logits"].shape == (2, 3)


def test_a_file_of_untrusted_code_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"Narrow.*Nothing of it was run"):
        open_engine(spec(save(Narrow(), tmp_path)))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="There is no file"):
        open_engine(spec(tmp_path / "model.pt"))


def test_a_wrong_input_is_said_before_the_model_sees_it(model: Path) -> None:
    with (
        open_engine(spec(model)) as engine,
        pytest.raises(EngineError, match="no input 'image'; the inputs are: x"),
    ):
        engine({"image": draw(2)})


def test_a_gpu_that_torch_cannot_use_is_told_with_the_fix(model: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch has a GPU here")
    with pytest.raises(EngineError, match=r"eager torch on an NVIDIA GPU: .*--device cpu"):
        open_engine(replace(spec(model), variant="cuda"))
