"""The exporter's rewriter without work that can have no result.

At every node of the graph, for a pattern that ends in several operators, onnxscript 0.7 lists the
whole graph before it asks whether the node is the first of them at all. Two thirds of the export of
CoaT, 2,000 operators, went there.
"""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def match_quickly() -> Iterator[None]:
    """Have onnxscript's matcher ask first, for the length of the block.

    What matches is the same. Where another release has no such matcher, nothing changes.
    """
    from onnxscript.rewriter import MatchResult, _matcher

    owner: Any = getattr(_matcher, "SimplePatternMatcher", None)
    original = getattr(owner, "match", None)
    if original is None:
        yield
        return

    def match(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        ends = self.pattern.output_nodes
        wanted = ends[0].op_identifier() if len(ends) > 1 else None
        if wanted is not None and node.op_identifier() != wanted:
            return MatchResult().fail("the operator is another one")
        return original(self, model, graph, node, **options)

    owner.match = match
    try:
        yield
    finally:
        owner.match = original
