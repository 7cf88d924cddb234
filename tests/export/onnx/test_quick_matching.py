"""The rewriter of the exporter does the same, without a look at the whole graph at every node."""

import onnx
import onnx_ir as ir
import pytest
from onnxscript.optimizer import optimize_ir
from onnxscript.rewriter import _DEFAULT_REWRITE_RULES, _matcher

from export.onnx.quick_matching import match_quickly

SOURCE = """
<ir_version: 10, opset_import: ["" : 20]>
halves (float[2, 8] x) => (float[2, 4] y) {
   zero = Constant <value_ints = [0]> ()
   four = Constant <value_ints = [4]> ()
   eight = Constant <value_ints = [8]> ()
   last = Constant <value_ints = [1]> ()
   r = Relu (x)
   b = Slice (r, four, eight, last)
   a = Slice (r, zero, four, last)
   s = Sigmoid (a)
   y = Mul (s, b)
}
"""


class Listed(ir.Graph):
    """A graph that counts how often all of it is listed."""

    listed = 0

    def __iter__(self):
        type(self).listed += 1
        return super().__iter__()


def rewrite() -> list[str]:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(SOURCE))
    optimize_ir(model)
    return [node.op_type for node in model.graph]


def test_slices_become_a_split_as_before() -> None:
    expected = rewrite()
    with match_quickly():
        found = rewrite()
    assert found == expected
    assert "Split" in found


def test_the_graph_is_not_listed_for_a_node_that_cannot_begin_the_pattern() -> None:
    (rule,) = (
        rule for rule in _DEFAULT_REWRITE_RULES if not rule._matcher.pattern.has_single_output_node
    )
    x = ir.val("x", ir.DataType.FLOAT, [2, 8])
    nodes = [ir.node("Relu", [x]), ir.node("Slice", [x, x, x, x])]
    graph = Listed([x], [], nodes=nodes)
    with match_quickly():
        assert not rule._matcher.match(None, graph, nodes[0])
        assert Listed.listed == 0
        rule._matcher.match(None, graph, nodes[1])
        assert Listed.listed > 0


def test_the_matcher_is_as_it_was_afterwards() -> None:
    before = _matcher.SimplePatternMatcher.match

    def fail() -> None:
        assert _matcher.SimplePatternMatcher.match is not before
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), match_quickly():
        fail()
    assert _matcher.SimplePatternMatcher.match is before
