"""A model that torch has quantized is refused in words; one that is made to be quantized is not."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploy.loading.model_files import load_model, prepare_module
from export.errors import LoadError

REFUSAL = "quantized already: .* is a torch.ao.nn.*Build the float model"


class Added(nn.Module):
    """Made to be quantized: adds by a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(4, 8)
        self.sum = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.sum.add(self.first(x), self.second(x))


def quantize(kind: str) -> nn.Module:
    from torch.ao import quantization

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "dynamic":
            return quantization.quantize_dynamic(Added().eval(), {nn.Linear}, dtype=torch.qint8)
        net = nn.Sequential(
            quantization.QuantStub(), nn.Conv2d(3, 4, 1), nn.ReLU(), quantization.DeQuantStub()
        ).eval()
        net = quantization.fuse_modules(net, [["1", "2"]])
        net.qconfig = quantization.get_default_qconfig("x86")
        prepared = quantization.prepare(net)
        prepared(torch.ones(1, 3, 2, 2))
        return quantization.convert(prepared)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_quantized_model_is_refused(kind: str) -> None:
    with pytest.raises(LoadError, match=REFUSAL):
        prepare_module(quantize(kind))


def test_a_file_of_one_in_a_wrapper_is_refused(tmp_path: Path) -> None:
    torch.save(nn.DataParallel(quantize("dynamic")), tmp_path / "m.pt")
    with pytest.raises(LoadError, match=REFUSAL):
        load_model(tmp_path / "m.pt", trust=("*",))


def test_a_model_that_is_made_to_be_quantized_is_taken() -> None:
    module = Added().eval()
    x = torch.randn(2, 4)
    torch.testing.assert_close(prepare_module(module)[0](x), module.first(x) + module.second(x))
