"""How an engine is built: the shapes it takes, and what the builder may do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.artifacts import BATCH, SizeRange, TensorSpec
from export.errors import ConfigError
from export.tensorrt.plugins import PluginLibrary
from export.tensorrt.products import Product

DEFAULT_TARGETS = ("SM80", "SM89", "SM120")
"""Ampere (A100), Ada (L4, L40S, RTX 40), Blackwell (RTX 50)."""
RTX_TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
"""All that TensorRT for RTX 1.7 has; a test holds this against the library."""
LEVELS = range(6)
"""Optimization levels of the builder, by TensorRT's documentation; 3 is its default."""


@dataclass(frozen=True)
class ShapeProfile:
    """One optimization profile: for each dynamic input its least, best and greatest shape.

    Attributes:
        shapes: by input name; the engine is tuned for the second of the three.
    """

    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "ShapeProfile":
        """From plain values, as `dataclasses.asdict` gives them.

        Raises:
            KeyError, TypeError, ValueError: it is not of that form.
        """
        shapes = {}
        for name, three in plain["shapes"].items():
            least, best, most = (tuple(int(size) for size in shape) for shape in three)
            shapes[str(name)] = (least, best, most)
        return cls(shapes)

    def explain_misfit(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Why inputs of `shapes` do not fit into this profile; None where they do."""
        for name, (least, _, most) in self.shapes.items():
            shape = shapes.get(name, least)
            fits = len(shape) == len(least) and all(
                low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
            )
            if not fits:
                return (
                    f"input {name!r} has shape {list(shape)}, and the engine was built for "
                    f"{list(least)} to {list(most)}"
                )
        return None


DEFAULT_BATCH = SizeRange(1, 8, 16)


@dataclass(frozen=True)
class BuildOptions:
    """What the builder is told. Precision is not among it: that is in the graph.

    Attributes:
        batch: sizes of the dynamic batch axis; several: one optimization profile for each.
        axes: sizes of other dynamic axes, by the names that the inputs' signatures give them, the
            same in every profile. Those whose ranges stand in the signatures need none.
        targets: compute capabilities by TensorRT's names; for RTX alone, since NVIDIA TensorRT
            builds for the GPU it runs on.
        workspace: bytes that a layer may use for scratch; None: as much as there is.
        level: 0 (fastest build) to 5 (fastest engine); None: TensorRT's own default.
        tf32: float32 products may use TensorFloat-32 on the GPU.
        refittable: weights can be replaced later.
        stripped: the file holds no weights; they come from the ONNX file by `refit_engine`.
        version_compatible: later versions of TensorRT may run it.
        hardware_compatible: later GPUs may run it (NVIDIA TensorRT; ``AMPERE_PLUS``).
        timing_cache: keep the times of kernels beside the engine and use them again. NVIDIA
            TensorRT alone: RTX builds measure nothing.
        plugins: libraries with layers of the user's own; they are copied beside the engine.
    """

    batch: tuple[SizeRange, ...] = (DEFAULT_BATCH,)
    axes: Mapping[str, SizeRange] | None = None
    targets: tuple[str, ...] = DEFAULT_TARGETS
    workspace: int | None = None
    level: int | None = None
    tf32: bool = True
    refittable: bool = False
    stripped: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: bool = True
    plugins: tuple[PluginLibrary, ...] = ()

    def __post_init__(self) -> None:
        if not self.batch:
            raise ConfigError("At least one range of batch sizes is needed, such as 1,8,16.")
        if self.level is not None and self.level not in LEVELS:
            raise ConfigError(f"Optimization level {self.level}: choose 0 to {LEVELS[-1]}.")
        if self.workspace is not None and self.workspace < 1:
            raise ConfigError(f"A workspace of {self.workspace} bytes: it must be 1 or more.")
        if not self.targets:
            raise ConfigError("At least one compute capability is needed, such as SM89.")

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "BuildOptions":
        """From plain values, as `dataclasses.asdict` gives them.

        Raises:
            KeyError, TypeError, ValueError: it is not of that form; ConfigError: a value is not.
        """
        values = dict(plain)
        values["batch"] = tuple(SizeRange(**sizes) for sizes in values["batch"])
        if values.get("axes") is not None:
            values["axes"] = {str(k): SizeRange(**sizes) for k, sizes in values["axes"].items()}
        plugins = values.pop("plugins", ())
        values["plugins"] = tuple(PluginLibrary.from_dict(plugin) for plugin in plugins)
        values["targets"] = tuple(str(target) for target in values["targets"])
        return cls(**values)

    def check(self, product: Product) -> None:
        """Refuse what `product` has not.

        Raises:
            ConfigError: an option is the other product's alone.
        """
        if product.ahead_of_time and self.hardware_compatible:
            raise ConfigError(
                f"{product.title} has no hardware-compatible engines; name all compute "
                "capabilities that it is to run on instead."
            )


def parse_sizes(text: str) -> SizeRange:
    """``1,8,16``, or ``8`` for a size that never differs.

    Raises:
        ConfigError: it is neither.
    """
    parts = text.split(",")
    try:
        sizes = [int(part) for part in parts]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3:
        raise ConfigError(f"{text!r} is no range of sizes: write least,best,most, such as 1,8,16.")
    return SizeRange(*sizes)


def make_profiles(specs: tuple[TensorSpec, ...], options: BuildOptions) -> tuple[ShapeProfile, ...]:
    """One profile for each range of batch sizes; none where every input is static.

    Other dynamic axes have the ranges of `options`, else those of the specs.

    Raises:
        ConfigError: an input has a dynamic axis other than the batch that `options` has no sizes
            for, or `options` names an axis that there is not.
    """
    known = {size for spec in specs for size in spec.shape if isinstance(size, str)}
    for name in options.axes or {}:
        if name not in known - {BATCH}:
            others = ", ".join(sorted(known - {BATCH})) or "none"
            raise ConfigError(f"No input has a dynamic axis {name!r}; those there are: {others}.")
    dynamic = [spec for spec in specs if any(isinstance(size, str) for size in spec.shape)]
    if not dynamic:
        return ()
    axes = {name: sizes for spec in specs for name, sizes in spec.ranges.items()}
    axes.update(options.axes or {})
    batches = options.batch if BATCH in known else options.batch[:1]
    return tuple(
        ShapeProfile({spec.name: _shapes(spec, {**axes, BATCH: batch}) for spec in dynamic})
        for batch in batches
    )


def _shapes(
    spec: TensorSpec, sizes: Mapping[str, SizeRange]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    for size in spec.shape:
        if isinstance(size, str) and size not in sizes:
            raise ConfigError(
                f"Input {spec} has a dynamic axis {size!r}, and TensorRT needs its sizes: give "
                "LEAST:BEST:MOST in its place in --input."
            )
    ranges = [
        sizes[size] if isinstance(size, str) else SizeRange(size, size, size) for size in spec.shape
    ]
    return (
        tuple(r.least for r in ranges),
        tuple(r.best for r in ranges),
        tuple(r.most for r in ranges),
    )
