"""The weights of recurrent layers, put in ONNX's order of gates once and for all.

ONNX wants the gates of an LSTM or GRU in another order than torch has them. The exporter writes
that as slices and concatenations of stored weights, and does not work them out where they are
large: ten nodes or more for each direction of a layer, done again whenever a session opens.
"""

import onnx_ir as ir

from export.optional import require

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_WEIGHTS = slice(1, 4)
"""The inputs W, R and B."""

_ONLY_MOVE = frozenset(
    {"Slice", "Concat", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Identity", "Split"}
)
_ANY_SIZE = 2**31


def store_recurrent_weights(model: ir.Model) -> None:
    """Store what the weights of the recurrent layers of `model` come to, in the model itself."""
    wanted: set[ir.Node] = set()
    for node in model.graph.all_nodes():
        if node.op_type in _RECURRENT and node.domain == "":
            for value in node.inputs[_WEIGHTS]:
                wanted |= _list_moves(value)
    if wanted:
        optimizer = require("onnxscript.optimizer", extra="build")
        optimizer.fold_constants(
            model,
            input_size_limit=_ANY_SIZE,
            output_size_limit=_ANY_SIZE,
            should_fold=lambda node: node in wanted,
        )


def _list_moves(value: ir.Value | None) -> set[ir.Node]:
    """The nodes that make `value` of stored tensors by moving numbers; none if others do."""
    moves: set[ir.Node] = set()
    queue = [value]
    while queue:
        item = queue.pop()
        if item is None or item.const_value is not None:
            continue
        node = item.producer()
        if node is None or node.op_type not in _ONLY_MOVE or node.domain != "":
            return set()
        moves.add(node)
        queue += node.inputs
    return moves
