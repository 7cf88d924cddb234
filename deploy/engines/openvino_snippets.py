"""Where the code that OpenVINO generates for a run of operators ("snippets") ends the process.

Where OpenVINO 2026.4 has one thread, asked for or all that the process may use, it makes one
program of two products of few rows and what lies between them. With two such runs, each added to
what went into it, a residual MLP ends by a segmentation fault. Without snippets each product is an
operator of its own, which on two threads takes the same time.
"""

from typing import Any

_PRODUCTS = 4
"""In two runs."""


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
