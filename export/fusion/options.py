"""What the user may say about the rewrites."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FusionOptions:
    """Attributes:
    merge_always: merge whatever is exact, even where that takes more multiplications.
    """

    merge_always: bool = False


"""The defaults are what `deploy build` does."""
