"""A call at other sizes than those of a capture, for a module that keeps what it made for a size.

Where a detector has anchors for the very batch that is captured, it compares the two and takes
them; torch.export then makes a constant of the batch. The other sizes lie outside of those that are
captured, one sample and more or less than each range: that no captured size is one of them is then
known, and no condition.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from export.artifacts import TensorSpec
from export.capture.kept_attributes import kept_attributes


@contextlib.contextmanager
def called_at_other_sizes(
    module: nn.Module,
    feeds: Mapping[str, Tensor],
    keyword: bool,
    dynamic_batch: bool,
    inputs: Sequence[TensorSpec],
) -> Iterator[bool]:
    """Whether `module` keeps something of a call, which is that of other sizes within the block.

    Args:
        feeds: of the capture.
        keyword: pass the inputs by name.
        dynamic_batch: their leading axis may have another size.
        inputs: where further axes do, with their ranges.
    """
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with kept_attributes(module) as attributes:
        for beyond in (True, False):
            other = _resize(feeds, dynamic_batch, inputs, beyond)
            # The user's own code: what it fails at is told of by whoever asks for these sizes.
            with contextlib.suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
                module(**other) if keyword else module(*other.values())
                break
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        yield attributes.differ()


def _resize(
    feeds: Mapping[str, Tensor], dynamic_batch: bool, inputs: Sequence[TensorSpec], beyond: bool
) -> dict[str, Tensor]:
    """`feeds` with one sample, and of a size `beyond` or below every range."""
    batch = next((value.shape[0] for value in feeds.values() if value.ndim), None)
    specs = {spec.name: spec for spec in inputs}
    resized = {}
    for name, value in feeds.items():
        if dynamic_batch and value.ndim and value.shape[0] == batch:
            value = value[:1]
        spec = specs.get(name)
        for axis, size in enumerate(spec.shape if spec else ()):
            if spec and isinstance(size, str) and size in spec.ranges:
                span = spec.ranges[size]
                rows = span.most + span.step if beyond else max(span.least - span.step, 0)
                value = value.index_select(axis, torch.arange(rows) % value.shape[axis])
        resized[name] = value.clone()  # a module may write to its inputs
    return resized
