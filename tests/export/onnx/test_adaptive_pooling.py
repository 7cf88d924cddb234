"""Adaptive pools to any size, against torch in float64, at batches that were not traced."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.engines.base import EngineSpec
from deploy.engines.process import EngineProcess
from export.capture.program import capture
from export.errors import ExportError
from export.onnx.exporter import to_onnx


class Pooled(nn.Module):
    def __init__(self, pool, size) -> None:
        super().__init__()
        self.pool, self.size = pool, size

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x, self.size)


def export(net: nn.Module, x: Tensor, folder: Path) -> Path:
    program = capture(net.eval(), {"x": x}, keyword=False, dynamic_batch=True)
    path = folder / "model.onnx"
    to_onnx(program, path, input_names=["x"], output_names=["y"])
    return path


def kinds(path: Path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


MAX1, MAX2, MAX3 = F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d
MEAN1, MEAN2, MEAN3 = F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("pool", "size", "shape", "operators"),
    [
        (MAX2, (3, 4), (9, 9), {"MaxPool": 1}),  # windows that overlap, all alike
        (MAX2, (4, 6), (10, 7), None),
        (MAX2, (1, 3), (5, 8), None),
        (MAX2, (None, 5), (6, 7), None),
        (MAX2, (7, 12), (5, 8), None),  # more values than there were
        (MAX1, 5, (11,), None),
        (MAX3, (2, 3, 1), (6, 8, 5), None),
        (
            MAX2,
            (19, 2),
            (31, 5),
            {"Gather": 1, "Reshape": 1, "Slice": 2, "ReduceMax": 3, "Concat": 1},
        ),
        (MEAN1, 4, (9,), {"AveragePool": 1}),
        (MEAN2, (4, 6), (10, 7), None),
        (MEAN2, (4, 2), (9, 9), {"AveragePool": 1}),
        (MEAN3, (2, 3, 1), (6, 8, 5), None),
        (MEAN3, (3, 2, 5), (6, 6, 5), {"AveragePool": 1}),
    ],
)
def test_every_batch_is_pooled_as_in_torch(pool, size, shape, operators, tmp_path):
    x = torch.randn(3, 4, *shape, generator=torch.Generator().manual_seed(1))
    path = export(Pooled(pool, size), x[:2], tmp_path)
    if operators is not None:
        assert kinds(path) == operators
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (1, 3):
        (found,) = session.run(None, {"x": x[:rows].numpy()})
        wanted = pool(x[:rows].double(), size).numpy()
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.thorough
def test_openvino_pools_windows_of_different_lengths(tmp_path):
    x = torch.randn(3, 4, 10, 7, generator=torch.Generator().manual_seed(1))
    path = export(Pooled(MAX2, (4, 6)), x, tmp_path)
    with EngineProcess(EngineSpec("openvino", "fp32", str(path), 1)) as engine:
        found = engine({"x": x.numpy()})["y"]
    np.testing.assert_allclose(found, MAX2(x.double(), (4, 6)).numpy(), atol=1e-6)


@pytest.mark.parametrize("pool", [MAX1, MEAN1])
def test_many_windows_take_few_nodes(pool, tmp_path):
    """A slice for each of 300 took the exporter most of a minute."""
    x = torch.randn(3, 2, 500, generator=torch.Generator().manual_seed(1))
    path = export(Pooled(pool, 300), x[:2], tmp_path)
    assert kinds(path).total() < 30
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (1, 3):
        (found,) = session.run(None, {"x": x[:rows].numpy()})
        np.testing.assert_allclose(found, pool(x[:rows].double(), 300).numpy(), atol=1e-6)


def test_a_pool_to_no_value_is_not_written_out(tmp_path):
    with pytest.raises(ExportError, match="adaptive_avg_pool2d"):
        export(Pooled(MEAN2, (0, 3)), torch.randn(2, 3, 10, 7), tmp_path)


def test_pools_whose_places_are_asked_for_are_refused(tmp_path):
    class Places(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return F.adaptive_max_pool2d(x, (4, 6), return_indices=True)

    program = capture(Places(), {"x": torch.randn(2, 3, 10, 7)}, keyword=False, dynamic_batch=True)
    with pytest.raises(ExportError, match="adaptive_max_pool2d"):
        to_onnx(program, tmp_path / "model.onnx", input_names=["x"], output_names=["y", "i"])
