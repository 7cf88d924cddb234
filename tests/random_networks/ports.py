"""Inputs of a network: what a sample of each of them is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

IDS = 11
"""Integers of inputs are below this, unless they say otherwise."""


@dataclass(frozen=True)
class Port:
    """One input.

    Attributes:
        kind: ``floats`` are normal, ``ids`` uniform integers; a ``mask`` keeps a run of tokens,
            ``left`` one at the end, ``holes`` any but the first, ``pairs`` holds for two tokens and
            keeps each with itself; ``hidden`` is ``holes`` of which some rows keep nothing;
            ``lengths`` are from 1 to `below`.
        shape: of one sample; a name is that of a dynamic axis.
        below: integers are below it.
        dtype: of all but floats.
        turned: a mask is false where it keeps.
    """

    kind: Literal["floats", "ids", "mask", "left", "holes", "hidden", "pairs", "lengths"]
    shape: tuple[int | str, ...]
    below: int = IDS
    dtype: torch.dtype = torch.int64
    turned: bool = False

    def draw(self, batch: int, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        """A batch of samples at `sizes` of the dynamic axes."""
        shape = (batch, *(sizes[size] if isinstance(size, str) else size for size in self.shape))
        if self.kind == "floats":
            return torch.randn(shape, generator=generator)
        if self.kind in ("ids", "lengths"):
            least = int(self.kind == "lengths")
            drawn = torch.randint(least, self.below + least, shape, generator=generator)
            return drawn.to(self.dtype)
        keep = self._keep(shape, generator)
        return (~keep if self.turned else keep).to(self.dtype)

    def _keep(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        places = torch.arange(shape[-1])
        if self.kind in ("mask", "left"):
            lengths = torch.randint(1, shape[-1] + 1, (shape[0], 1), generator=generator)
            keep = places < lengths
            return keep.flip(-1) if self.kind == "left" else keep
        keep = torch.rand(shape, generator=generator) < 0.6
        if self.kind == "pairs":
            return keep | torch.eye(shape[-2], shape[-1], dtype=torch.bool)
        if self.kind == "hidden":
            hides = torch.rand(shape[0], 1, generator=generator) < 0.3
            return keep & ~hides
        return keep | (places == 0)
