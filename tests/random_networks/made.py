"""A random network with how it is called."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from export.artifacts import BATCH, SizeRange, TensorSpec
from export.capture.signature import CallSignature, describe_call
from random_networks.ports import Port


@dataclass(frozen=True)
class Made:
    """A network in eval mode, and how it is fed.

    Attributes:
        ports: by the name of the input.
        keyword: inputs are given by name.
        sizes: of the dynamic axes that ports name.
    """

    seed: int
    module: nn.Module
    ports: Mapping[str, Port]
    keyword: bool
    sizes: Mapping[str, SizeRange] = field(default_factory=dict)

    def feeds(
        self, batch: int, seed: int = 0, sizes: Mapping[str, int] | None = None
    ) -> dict[str, Tensor]:
        """Samples by input; axes that `sizes` lacks have their best size."""
        generator = torch.Generator().manual_seed(seed)
        chosen = {name: span.best for name, span in self.sizes.items()} | dict(sizes or {})
        return {name: port.draw(batch, chosen, generator) for name, port in self.ports.items()}

    def describe_inputs(self, batch: int = 2) -> tuple[TensorSpec, ...]:
        """The inputs with their dynamic axes named."""
        return tuple(
            TensorSpec(
                name,
                (BATCH, *self.ports[name].shape),
                str(value.dtype).removeprefix("torch."),
                {n: span for n, span in self.sizes.items() if n in self.ports[name].shape},
            )
            for name, value in self.feeds(batch).items()
        )

    def describe_at(
        self, batch: int, *, dynamic: bool, sizes: Mapping[str, int] | None = None
    ) -> CallSignature:
        """What it takes and returns, seen by running it."""
        feeds = self.feeds(batch, 1, sizes)
        return describe_call(self.module, feeds, keyword=self.keyword, dynamic_batch=dynamic)

    def call(self, feeds: Mapping[str, Tensor]) -> object:
        """What it returns."""
        with torch.no_grad():
            if self.keyword:
                return self.module(**feeds)
            return self.module(*feeds.values())


def settle(made: Made) -> Made:
    """The same in eval mode, with frozen parameters."""
    made.module.eval()
    for parameter in made.module.parameters():
        parameter.requires_grad_(False)
    return made
