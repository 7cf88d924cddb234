"""Where the code that OpenVINO generates for a run of operators ("snippets") does harm.

Where OpenVINO 2026.4 has one thread, asked for or all that the process may use, it makes one
program of two products of few rows and what lies between them. With two such runs, each added to
what went into it, a residual MLP ends by a segmentation fault. Without snippets each product is an
operator of its own, which on two threads takes the same time.

It takes Mish for one of the operators that may lie between, and then has no code for it: such a
network is refused.

Of attention it makes one program as well, with the exchange of heads and tokens behind it and a
scale in between. Where there are as many heads as tokens, both fixed, and queries, keys and values
are cut out of one tensor, this exchange is left out, and the answers are those of other tokens.
"""

from typing import Any

_PRODUCTS = 4
"""In two runs."""
_SWAP = [0, 2, 1, 3]
"""The order of axes that brings heads behind tokens, or back."""


def has_joined_products(model: Any) -> bool:
    """Whether `model` (of `openvino.Core.read_model`) has the form that ends the process.

    That is four products of matrices or more, and a sum of two computed matrices of which one is
    read by something else as well. Models that merely look so may lose some speed.
    """
    products, residual = 0, False
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind not in ("Add", "MatMul") or node.output(0).get_partial_shape().rank != 2:
            continue
        products += kind == "MatMul"
        residual |= kind == "Add" and _takes_what_others_read(node)
    return residual and products >= _PRODUCTS


def _takes_what_others_read(node: Any) -> bool:
    sources = [port.get_source_output() for port in node.inputs()]
    computed = all(source.get_node().get_type_name() != "Constant" for source in sources)
    return computed and any(len(source.get_target_inputs()) > 1 for source in sources)


def has_mish_of_matrices(model: Any) -> bool:
    """Whether `model` may have Mish, ``x * tanh(softplus(x))``, where OpenVINO refuses it.

    That is over matrices, as an operator or written out, which OpenVINO joins to one. Models that
    merely look so may lose some speed.
    """
    return any(
        node.output(0).get_partial_shape().rank == 2
        for node in model.get_ops()
        if node.get_type_name() == "Mish" or _is_tanh_of_softplus(node)
    )


def _is_tanh_of_softplus(node: Any) -> bool:
    if node.get_type_name() != "Tanh":
        return False
    return node.input_value(0).get_node().get_type_name() in ("SoftPlus", "Log")


def swaps_equal_axes(model: Any) -> bool:
    """Whether `model` exchanges heads and tokens behind a product, as many of both, and both fixed.

    Models that merely look so may lose some speed.
    """
    return any(
        node.get_type_name() == "Transpose" and _swaps_equal_axes(node) for node in model.get_ops()
    )


def _swaps_equal_axes(node: Any) -> bool:
    order = node.input_value(1).get_node()
    shape = node.input(0).get_partial_shape()
    if order.get_type_name() != "Constant" or not _comes_of_product(node.input_value(0).get_node()):
        return False
    if shape.rank != len(_SWAP) or list(order.get_data()) != _SWAP:
        return False
    return bool(shape[1].is_static and shape[2].is_static and shape[1] == shape[2])


def _comes_of_product(node: Any) -> bool:
    """Whether it is a product, or one that was scaled, shifted or quantized by constants."""
    while node.get_type_name() != "MatMul":
        shape = node.output(0).get_partial_shape()
        computed = [v for v in node.input_values() if v.get_node().get_type_name() != "Constant"]
        if len(computed) != 1 or computed[0].get_partial_shape() != shape:
            return False
        node = computed[0].get_node()
    return True
