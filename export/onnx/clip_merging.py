"""The exporter's rewriter merges clips where that is exact, and stores constants under own names.

onnxscript 0.7 takes the overlap of two ranges that have none, and so answers with the wrong one of
their ends. It names the bounds of merged clips by what is clipped, and what it stores under a name
takes the place of what was stored there before: two merged clips of one tensor were no valid graph.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from export.capture.surroundings import replaced


@contextlib.contextmanager
def merge_overlapping() -> Iterator[None]:
    """Have onnxscript's rules merge ranges that overlap alone, for the length of the block.

    Where another release has no such rules, nothing changes.
    """
    from onnxscript.rewriter.rules.common import _fuse_relus_clips

    rules = [
        (rule, rule._condition_function)
        for rule in getattr(_fuse_relus_clips, "rules", ())
        if hasattr(getattr(rule, "_condition_function", None), "__self__")
        and hasattr(rule._condition_function.__self__, "compute_clip_min_max")
    ]
    for rule, check in rules:
        rule._condition_function = _hold_overlap(check)
    try:
        yield
    finally:
        for rule, check in rules:
            rule._condition_function = check


@contextlib.contextmanager
def store_apart() -> Iterator[None]:
    """Have each constant that a rule of onnxscript stores take a name of its own.

    Where another release has no such part, nothing changes.
    """
    from onnxscript.rewriter import _rewrite_rule

    owner: Any = getattr(_rewrite_rule, "ReplacementPatternFunction", None)
    original: Any = getattr(owner, "get_replacement", None)
    numbers = itertools.count()

    def get_replacement(self: Any, match: Any) -> Any:
        found = original(self, match)
        for value in getattr(found, "new_initializers", ()):
            value.name = f"{value.name}_{next(numbers)}"
        return found

    with replaced(owner, "get_replacement", get_replacement):
        yield


def _hold_overlap(check: Any) -> Any:
    """What a rule asks before it merges, and whether there is a value between the bounds."""

    def check_ranges(context: Any, **found: Any) -> Any:
        result = check(context, **found)
        if not result:
            return result
        clips = [found.get(name) for name in ("out_first_clip", "out_second_clip")]
        first, second = (None if clip is None else clip.producer() for clip in clips)
        low, high = check.__self__.compute_clip_min_max(first, second)
        if low is not None and high is not None and (low.numpy() > high.numpy()).any():
            return result.fail("the ranges do not overlap")
        return result

    return check_ranges
