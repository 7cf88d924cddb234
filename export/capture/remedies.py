"""What to change in a model that no exporter takes, where its reasons alone do not say it."""

from collections.abc import Iterable

from torch import nn

from export.capture.agreement import float_dtypes
from export.capture.image_model import find_user_module

_FORMAT = (
    "It computes in {}, which ONNX Runtime's kernels for CPUs hardly know: build it in float32, by "
    "module.float() and without torch.autocast, and leave the number format to the engines. "
)
_PACKED = (
    "No exporter takes packed sequences: give the recurrent layer the padded batch as it is, and "
    "pick each sample's last step by its length. "
)
_BOTH_WAYS = (
    "take that value from the configuration, or compute both ways and choose between them by "
    "torch.where."
)
_VALUES = (
    "Its forward goes on by the value of a tensor (.item(), bool() or an if on one), which a graph "
    f"cannot: {_BOTH_WAYS} "
)
_ONE_WAY = (
    "The model's forward{} goes on by the value of a tensor (.item(), bool() or an if on one), and "
    "the engines hold only the way that it went for the samples that were traced. Where it goes "
    f"another way they are wrong, also if none of the samples compared did: {_BOTH_WAYS}"
)
_COMPLEX = (
    "Engines have no complex values: take and return pairs of real ones (torch.view_as_real), and "
    "write what is named for complex values as sums and products of their parts. "
)
_COMPLEX_SIGNS = ("is complex", "complex-valued input", "Numpy_type 14", "Numpy_type 15")
_PROJECTED = (
    "ONNX's LSTM has no projection, as {} has (proj_size): train it with proj_size=0, where needed "
    "with a Linear behind it, or write its steps out in forward, as a loop over a fixed number of "
    "them. "
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
    named += _COMPLEX if any(sign in reasons for sign in _COMPLEX_SIGNS) else ""
    if projected := _list_projected(module):
        named += _PROJECTED.format(", ".join(projected))
    return named + (_VALUES if "DataDependent" in reasons else "")


def warn_of_one_way(rung: str, refusals: Iterable[tuple[str, str]]) -> str | None:
    """That a trace follows one way through a forward that has several; None where it has one.

    Args:
        rung: that held.
        refusals: of those before it, why each did not, and where in the model, or nothing.
    """
    places = [place for reason, place in refusals if "data-dependent" in reason]
    if not rung.startswith("torchscript") or not places:
        return None
    return _ONE_WAY.format(next(filter(None, places), ""))


def _list_projected(module: nn.Module) -> list[str]:
    """Paths of the LSTMs whose hidden state is projected."""
    return [
        path or type(part).__name__
        for path, part in find_user_module(module).named_modules()
        if isinstance(part, nn.LSTM) and part.proj_size
    ]
