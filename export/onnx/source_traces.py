"""The line of the user's source that a node of an exported file comes from.

The exporter writes into every node the stack at which torch met it, with absolute paths: it would
tell strangers about the machine that built the file. What is kept is the name of the file and the
number of the line.
"""

import re
from itertools import chain
from pathlib import Path

import onnx_ir as ir

from export.onnx.graph import SOURCE

_TRACE = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def condense_traces(model: ir.Model, foreign: tuple[str, ...]) -> None:
    """Write into every node of `model` where it comes from in place of its stack.

    Args:
        model: as the exporter left it, changed in place.
        foreign: folders whose code is not the user's.
    """
    inner = (function.all_nodes() for function in model.functions.values())
    for node in chain(model.graph.all_nodes(), *inner):
        frames = _FRAME.findall(node.metadata_props.pop(_TRACE, ""))
        own = [(file, line) for file, line in frames if not file.startswith(foreign)]
        if own:
            file, line = own[-1]  # outermost first
            node.metadata_props[SOURCE] = f"{Path(file).name}:{line}"
