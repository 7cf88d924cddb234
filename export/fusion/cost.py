"""What operators of a captured graph cost at the captured size, for one sample.

A MAC is a multiplication with its addition. Norms, scales and sums count one an element, so that a
merge which only takes them away is seen to pay.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from export.fusion.draft import Draft, read_argument
from export.fusion.evaluation import hint
from export.fusion.norms import NORMS

aten = torch.ops.aten

_POOLS = frozenset({aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default})
_RECURRENT = frozenset({aten.gru.input, aten.lstm.input, aten.rnn_tanh.input, aten.rnn_relu.input})
_ELEMENTWISE = frozenset({"add", "sub", "rsub", "mul", "div", "neg"})
_KERNELS = {
    **dict.fromkeys((aten.linear.default, aten.convolution.default), "weight"),
    **dict.fromkeys((aten.matmul.default,), "other"),
    **dict.fromkeys((aten.mm.default, aten.addmm.default), "mat2"),
    **{
        getattr(getattr(aten, f"conv{rank}d"), form): "weight"
        for rank in (1, 2, 3)
        for form in ("default", "padding")
    },
    **dict.fromkeys(
        (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
        "weight",
    ),
}


def is_layer(node: fx.Node) -> bool:
    """Whether the node is a convolution, a transposed one, or a linear layer."""
    return node.op == "call_function" and node.target in _KERNELS


def is_recurrent(node: fx.Node) -> bool:
    """Whether the node is a whole LSTM, GRU or plain recurrent network, all of its layers."""
    return node.op == "call_function" and node.target in _RECURRENT


def name_weight(node: fx.Node) -> str | None:
    """The argument that holds the weight of a layer; None for any other node."""
    return _KERNELS.get(node.target) if node.op == "call_function" else None


def count_macs(node: fx.Node) -> int:
    """MACs of one operator for one sample; what only moves data costs none."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return 0
    if is_recurrent(node):
        return _count_recurrent(node)
    elements = count_elements(node)
    name = _KERNELS.get(node.target)
    if name is not None:
        # a size may be symbolic; int() of one, or a product with one, would fix the batch for good
        shape = [hint(size) for size in read_argument(node, name).meta["val"].shape]
        if "transpose" in str(node.target) or read_argument(node, "transposed", False):
            return count_elements(read_argument(node, "input")) * math.prod(shape[1:])
        if name != "weight":
            return elements * shape[max(len(shape) - 2, 0)]
        return elements * math.prod(shape[1:])
    if node.target in _POOLS:
        rank = node.meta["val"].ndim - 2
        kernel = list(read_argument(node, "kernel_size"))
        return int(elements * math.prod(kernel * rank if len(kernel) == 1 else kernel))
    plain = str(node.target._schema.name).rpartition("::")[2].rstrip("_")
    return elements if node.target in NORMS or plain in _ELEMENTWISE else 0


def _count_recurrent(node: fx.Node) -> int:
    """Each step multiplies with every matrix of every layer and direction once."""
    value = read_argument(node, "input").meta["val"]
    first = bool(read_argument(node, "batch_first")) and value.ndim > 2
    weights = [weight.meta["val"] for weight in read_argument(node, "params")]
    products = sum(int(weight.numel()) for weight in weights if weight.ndim == 2)
    return hint(value.shape[int(first)]) * products


def count_elements(node: fx.Node) -> int:
    """Elements of a value for one sample of the batch; of several values, of the first."""
    value = _read_first(node)
    return math.prod(read_sample_shape(node)) if isinstance(value, Tensor) else 0


def read_sample_shape(node: fx.Node) -> tuple[int, ...]:
    """Sizes of a value for one sample; of several values, of the first.

    The batch is the first axis, but for what moved it, as attention does to ``[tokens, batch,
    width]`` or ``[tokens * batch, width]``. Where the batch is fixed, that cannot be seen.
    """
    value = _read_first(node)
    shape = value.shape if isinstance(value, Tensor) else ()
    symbol = None if _leads(shape) else _find_batch(node.graph)
    if symbol is None or not any(_holds(size, symbol) for size in shape):
        return tuple(hint(size) for size in shape[1:])
    batch = hint(symbol)
    sizes = (hint(s) // batch if _holds(s, symbol) else hint(s) for s in shape)
    kept = zip(shape, sizes, strict=True)
    return tuple(n for size, n in kept if n != 1 or not _holds(size, symbol))


def _read_first(node: fx.Node) -> Any:
    value = node.meta["val"]
    while isinstance(value, (list, tuple)):
        value = value[0]
    return value


def _leads(shape: Sequence[int | torch.SymInt]) -> bool:
    """Whether the first axis is the batch beyond doubt: a symbol, and all others are numbers."""
    if not shape or any(isinstance(size, torch.SymInt) for size in shape[1:]):
        return False
    return isinstance(shape[0], torch.SymInt) and bool(shape[0].node.expr.is_Symbol)


def _find_batch(graph: fx.Graph) -> torch.SymInt | None:
    """The leading size of the inputs where it is dynamic."""
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.ndim and isinstance(value.shape[0], torch.SymInt):
            return value.shape[0]
    return None


def _holds(size: int | torch.SymInt, batch: torch.SymInt) -> bool:
    if not isinstance(size, torch.SymInt):
        return False
    return bool(size.node.expr.free_symbols & batch.node.expr.free_symbols)


def count_parameters(draft: Draft, nodes: Iterable[fx.Node]) -> int:
    """Elements of the floating tensors that `nodes` read, each once; statistics count too."""
    read = {source: draft.stored(source) for node in nodes for source in node.all_input_nodes}
    return sum(t.numel() for t in read.values() if t is not None and t.is_floating_point())
