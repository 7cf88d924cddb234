"""How a range is found from what was seen of a tensor: every observer by its name.

An observer reads a `TensorStatistic`, so one pass over the data serves all of them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from quantize.observers.entropy import minimize_divergence
from quantize.observers.extent import average_extent, full_extent
from quantize.observers.mse import minimize_squared_error
from quantize.observers.percentile import cut_tails
from quantize.observers.statistic import Span, TensorStatistic

Observer = Callable[[TensorStatistic, bool], Span]
"""(what was seen, whether the codes are symmetric around 0) → (low, high) in the tensor's unit."""

OBSERVERS: Mapping[str, Observer] = MappingProxyType(
    {
        "minmax": full_extent,
        "moving-average": average_extent,
        "percentile-99.9": cut_tails(99.9),
        "percentile": cut_tails(99.99),
        "percentile-99.999": cut_tails(99.999),
        "entropy": minimize_divergence,
        "mse": minimize_squared_error,
    }
)
"""``percentile`` is 99.99."""

WITHOUT_HISTOGRAM = frozenset({"minmax", "moving-average"})
"""The observers that read no histogram."""

AUTO = "auto"
"""Of all observers, for each tensor, the one that costs the layers behind it least."""
