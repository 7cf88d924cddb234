"""The frozen records that stages hand to each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from export.errors import ConfigError

BATCH = "batch"
"""The name of the dynamic axis in every signature: the leading one of inputs, any of outputs."""


@dataclass(frozen=True)
class SizeRange:
    """Sizes of one dynamic axis: least, the one that engines are tuned for, and most.

    All are multiples of `step`, as is every size between that may come.
    """

    least: int
    best: int
    most: int
    step: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most:
            raise ConfigError(
                f"{self.least},{self.best},{self.most}: sizes of an axis are given as "
                "least,best,most, each 1 or more and none below the one before."
            )
        if self.step < 1 or any(size % self.step for size in (self.least, self.best, self.most)):
            raise ConfigError(
                f"{self.least},{self.best},{self.most} are not all multiples of {self.step}, which "
                "is 1 or more."
            )

    def __str__(self) -> str:
        return f"{self.least},{self.best},{self.most}{f'/{self.step}' if self.step > 1 else ''}"

    def __contains__(self, size: int) -> bool:
        return self.least <= size <= self.most and size % self.step == 0

    def describe(self) -> str:
        """``128 to 512``, or ``128 to 512 in steps of 32``."""
        return f"{self.least} to {self.most}{f' in steps of {self.step}' * (self.step > 1)}"


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor of a signature.

    Attributes:
        name: as the engine and the protocol know it.
        shape: sizes; a string is a symbolic axis, ``"batch"`` the dynamic one of the samples.
        dtype: numpy's name (``float32``, ``int64``, ``bfloat16`` through ml_dtypes).
        ranges: sizes of symbolic axes other than the batch, by their names, where they are known.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    ranges: Mapping[str, SizeRange] = field(default_factory=dict, hash=False)

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """The concrete shape for a batch of `batch`; other symbolic axes get their best size, or 1.

        An axis is 1 where its sizes are not known.
        """
        return self.with_sizes(batch, {})

    def with_sizes(self, batch: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """What `with_batch` gives, with these sizes for the axes that they name."""
        best = {name: sizes.best for name, sizes in self.ranges.items()}
        known = {**best, **sizes, BATCH: batch}
        return tuple(size if isinstance(size, int) else known.get(size, 1) for size in self.shape)

    def explain_misfit(self, shape: Sequence[int]) -> str | None:
        """Which axis of a concrete shape is out of its range, in words; None: none is."""
        for axis, (name, size) in enumerate(zip(self.shape, shape, strict=True)):
            sizes = self.ranges.get(name) if isinstance(name, str) else None
            if sizes is not None and size not in sizes:
                return f"has {size} on axis {axis}, which may be {sizes.describe()}"
        return None

    @property
    def has_dynamic_batch(self) -> bool:
        """Whether the leading axis is the dynamic batch."""
        return bool(self.shape) and self.shape[0] == BATCH

    @property
    def batch_axis(self) -> int | None:
        """The one axis that is the dynamic batch; None: no axis is, or several are."""
        return self.shape.index(BATCH) if self.shape.count(BATCH) == 1 else None

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(self._describe_sizes())}:{self.dtype}"

    def _describe_sizes(self) -> list[str]:
        """As ``--input`` has them; the batch by its name."""
        texts = []
        for size in self.shape:
            sizes = self.ranges.get(size) if isinstance(size, str) else None
            texts.append(str(size) if sizes is None else str(sizes).replace(",", ":"))
        return texts


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file on disk (with external data beside it when large) and its signature."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int


@dataclass(frozen=True)
class Int8Weights:
    """What int8 costs the weights of a merged layer, beside the layers that it came from.

    Attributes:
        range_ratio_before: largest over median range of the output channels; of the branches, the
            worst.
        range_ratio_after: the same of the merged layer.
        sqnr_db_before: signal over error of the weights, one scale an output channel, where every
            layer is rounded to int8 by itself; None: no error at all.
        sqnr_db_after: the same where the merged layer is rounded.
    """

    range_ratio_before: float
    range_ratio_after: float
    sqnr_db_before: float | None
    sqnr_db_after: float | None

    @property
    def is_worse(self) -> bool:
        """Whether merging left outliers that int8 would suffer from."""
        if self.sqnr_db_before is None or self.sqnr_db_after is None:
            return False
        return self.sqnr_db_before - self.sqnr_db_after > SQNR_LOSS_DB


SQNR_LOSS_DB = 12.0
"""Two bits of the eight: a 1x1 branch costs one, an identity branch with outliers four."""


@dataclass(frozen=True)
class Fused:
    """One rewrite that was done, and its proof.

    Attributes:
        paths: the user's own paths of the modules that became one layer.
        kind: ``conv-bn``, ``linear-bn``, ``branches`` or ``sequence``.
        structure: what was found, such as ``bn(conv3x3(x)) + bn(x)``.
        parameters_before, parameters_after: stored numbers, statistics of norms included.
        macs_before, macs_after: for one sample at the captured size; norms and sums count one an
            element.
        error_float64: the merged layer beside the original, both in float64, on random input:
            largest difference over largest value.
        error_float32: the merged layer as stored, in the model's precision, beside the original in
            float64.
        noise_float32: the original in the model's precision beside itself in float64.
        weights: what int8 would cost its weights; None where only norms were folded.
    """

    paths: tuple[str, ...]
    kind: str
    structure: str
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    error_float64: float
    error_float32: float
    noise_float32: float
    weights: Int8Weights | None = None


@dataclass(frozen=True)
class Skip:
    """One rewrite that was possible by its shape and was not done, and why."""

    where: str
    what: str
    reason: str
