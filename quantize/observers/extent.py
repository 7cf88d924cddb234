"""The values seen, all of them or on average."""

from quantize.observers.statistic import Span, TensorStatistic


def full_extent(seen: TensorStatistic, symmetric: bool = False) -> Span:
    """The smallest and the largest value.

    Raises:
        QuantizeError: nothing was observed.
    """
    return seen.extent


def average_extent(seen: TensorStatistic, symmetric: bool = False) -> Span:
    """The smallest and the largest value of a batch, averaged as torch.ao does.

    ``average += 0.01 * (batch - average)``, begun with the first batch, which therefore counts most
    for the first hundred; the order of the batches and their size matter
    (``torch.ao.quantization.MovingAverageMinMaxObserver``).

    Raises:
        QuantizeError: nothing was observed.
    """
    return seen.average
