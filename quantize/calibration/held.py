"""A few samples of a stream, kept for a second look."""

from collections.abc import Iterator, Mapping

import numpy as np

from export.artifacts import OnnxModel

HELD_SAMPLES, MOST_HELD = 16, 128
"""The most that are kept, of a large model and of the smallest; half as many or more of a longer
stream."""

_VALUES = 2**20
"""Of activations in all samples that are kept: few values tell a good range by luck."""

Feeds = Mapping[str, np.ndarray]


def choose_limit(values: int) -> int:
    """How many samples to keep of a model whose activations have so many values in each.

    Every observer is tried on all of them, so a large model, where one tells much, keeps few.
    """
    return min(MOST_HELD, max(HELD_SAMPLES, _VALUES // max(values, 1)))


class HeldSamples:
    """Every sample at first, then every second, every fourth: spread over a stream of any length.

    Each is a batch of one. Batches of a model whose batch size is fixed are kept whole.

    Args:
        model: whose signature says which inputs have a batch axis.
        limit: the most samples to keep; of a fixed batch size, one batch at least.
    """

    def __init__(self, model: OnnxModel, limit: int = HELD_SAMPLES) -> None:
        self._batched = [spec.name for spec in model.inputs if spec.has_dynamic_batch]
        self._limit = limit
        self._stride = 1
        self._seen = 0
        self.batches: list[Feeds] = []

    def offer(self, batch: Feeds, size: int) -> None:
        """Keep what falls on the stride of a batch of `size` samples."""
        limit = self._limit if self._batched else max(1, self._limit // size)
        for feeds in self._split(batch, size):
            if self._seen % self._stride == 0:
                self.batches.append({name: np.array(array) for name, array in feeds.items()})
            self._seen += 1
            if len(self.batches) > limit:
                self.batches = self.batches[::2]
                self._stride *= 2

    def _split(self, batch: Feeds, size: int) -> Iterator[Feeds]:
        if not self._batched:
            yield batch
            return
        for row in range(size):
            yield {**batch, **{name: batch[name][row : row + 1] for name in self._batched}}
