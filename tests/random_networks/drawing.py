"""Draws of one seed, and modules whose printed form says what they compute."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item")


class Draw:
    """Choices that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def pick(self, *items: Item) -> Item:
        """One of `items`."""
        return self.random.choice(items)

    def one_of(self, items: Sequence[Item]) -> Item:
        """One of a list."""
        return self.random.choice(items)

    def chance(self, share: float = 0.5) -> bool:
        """True in this share of draws."""
        return self.random.random() < share

    def between(self, least: int, most: int) -> int:
        """An integer from `least` to `most`."""
        return self.random.randint(least, most)

    def channels(self) -> int:
        """A number of channels, odd ones among them."""
        return self.pick(3, 4, 5, 6, 7, 8, 8, 9, 12, 12, 16)

    def divisor(self, *numbers: int) -> int:
        """A number that divides all of `numbers`."""
        shared = [d for d in range(1, min(numbers) + 1) if not any(n % d for n in numbers)]
        return self.one_of(shared)


class Call(nn.Module):
    """A function of a tensor, and the modules that it uses; printed as `text`."""

    def __init__(self, text: str, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.text, self.function = text, function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)

    def extra_repr(self) -> str:
        return self.text


class Constant(nn.Module):
    """A tensor that is learned, or a buffer."""

    def __init__(self, *shape: int, scale: float = 1.0, learned: bool = True) -> None:
        super().__init__()
        value = torch.randn(*shape) * scale
        if learned:
            self.value = nn.Parameter(value)
        else:
            self.register_buffer("value", value)

    def forward(self) -> Tensor:
        return self.value

    def extra_repr(self) -> str:
        return "x".join(str(size) for size in self.value.shape)


class Residual(nn.Module):
    """The input and what a branch makes of it, added, subtracted or weighed."""

    def __init__(self, branch: nn.Module, form: str) -> None:
        super().__init__()
        self.branch, self.form = branch, form
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        match self.form:
            case "x + y":
                return x + y
            case "y - x":
                return y - x
            case "x + w * y":
                return x + self.weight * y
            case "x + y, in place":
                y += x
                return y
            case "relu(x + y)":
                return torch.relu(x + y)
        return torch.add(x, y, alpha=0.5)

    def extra_repr(self) -> str:
        return self.form


RESIDUALS = ("x + y", "y - x", "x + w * y", "x + y, in place", "relu(x + y)", "x + 0.5 * y")


class Branches(nn.Module):
    """Several branches from one input, concatenated, added or multiplied."""

    def __init__(self, form: str, *branches: nn.Module, axis: int = 1) -> None:
        super().__init__()
        self.form, self.axis = form, axis
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        if self.form == "cat":
            return torch.cat(outputs, self.axis)
        result = outputs[0]
        for output in outputs[1:]:
            result = result + output if self.form == "sum" else result * output
        return result

    def extra_repr(self) -> str:
        return f"{self.form}, axis={self.axis}"


def randomize(module: nn.Module) -> nn.Module:
    """Statistics, scales and shifts of norms far from the identity, by torch's own generator."""
    with torch.no_grad():
        for child in module.modules():
            if not isinstance(child, _NORMS):
                continue
            mean, variance = (getattr(child, f"running_{key}", None) for key in ("mean", "var"))
            if mean is not None and variance is not None:
                mean.copy_(torch.randn_like(mean) * 0.5)
                variance.copy_(torch.rand_like(variance) * 2 + 0.2)
            if getattr(child, "weight", None) is not None:
                signs = torch.where(torch.rand_like(child.weight) < 0.2, -1.0, 1.0)
                child.weight.copy_(signs * (torch.rand_like(child.weight) + 0.5))
            if getattr(child, "bias", None) is not None:
                child.bias.copy_(torch.randn_like(child.bias) * 0.4)
    return module


_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
