"""What an exported file says of the machine it was made on."""

from pathlib import Path

import onnx

TRACE = "pkg.torch.onnx.stack_trace"
"""Key of the metadata of a node: the stack at which torch met it, outermost frame first."""


def remove_source_traces(path: Path) -> None:
    """Take the stack traces out of an ONNX file; module paths (name scopes) stay.

    The exporter writes into every node where in the source it came from, with absolute paths. That
    helps while building and tells strangers about the build machine afterwards. Weights in external
    data are left where they are.
    """
    model = onnx.load(path, load_external_data=False)
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            kept = [entry for entry in node.metadata_props if entry.key != TRACE]
            if len(kept) < len(node.metadata_props):
                del node.metadata_props[:]
                node.metadata_props.extend(kept)
    onnx.save(model, path)
