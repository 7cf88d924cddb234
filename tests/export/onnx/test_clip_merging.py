"""Clips of one tensor are merged side by side, and those whose ranges lie apart are not."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.capture.program import capture
from export.onnx.exporter import to_onnx

X = torch.tensor([[-4.0, -2.0, 0.5], [1.5, 2.5, 9.0]])


class Applies(nn.Module):
    def __init__(self, function: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.function(x)


def export(function: Callable[[Tensor], tuple[Tensor, ...]], path: Path) -> Counter[str]:
    """The operators of the file, whose answers are torch's."""
    program = capture(Applies(function).eval(), {"x": X}, keyword=True, dynamic_batch=True)
    expected = function(X)
    names = [f"y{number}" for number in range(len(expected))]
    to_onnx(program, path, input_names=["x"], output_names=names)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for found, answer in zip(session.run(names, {"x": X.numpy()}), expected, strict=True):
        np.testing.assert_array_equal(found, answer.numpy())
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(
    ("function", "operators"),
    [
        (lambda x: (x.clamp(-3, 3).relu(), x.clamp(-2, 2).relu()), {"Clip": 2}),
        (
            lambda x: (x.clamp(min=0).clamp(max=6), x.clamp(min=-1).clamp(max=3)),
            {"Clip": 2},
        ),
        (lambda x: (x.clamp(-3, 3).clamp(-2, 2).clamp(-1, 1),), {"Clip": 1}),
        (lambda x: (x.clamp(-3, 1).clamp(1, 5), x.clamp(-3, 2).clamp(0, 5)), {"Clip": 2}),
    ],
    ids=["behind relus", "by one bound each", "three in a row", "ranges that touch"],
)
def test_clips_of_one_tensor_are_merged_each_by_itself(
    function: Callable[[Tensor], tuple[Tensor, ...]], operators: dict[str, int], tmp_path: Path
) -> None:
    assert export(function, tmp_path / "m.onnx") == operators


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x.clamp(-3, -1).relu(),),
        lambda x: (x.clamp(0, 1).clamp(2, 3),),
        lambda x: (x.clamp(2, 3).clamp(0, 1),),
        lambda x: (x.relu().clamp(-5, -1),),
        lambda x: (nn.functional.relu6(x).clamp(min=7),),
        lambda x: (x.clamp(max=-1).clamp(min=2), x.clamp(min=2).clamp(max=-1)),
    ],
)
def test_ranges_that_lie_apart_answer_with_the_end_that_is_right(
    function: Callable[[Tensor], tuple[Tensor, ...]], tmp_path: Path
) -> None:
    export(function, tmp_path / "m.onnx")


def test_the_rules_are_as_they_were_afterwards() -> None:
    from onnxscript.rewriter import _rewrite_rule
    from onnxscript.rewriter.rules.common import _fuse_relus_clips

    from export.onnx.clip_merging import merge_overlapping, store_apart

    def state() -> list[object]:
        checks = [rule._condition_function for rule in _fuse_relus_clips.rules]
        return [*checks, _rewrite_rule.ReplacementPatternFunction.get_replacement]

    before, meanwhile = state(), []

    def fail() -> None:
        meanwhile.extend(one is not other for one, other in zip(before, state(), strict=True))
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), merge_overlapping(), store_apart():
        fail()
    assert sum(meanwhile) == 4
    assert state() == before
