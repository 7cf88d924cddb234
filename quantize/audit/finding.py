"""What an audit says."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "few samples",
    "constant samples",
    "repeated samples",
    "shared samples",
    "input scale",
    "dead channels",
    "drift",
    "saturation",
    "convergence",
]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the data, or may be.

    Attributes:
        kind: what it is about.
        where: the input, or the module path of the layer that makes the tensor; empty where it is
            about the samples themselves.
        words: what was seen, how much of it, and what to do.
    """

    kind: Kind
    where: str
    words: str


def count_more(number: int, what: str) -> str:
    """ ", and 3 more tensors are like it"; nothing where there are no more."""
    if number < 1:
        return ""
    return f", and {number} more {what}{'s are' if number > 1 else ' is'} like it"


def count_used(number: int) -> str:
    """ "1 was used", "3 were used"."""
    return f"{number} {'was' if number == 1 else 'were'} used"
