"""How much a search over precisions may do: ``--effort``."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How much a search may do.

    Attributes:
        seconds: shared by the engines, after which nothing further is begun; what runs is finished.
        blocks: how finely precision is chosen.
        tries: how many mixes the fallback may hold against the gate.
        mixes: how many mixes of each engine may be measured for speed.
    """

    seconds: float
    blocks: int
    tries: int
    mixes: int


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(seconds=60, blocks=8, tries=3, mixes=0),
    "normal": Effort(seconds=180, blocks=24, tries=6, mixes=1),
    "thorough": Effort(seconds=1800, blocks=10_000, tries=10, mixes=12),
}
