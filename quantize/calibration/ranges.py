"""What calibration found out of a model's tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantize.observers.statistic import ChannelStatistic, Span
from quantize.scheme import QuantScheme


@dataclass(frozen=True)
class Ranges:
    """Ranges of tensors in their own unit, by name.

    Attributes:
        observer: its name; ``auto`` chose one for each tensor.
        samples: how many samples were run, those that came again at other sizes counted once.
        ranges: tensor → (low, high), for codes with a free zero point. A tensor that no placement
            quantizes has its extent here.
        symmetric: the same for codes around 0, of all tensors that a placement may quantize.
        clipped: tensor → the share of its values, as far as they were sampled, outside `ranges`.
        extents: tensor → the smallest and the largest value, nothing clipped; of those that held
            any.
        channels: tensor → what each of its channels held, of tensors that a layer reads or makes.
        chosen: tensor → the observer whose range it has in `ranges`, where ``auto`` chose.
        chosen_symmetric: the same for `symmetric`.
        earlier: `ranges` as they were after the first `earlier_samples` samples, about half, found
            by the same observers; empty where there was one batch only.
        earlier_samples: see `earlier`.
        settled: `ranges` as they were before samples came again at other sizes, found by the same
            observers; empty where none did.
    """

    observer: str
    samples: int
    ranges: Mapping[str, Span]
    symmetric: Mapping[str, Span] = field(default_factory=dict)
    clipped: Mapping[str, float] = field(default_factory=dict)
    extents: Mapping[str, Span] = field(default_factory=dict)
    channels: Mapping[str, ChannelStatistic] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)
    chosen_symmetric: Mapping[str, str] = field(default_factory=dict)
    earlier: Mapping[str, Span] = field(default_factory=dict)
    earlier_samples: int = 0
    settled: Mapping[str, Span] = field(default_factory=dict)

    @property
    def quantizable(self) -> tuple[str, ...]:
        """The tensors that a placement may quantize."""
        return tuple(self.symmetric)

    def for_scheme(self, scheme: QuantScheme) -> Mapping[str, Span]:
        """The ranges for the codes of `scheme`."""
        if scheme.unsigned_activations:
            return self.ranges
        return {**self.ranges, **self.symmetric}
