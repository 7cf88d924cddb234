"""Batches that are larger than an engine was built for, run in pieces."""

from collections.abc import Callable, Mapping

import numpy as np

from deploy.engines.base import Array, EngineSpec, Feeds
from export.errors import EngineError

Run = Callable[[Feeds], dict[str, Array]]


def largest_batch(spec: EngineSpec) -> int | None:
    """The most samples that an engine of TensorRT takes at once; None: any number."""
    profiles = spec.record.profiles if spec.record is not None else ()
    sizes = [min(most[0] for _, _, most in profile.shapes.values()) for profile in profiles]
    return max(sizes, default=None)


def run_in_pieces(run: Run, most: int | None, axes: Mapping[str, int | None]) -> Run:
    """The same engine for batches of any size.

    Args:
        run: takes at most `most` samples at once; None: any number, and it is returned as it is.
        axes: by output the axis on which its samples lie.
    """
    if most is None:
        return run

    def run_all(feeds: Feeds) -> dict[str, Array]:
        rows = len(next(iter(feeds.values())))
        if rows <= most:
            return run(feeds)
        whole = [name for name, axis in axes.items() if axis is None]
        if whole:
            raise EngineError(
                f"the engine takes {most} samples at once, and output {whole[0]!r} has no axis of "
                f"samples to put pieces of {rows} together on. Build it for larger batches: "
                f"--batch 1,{most},{rows}."
            )
        pieces = [
            run({name: array[start : start + most] for name, array in feeds.items()})
            for start in range(0, rows, most)
        ]
        return {
            name: np.concatenate([piece[name] for piece in pieces], axis=axis)
            for name, axis in axes.items()
            if axis is not None
        }

    return run_all
