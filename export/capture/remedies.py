"""What to change in a model that no exporter takes, where its reasons alone do not say it."""

from torch import nn

from export.capture.agreement import float_dtypes

_FORMAT = (
    "It computes in {}, which ONNX Runtime's kernels for CPUs hardly know: build it in float32, by "
    "module.float() and without torch.autocast, and leave the number format to the engines. "
)
_PACKED = (
    "No exporter takes packed sequences: give the recurrent layer the padded batch as it is, and "
    "pick each sample's last step by its length. "
)
_VALUES = (
    "Its forward goes on by the value of a tensor (.item(), bool() or an if on one), which a graph "
    "cannot: take that value from the configuration, or compute both ways and choose between them "
    "by torch.where. "
)


def suggest_remedies(module: nn.Module, reasons: str) -> str:
    """Sentences for the user, each with a space behind it; empty where nothing is known.

    Args:
        module: which was to be exported.
        reasons: what the exporters said.
    """
    formats = {str(dtype).removeprefix("torch.") for dtype in float_dtypes(module)} - {"float32"}
    if "bfloat16" in reasons:  # autocast, or a cast in forward
        formats |= {"bfloat16"}
    named = _FORMAT.format(" and ".join(sorted(formats))) if formats else ""
    named += _PACKED if "pack_padded_sequence" in reasons else ""
    return named + (_VALUES if "DataDependent" in reasons else "")
