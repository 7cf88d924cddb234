"""Eager torch on a real GPU. Written where there was none; see docs/gpu.md."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import FIRST, SECOND, answer, draw
from torch import nn

from deploy.engines import EngineSpec, open_engine
from deploy.engines.device import CUDA
from export.artifacts import TensorSpec
from export.errors import EngineError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch has no CUDA"),
]

X = TensorSpec("x", ("batch", 4), "float32")
LOGITS = TensorSpec("logits", ("batch", 3), "float32")


def spec(module: nn.Module, folder: Path, x: TensorSpec = X, y: TensorSpec = LOGITS) -> EngineSpec:
    """How to open `module` on the GPU, with the classes of this file trusted."""
    torch.save(module.eval(), folder / "model.pt")
    path, trust = str(folder / "model.pt"), (__name__,)
    return EngineSpec("torch", "fp32", path, 1, trust, inputs=(x,), outputs=(y,), variant=CUDA)


@pytest.fixture
def model(tmp_path: Path) -> EngineSpec:
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.from_numpy(FIRST.T))
        net[2].weight.copy_(torch.from_numpy(SECOND.T))
    return spec(net, tmp_path)


def test_eager_on_the_gpu_gives_the_answers_of_the_module(model: EngineSpec) -> None:
    for batch in (1, 7, 64):
        x = draw(batch)
        with open_engine(model) as engine:
            got = engine({"x": x})
        np.testing.assert_allclose(got["logits"], answer(x), rtol=1e-3, atol=1e-3)


def test_eager_on_the_gpu_leaves_the_caller_s_arrays_alone(tmp_path: Path) -> None:
    x = draw(3)
    before = x.copy()
    with open_engine(spec(nn.ReLU(inplace=True), tmp_path, X, X)) as engine:
        first, second = engine({"x": x}), engine({"x": x})
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(first["x"], np.maximum(before, 0))
    np.testing.assert_array_equal(first["x"], second["x"])


class Products(nn.Module):
    """A convolution and a product of matrices, large enough for tensor cores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.conv = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32 * 256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x.reshape(-1, 16, 16, 16))).flatten(1))


@pytest.fixture
def products(tmp_path: Path) -> EngineSpec:
    """Eager of `Products` on the GPU."""
    x, y = TensorSpec("x", ("batch", 4096), "float32"), TensorSpec("y", ("batch", 64), "float32")
    return spec(Products(), tmp_path, x, y)


def precisions() -> tuple[str, str]:
    """What torch may compute convolutions and products of matrices in."""
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def test_eager_on_the_gpu_is_near_eager_on_the_cpu_and_keeps_torch_s_settings(
    products: EngineSpec,
) -> None:
    x = np.random.default_rng(1).standard_normal((5, 4096), dtype=np.float32)
    before = precisions()
    with open_engine(products) as there, open_engine(replace(products, variant="")) as here:
        for batch in (1, 5, 2):
            got, expected = there({"x": x[:batch]})["y"], here({"x": x[:batch]})["y"]
            noise = float(np.square(got - expected).sum()) / float(np.square(expected).sum())
            assert -10 * np.log10(noise) > 50  # TF32 keeps 10 bits of mantissa
    assert precisions() == before


class Greedy(nn.Module):
    """Asks for a pebibyte where the batch is 3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 3:
            x = x + torch.empty(1 << 50, dtype=torch.uint8, device=x.device)[0]
        return x[:, :3] * 2


def test_memory_that_the_gpu_has_not_is_an_error_and_the_next_call_is_right(tmp_path: Path) -> None:
    with open_engine(spec(Greedy(), tmp_path)) as engine:
        with pytest.raises(EngineError, match="on the GPU: OutOfMemoryError"):
            engine({"x": draw(3)})
        np.testing.assert_array_equal(engine({"x": draw(2)})["logits"], draw(2)[:, :3] * 2)


def test_a_wrong_input_is_said_before_the_gpu_sees_it(products: EngineSpec) -> None:
    with open_engine(products) as engine:
        with pytest.raises(EngineError, match="has shape"):
            engine({"x": np.ones((2, 5), np.float32)})
        assert engine({"x": np.ones((2, 4096), np.float32)})["y"].shape == (2, 64)


class Picky(nn.Module):
    """Takes two samples at most."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 2:
            raise KeyError("two at most")
        return x[:, :3]


def test_whatever_the_model_raises_on_the_gpu_is_an_engine_error(tmp_path: Path) -> None:
    with open_engine(spec(Picky(), tmp_path)) as engine:
        with pytest.raises(EngineError, match="on the GPU: KeyError: 'two at most'"):
            engine({"x": draw(3)})
        assert engine({"x": draw(2)})["logits"].shape == (2, 3)
