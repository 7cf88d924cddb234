"""The exporter's rewriter takes a constant for 0 or 1 where it is, not where it nearly is.

onnxscript 0.7 matches within 1e-8 of the value, or 1e-5 of it, and drops what adds 0 or multiplies
by 1. So the epsilon of ``log(x + 1e-12)`` would go, and zeros become minus infinity.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from export.capture.surroundings import replaced


@contextlib.contextmanager
def match_exactly() -> Iterator[None]:
    """Have onnxscript's matcher compare constants by equality, for the length of the block.

    Where another release has no such matcher, nothing changes.
    """
    from onnxscript.rewriter import _matcher

    owner: Any = getattr(_matcher, "SimplePatternMatcher", None)
    original: Any = getattr(owner, "_match_constant", None)

    def match_constant(self: Any, pattern: Any, value: Any) -> Any:
        return original(self, type(pattern)(pattern.value, 0.0, 0.0), value)

    with replaced(owner, "_match_constant", match_constant):
        yield
