"""What to do where the model itself fails on its inputs, told by what torch says."""

import re

_HINTS = {
    r"index out of range in self": (
        "An embedding has no row of that number: integers lie below the bound that ends their "
        "--input (1x128:int64:30522), and a sequence must not be longer than the model's positions."
    ),
    r"invalid data type 'str'|'Tensor' object has no attribute '(get|items|keys|pop)'": (
        "Its forward reads tensors out of a dict, and engines take each as an input of its own. "
        "Build a module around it that does: def forward(self, x, mask): "
        "return self.model({'x': x, 'mask': mask})."
    ),
}
"""By a pattern of the message."""


def explain_failure(error: Exception) -> str:
    """A sentence on it with a space behind, or nothing where it speaks for itself."""
    text = str(error)
    return next((f"{hint} " for pattern, hint in _HINTS.items() if re.search(pattern, text)), "")
