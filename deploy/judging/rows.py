"""Samples run one by one, and their answers put together as a batch."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deploy.engines.base import Array, Feeds

Outputs = dict[str, Array]


def take_rows(feeds: Feeds, start: int, stop: int) -> Outputs:
    """The samples from `start` to before `stop`."""
    return {name: array[start:stop] for name, array in feeds.items()}


def run_alone(run: Callable[[Feeds], Outputs], feeds: Feeds) -> list[Outputs]:
    """The answers to every sample of `feeds` alone."""
    samples = len(next(iter(feeds.values())))
    return [run(take_rows(feeds, index, index + 1)) for index in range(samples)]


def join_rows(
    answers: Sequence[Outputs], axes: Mapping[str, int | None], batched: Mapping[str, Array]
) -> Outputs:
    """Answers to single samples as one batch.

    ``squeeze()`` takes the axis of a lone sample away; it is put back where a batch has one more.

    Args:
        axes: by output the axis on which its samples lie; outputs without one are left out.
        batched: the outputs of several samples, for the number of their axes.
    """
    return {
        name: np.concatenate(
            [
                answer[name]
                if answer[name].ndim >= batched[name].ndim
                else np.expand_dims(answer[name], axis)
                for answer in answers
            ],
            axis=axis,
        )
        for name, axis in axes.items()
        if axis is not None
    }
