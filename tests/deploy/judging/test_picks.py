"""Outputs picked by rank are found in exported models, and named only where they are what fails."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from deploy.judging.parity import ParityAccumulator, ParityReport
from deploy.judging.picks import find_picked, warn_of_picks
from export.capture.program import capture
from export.onnx.exporter import to_onnx


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores = self.boxes(cells), self.scores(cells)
        _, best = scores.amax(-1).topk(2, dim=1)
        picked = boxes.gather(1, best.unsqueeze(-1).expand(-1, -1, 4))
        return boxes, scores, picked


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    program = capture(
        Detector().eval(), {"cells": torch.randn(2, 9, 8)}, keyword=True, dynamic_batch=True
    )
    path = tmp_path_factory.mktemp("picks") / "model.onnx"
    names = ["boxes", "scores", "picked"]
    return Path(to_onnx(program, path, input_names=["cells"], output_names=names).path)


def judge(*, boxes: float, picked: float) -> ParityReport:
    """Of outputs that are off by these shares."""
    rng = np.random.default_rng(0)
    ours = {name: rng.standard_normal((8, 2, 4)) for name in ("boxes", "scores", "picked")}
    off = {"boxes": boxes, "scores": 1e-4, "picked": picked}
    theirs = {name: values * (1 + off[name]) for name, values in ours.items()}
    accumulator = ParityAccumulator(tuple(ours))
    accumulator.update(ours, theirs, rows=8)
    return accumulator.result()


def test_only_outputs_behind_the_choice_are_picked(detector: Path) -> None:
    picked = find_picked(detector)
    assert list(picked) == ["picked"]
    assert "TopK" in picked["picked"]


class Sparsemax(nn.Module):
    """Projects onto the simplex: the values by rank say where to cut, and no row is picked."""

    def forward(self, x: Tensor) -> Tensor:
        ranked = x.sort(-1, descending=True).values
        sums = ranked.cumsum(-1) - 1
        counts = torch.arange(1, x.shape[-1] + 1)
        size = (counts * ranked > sums).sum(-1, keepdim=True)
        return (x - sums.gather(-1, size - 1) / size).clamp(min=0)


def test_values_by_rank_pick_no_rows(tmp_path: Path) -> None:
    program = capture(Sparsemax(), {"x": torch.randn(2, 6)}, keyword=True, dynamic_batch=True)
    path = Path(to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=["y"]).path)
    assert "TopK" in {node.op_type for node in onnx.load(path).graph.node}
    assert find_picked(path) == {}


def test_an_output_that_fails_since_rows_change_places_is_named_with_what_to_do(
    detector: Path,
) -> None:
    words = warn_of_picks(detector, [judge(boxes=0.001, picked=0.9)])
    assert words is not None
    assert "picked are picked by rank (TopK at" in words
    assert "after the engine" in words


def test_nothing_is_said_where_another_output_is_the_worst_or_none_failed(detector: Path) -> None:
    assert warn_of_picks(detector, [judge(boxes=0.9, picked=0.1)]) is None
    assert warn_of_picks(detector, []) is None


def test_nothing_is_said_of_an_engine_that_failed_another_gate_with_equal_answers(
    detector: Path,
) -> None:
    rows = {"picked": np.random.default_rng(0).standard_normal((8, 2, 4))}
    accumulator = ParityAccumulator(("picked",))
    accumulator.update(rows, rows, rows=8)
    assert warn_of_picks(detector, [accumulator.result()]) is None
