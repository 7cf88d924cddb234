"""Inputs get the names of the parameters of ``forward``; what does not fit says what would."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import KeywordOnly, Returning
from torch import Tensor, nn

from export.capture.parameters import name_inputs
from export.capture.signature import describe_call
from export.errors import ConfigError


class Free(nn.Module):
    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return sum(args) + sum(kwargs.values())


class First(nn.Module):
    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return x


class NamedAlone(nn.Module):
    def forward(self, *, wave: Tensor, gain: Tensor | None = None) -> Tensor:
        return wave if gain is None else wave * gain


class Open(nn.Module):
    def forward(self, x: Tensor, **rest: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("module", "names", "expected"),
    [
        (nn.Linear(3, 3), [None], (("input",), False)),
        (Returning(None), [None, None], (("x", "y"), False)),
        (Returning(None), ["x", "y"], (("x", "y"), True)),
        (Returning(None), ["y", "x"], (("y", "x"), True)),
        (Returning(None), [None], (("x",), False)),
        (KeywordOnly(), ["x", "mask"], (("x", "mask"), True)),
        (Free(), [None, None], (("input_0", "input_1"), False)),
        (Free(), ["a", "b"], (("a", "b"), False)),
        (First(), [None, None, None], (("x", "input_1", "input_2"), False)),
        (Open(), ["x", "anything"], (("x", "anything"), True)),
        (NamedAlone(), [None], (("wave",), True)),
        (nn.Identity(), [], ((), False)),
    ],
)
def test_inputs_take_their_names(
    module: nn.Module, names: list[str | None], expected: tuple[tuple[str, ...], bool]
) -> None:
    assert name_inputs(module, names) == expected


@pytest.mark.parametrize(
    ("module", "names", "message"),
    [
        (Returning(None), ["x", "z"], r"no parameter 'z'.*It takes: x, y"),
        (KeywordOnly(), ["x", "masc"], r"no parameter 'masc'.*It takes: x, mask"),
        (Returning(None), ["x", None], "Name either every input or none"),
        (NamedAlone(), [None, None], r"by name alone: wave, gain.*--input wave:1x128"),
        (Returning(None), ["x", "x"], "Two inputs are called 'x'"),
        (Returning(None), [None, None, None], r"3 inputs were given .* takes 2: x, y"),
    ],
)
def test_names_that_do_not_fit_are_refused_with_those_that_do(
    module: nn.Module, names: list[str | None], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        name_inputs(module, names)


class TakesBatch(nn.Module):
    def forward(self, batch: Any) -> torch.Tensor:
        return batch["image"] + batch["extra"]


@pytest.mark.parametrize("names", [("image", "extra"), (None, None)])
def test_a_forward_that_takes_all_in_one_is_to_be_wrapped(names: tuple[str | None, ...]) -> None:
    with pytest.raises(ConfigError, match="takes a dict or a list of tensors, put the model into"):
        name_inputs(TakesBatch(), names)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("make", ["script", "trace"])
def test_torchscript_is_named_and_called_like_its_module(make: str) -> None:
    class Named(nn.Module):
        def forward(self, image: Tensor, scale: Tensor) -> Tensor:
            return image * scale

    feeds = {"image": torch.randn(2, 3), "scale": torch.randn(2, 3)}
    module = (
        torch.jit.script(Named())
        if make == "script"
        else torch.jit.trace(Named(), tuple(feeds.values()))
    )
    assert name_inputs(module, [None, None]) == (("image", "scale"), False)
    assert name_inputs(module, ["scale", "image"]) == (("scale", "image"), True)
    with pytest.raises(ConfigError, match="It takes: image, scale"):
        name_inputs(module, ["image", "size"])
    for keyword in (False, True):
        signature = describe_call(module, feeds, keyword=keyword, dynamic_batch=True)
        found = signature.call(module, feeds)["output"]
        torch.testing.assert_close(found, feeds["image"] * feeds["scale"])


class Divides(nn.Module):
    def forward(self, over: Tensor, under: Tensor) -> Tensor:
        return over / under


def exported(tmp_path: Path, args: tuple[Tensor, ...], **kwargs: Tensor) -> nn.Module:
    """What becomes of a program that was written to a file and read again."""
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Divides(), args, kwargs), path)
    return torch.export.load(path).module()


@pytest.mark.parametrize("order", [("over", "under"), ("under", "over")])
def test_a_program_exported_in_order_is_called_in_order_whatever_the_names_come_in(
    order: tuple[str, str], tmp_path: Path
) -> None:
    feeds = {"over": torch.rand(2, 3), "under": torch.rand(2, 3) + 1}
    module = exported(tmp_path, tuple(feeds.values()))
    names, keyword = name_inputs(module, order)
    assert (names, keyword) == (("over", "under"), False)
    signature = describe_call(
        module, {name: feeds[name] for name in names}, keyword=keyword, dynamic_batch=False
    )
    found = signature.call(module, feeds)["output"]
    torch.testing.assert_close(found, feeds["over"] / feeds["under"])
    with pytest.raises(ConfigError, match="takes over, under, and 'under' is not among"):
        name_inputs(module, ["over"])


def test_a_program_exported_by_name_is_called_by_name(tmp_path: Path) -> None:
    feeds = {"over": torch.rand(2, 3), "under": torch.rand(2, 3) + 1}
    module = exported(tmp_path, (), **feeds)
    assert name_inputs(module, ["under", "over"]) == (("under", "over"), True)
    signature = describe_call(module, feeds, keyword=True, dynamic_batch=False)
    found = signature.call(module, feeds)["output"]
    torch.testing.assert_close(found, feeds["over"] / feeds["under"])


def test_a_program_exported_both_ways_is_refused_with_what_to_do(tmp_path: Path) -> None:
    module = exported(tmp_path, (torch.rand(2, 3),), under=torch.rand(2, 3))
    with pytest.raises(ConfigError, match=r"1 inputs in order and 1 by name .*all in kwargs"):
        name_inputs(module, ["over", "under"])


def test_a_forward_that_hides_its_parameters_is_called_in_order() -> None:
    module = nn.Identity()
    module.forward = functools.partial(torch.add, alpha=2)  # type: ignore[method-assign]
    names, keyword = name_inputs(module, [None, None])
    assert (names, keyword) == (("input_0", "input_1"), False)
