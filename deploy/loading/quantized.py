"""Modules that torch itself has quantized: they hold packed weights that no exporter reads."""

from torch import nn
from torch.ao.nn.quantized import FloatFunctional, FXFloatFunctional

from export.errors import LoadError

_QUANTIZED = tuple(f"torch.ao.nn.{part}quantized." for part in ("", "intrinsic.", "sparse."))
_FLOAT = (FloatFunctional, FXFloatFunctional)
"""Of the same packages, for models that are to be quantized."""


def refuse_quantized(module: nn.Module) -> None:
    """Do nothing for a float model.

    Raises:
        LoadError: parts of it are quantized; the message says which, and to build the float model.
    """
    for name, part in module.named_modules():
        kind = type(part)
        if f"{kind.__module__}.".startswith(_QUANTIZED) and not isinstance(part, _FLOAT):
            raise LoadError(
                f"The model is quantized already: {name or 'it'} is a "
                f"{kind.__module__}.{kind.__qualname__}, whose weights only torch's own kernels "
                "read. Build the float model that it was made from; int8 is among what a build "
                "tries, and it says what that costs."
            )
