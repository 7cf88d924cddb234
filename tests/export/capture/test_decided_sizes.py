"""Lines of a model that decide by the size of the batch, or of another open axis."""

import inspect
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.capture.decided_sizes import DecidedSizes
from export.capture.dynamic_axes import FixedBatchError
from export.capture.ladder import export_model
from export.capture.program import capture
from export.capture.signature import describe_call
from export.errors import ExportError


class Loops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([sample / sample.norm() for sample in x])


class Views(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1)


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for number in range(x.shape[0]):
            x = x + number
        return x


class Adds(nn.Module):
    """A row for each of the two samples that it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randn(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rows


class Alone(nn.Module):
    """A lone sample goes a way of its own, which a trace of two does not see."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return x * 3
        return x * 2


class Tall(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 2:
            return x.clone()
        return x.clone() * 2


class Free(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] >= 1 and x.shape[1] == 8:
            x = x * x.shape[0]
        return x.reshape(x.shape[0], 2, -1).flatten(1)


class Many(nn.Module):
    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return first * 2 + others[1].view(2, 8)


def find_line(net: nn.Module, text: str) -> str:
    """The line of `forward` with `text` in it, as places name it."""
    lines, first = inspect.getsourcelines(type(net).forward)
    index = next(index for index, line in enumerate(lines) if text in line)
    named = lines[index].strip().rstrip(":")
    return f" ({Path(__file__).name}, line {first + index}: {named})"


def climb(net: nn.Module, folder: Path):
    feeds = {"x": torch.randn(2, 8)}
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    return export_model(net, feeds, folder, signature=signature, static_batch=False, opset=20)


def hear(net: nn.Module, *feeds: Tensor, keyword: bool = False, strict: bool = False):
    """What was decided while `net` was captured, and the error if there was one."""
    named = {f"x{number}" if number else "x": value for number, value in enumerate(feeds)}
    if isinstance(net, Many):
        named = dict(zip(("first", "others_0", "others_1"), feeds, strict=True))
    decided = DecidedSizes(net, named)
    options = {"keyword": keyword, "strict": strict, "dynamic_batch": True, "decided": decided}
    try:
        capture(net, named, **options)
    except ExportError as error:
        return decided, error
    return decided, None


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize(
    ("net", "text"),
    [
        (Loops(), "for sample in x"),
        (Views(), "x.view(2"),
        (Counts(), "for number"),
        (Adds(), "self.rows"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_line_that_makes_a_constant_of_the_batch_is_named(
    net: nn.Module, text: str, keyword: bool
) -> None:
    outer = nn.Sequential(nn.Linear(8, 8), net) if not keyword else net
    names = {"input" if not keyword else "x": torch.randn(2, 8)}
    with pytest.raises(FixedBatchError) as caught:
        capture(outer, names, keyword=keyword, dynamic_batch=True)
    place = find_line(net, text) if keyword else f" at '1'{find_line(net, text)}"
    assert caught.value.place == place
    said = f"The model's code{place} makes a constant, 2, of the size of the batch."
    assert str(caught.value) == said


def test_one_of_several_inputs_in_a_row_is_found() -> None:
    net = Many()
    decided, error = hear(net, *(torch.randn(2, 8) for _ in range(3)))
    assert isinstance(error, FixedBatchError)
    place = find_line(net, "others[1]")
    assert decided.fixed == {("others_1", 0): place, ("first", 0): place}  # it is added to that


def test_where_bytecode_is_traced_the_reason_is_said_without_a_line() -> None:
    _, error = hear(Views(), torch.randn(2, 8), strict=True)
    assert isinstance(error, FixedBatchError)
    assert str(error) == "The model's code makes a constant, 2, of the size of the batch."


@pytest.mark.parametrize(
    ("net", "text", "other"),
    [(Alone(), "== 1", (1, 8)), (Tall(), "> 2", (3, 8))],
    ids=["equal", "above"],
)
def test_sizes_that_go_another_way_are_found(
    net: nn.Module, text: str, other: Sequence[int]
) -> None:
    decided, _ = hear(net, torch.randn(2, 8))
    assert decided.find_other_way({"x": other}) == find_line(net, text)
    assert decided.find_other_way({"x": (2, 8)}) == ""


def test_what_goes_one_way_at_every_size_has_no_place() -> None:
    decided, error = hear(Free(), torch.randn(2, 8))
    assert error is None
    assert decided.fixed == {}
    assert all(decided.find_other_way({"x": (batch, 8)}) == "" for batch in (1, 2, 3, 64))


def test_what_was_heard_before_is_forgotten() -> None:
    decided, _ = hear(Views(), torch.randn(2, 8))
    assert decided.fixed
    with decided.listening():
        pass
    assert not decided.fixed
    assert not decided.decisions


@pytest.mark.parametrize(
    ("net", "text", "batch"),
    [(Loops(), "for sample", True), (Alone(), "== 1", True)],
    ids=["loops", "alone"],
)
def test_the_attempts_say_that_it_is_the_batch_and_where(
    net: nn.Module, text: str, batch: bool, tmp_path: Path
) -> None:
    exported = climb(net, tmp_path)
    assert not exported.dynamic_batch
    first = exported.attempts[0]
    assert (first.rung, first.batch) == ("dynamo", batch)
    assert first.place == find_line(net, text)
    assert first.place in first.error


def test_a_wrong_answer_at_a_lone_sample_is_blamed_on_its_line(tmp_path: Path) -> None:
    first = climb(Alone(), tmp_path).attempts[0]
    assert first.error.startswith("The exported model is wrong: output ")
    assert first.error.endswith(
        f" The model's code{find_line(Alone(), '== 1')} goes another way there."
    )
