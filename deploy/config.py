"""The options of a build, from flags, ``[tool.deploy]`` and Python, in one frozen record."""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from export.artifacts import SizeRange
from export.errors import ConfigError
from export.tensorrt.options import (
    DEFAULT_BATCH,
    DEFAULT_TARGETS,
    BuildOptions,
    parse_sizes,
)

Observer = Literal[
    "auto",
    "minmax",
    "moving-average",
    "percentile-99.9",
    "percentile",
    "percentile-99.999",
    "entropy",
    "mse",
]
ImageMode = Literal["rgb", "gray"]
EffortName = Literal["quick", "normal", "thorough"]
TargetName = Literal["auto", "cuda"]
DeviceName = Literal["auto", "cpu", "cuda"]
Recovery = Literal["auto", "none", "bias", "rounding", "equalization", "fallback"]


@dataclass(frozen=True)
class ImageConfig:
    """How images of a folder become tensors: resize, centre crop, scale to 0..1, normalize.

    ``mode`` says whether they have three channels or one.
    """

    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    mode: ImageMode = "rgb"


@dataclass(frozen=True)
class BuildConfig:
    """Every option of ``deploy build``. Each field is a flag and a key of ``[tool.deploy]``.

    Two go by another name there: `inputs` is ``--input``, and ``--trust-all`` stands for
    ``trust=("*",)``.

    Attributes:
        inputs: ``[name:]SIZExSIZE...[:dtype]``, batch first; ``LEAST:BEST:MOST`` in place of a size
            makes that axis dynamic. Empty: taken from `data`.
        data: ``.npz``, ``.npy``, ``.pt``, a folder of images, or ``package.module:callable``.
        model: ``package.module:factory`` that makes the module a state_dict belongs to.
        trust: packages whose code the model file may run; ``("*",)`` is ``--trust-all``.
        static_batch: keep the batch size of `inputs` instead of a dynamic batch axis.
        observer: how the ranges of int8 are found; ``auto``: the best for each tensor, by the error
            that it causes in the layers behind it.
        classes: the output whose classes the labels are; None: the one that they fit best.
        max_drop: largest loss of accuracy, as a fraction, where there are labels.
        min_sqnr: smallest output SQNR in dB without labels; None: by precision.
        min_agreement: smallest share of equal top-1 answers on unlabelled data.
        threads: intra-op threads of every engine; 0: one for each usable core.
        measure_seconds: aim of the time spent on measuring latency.
        batch: batch size at which latency is measured.
        batches: ``least,best,most`` of the dynamic batch in engines of TensorRT; several: one
            optimization profile for each. ``--batch 1,8,32`` says this, and that latency is
            measured at the second.
        target: ``cuda`` makes all that engines of NVIDIA TensorRT need, also where there is no GPU
            to build them: ``deploy finish`` does that later. ``auto``: what this machine can build.
        device: where the baseline runs, eager on the ``cpu`` or on the GPU (``cuda``); ``auto``: on
            the GPU where torch can use one. What is exact is told by the CPU in either case.
        compute_capability: of the GPUs that TensorRT for RTX builds for.
        workspace_mb: scratch memory of a layer in TensorRT, in MiB; None: no limit.
        optimization_level: of TensorRT's builder, 0 to 5; None: its default.
        no_tf32: no TensorFloat-32 in float32 engines of TensorRT.
        refittable, stripped, version_compatible, hardware_compatible: of TensorRT's engines; see
            `export.tensorrt.BuildOptions`.
        plugin: libraries with layers of your own for TensorRT, by their paths; they ship in the
            bundle, and `deploy finish` loads them as well.
        effort: how long the search over precisions may take.
        recover: what is tried where int8 fails its gate: ``auto`` for all, ``none``, or some of
            ``bias``, ``rounding``, ``equalization``, ``fallback``.
        remeasure: build and measure even where nothing has changed since the bundle was built.
        no_cache: neither use nor keep what earlier builds found out.
        merge_always: merge branches wherever that is exact, even where it costs more.
        image_mode: channels of the images of a folder; None: gray where the model is known to take
            one channel, else rgb.
        output: folder of the bundle; None: ``NAME.deploy`` beside the model file.
    """

    inputs: tuple[str, ...] = ()
    data: str | None = None
    model: str | None = None
    trust: tuple[str, ...] = ()
    static_batch: bool = False
    calibration_samples: int = 256
    evaluation_samples: int = 1000
    seed: int = 0
    image_resize: int | None = None
    image_crop: int | None = None
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()
    image_mode: ImageMode | None = None
    observer: Observer = "auto"
    classes: str | None = None
    max_drop: float = 0.01
    min_sqnr: float | None = None
    min_agreement: float = 0.98
    threads: int = 0
    batch: int = 1
    batches: tuple[str, ...] = ()
    target: TargetName = "auto"
    device: DeviceName = "auto"
    compute_capability: tuple[str, ...] = DEFAULT_TARGETS
    workspace_mb: int | None = None
    optimization_level: int | None = None
    no_tf32: bool = False
    refittable: bool = False
    stripped: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    plugin: tuple[str, ...] = ()
    measure_seconds: float = 20.0
    opset: int = 20
    effort: EffortName = "normal"
    recover: tuple[Recovery, ...] = ("auto",)
    remeasure: bool = False
    no_cache: bool = False
    merge_always: bool = False
    golden_from_data: bool = False
    output: str | None = None

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(BuildConfig).items():
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if _convert(value, hint, option) != value and value == value:  # NaN is told below
                raise ConfigError(f"{option} must be a tuple, not {value!r}.")
        _check(self.threads >= 0, "threads", self.threads, "0 (all cores) or more")
        _check(self.batch >= 1, "batch", self.batch, "1 or more")
        _check(self.seed >= 0, "seed", self.seed, "0 or more")
        _check(0 <= self.max_drop < 1, "max_drop", self.max_drop, "a fraction, such as 0.01")
        _check(0 <= self.min_agreement <= 1, "min_agreement", self.min_agreement, "0 to 1")
        _check(
            0 < self.measure_seconds < math.inf,
            "measure_seconds",
            self.measure_seconds,
            "more than 0, and finite",
        )
        _check(
            self.min_sqnr is None or math.isfinite(self.min_sqnr),
            "min_sqnr",
            self.min_sqnr,
            "a number of dB, such as 20",
        )
        _check(self.calibration_samples >= 1, "calibration_samples", self.calibration_samples, "1+")
        _check(self.evaluation_samples >= 1, "evaluation_samples", self.evaluation_samples, "1+")
        _check(18 <= self.opset <= 25, "opset", self.opset, "18 to 25")
        _check(
            self.observer in typing.get_args(Observer),
            "observer",
            self.observer,
            " or ".join(typing.get_args(Observer)),
        )
        _check(
            self.effort in typing.get_args(EffortName),
            "effort",
            self.effort,
            " or ".join(typing.get_args(EffortName)),
        )
        _check(
            self.target in typing.get_args(TargetName),
            "target",
            self.target,
            " or ".join(typing.get_args(TargetName)),
        )
        _check(
            self.device in typing.get_args(DeviceName),
            "device",
            self.device,
            " or ".join(typing.get_args(DeviceName)),
        )
        self.engine_options()
        for step in self.recover:
            names = typing.get_args(Recovery)
            _check(step in names, "recover", step, " or ".join(names))
        _check(
            self.image_mode in (None, *typing.get_args(ImageMode)),
            "image_mode",
            self.image_mode,
            " or ".join(typing.get_args(ImageMode)),
        )

    def engine_options(self) -> BuildOptions:
        """What the builders of TensorRT are told, without the libraries of `plugin`.

        Raises:
            ConfigError: a value that they have not.
        """
        workspace = self.workspace_mb
        usual = DEFAULT_BATCH
        if self.batch > usual.most:  # what is measured must fit
            usual = SizeRange(usual.least, self.batch, self.batch)
        return BuildOptions(
            batch=tuple(map(parse_sizes, self.batches)) or (usual,),
            targets=self.compute_capability,
            workspace=None if workspace is None else workspace * 2**20,
            level=self.optimization_level,
            tf32=not self.no_tf32,
            refittable=self.refittable,
            stripped=self.stripped,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
        )

    def images_for(self, shapes: Sequence[Sequence[int | str]]) -> ImageConfig:
        """The image options as one record, for a model that takes inputs of `shapes`.

        A lone input of one channel, [N, 1, H, W], makes the images gray where `image_mode` does not
        say otherwise. No shapes: they are not known yet.
        """
        one_channel = len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1] == 1
        mode = self.image_mode or ("gray" if one_channel else "rgb")
        return ImageConfig(
            self.image_resize, self.image_crop, self.image_mean, self.image_std, mode
        )


def make_config(
    values: Mapping[str, Any], *, where: str, base: BuildConfig | None = None
) -> BuildConfig:
    """A config from plain values under the names of the flags, with dashes or underscores.

    Args:
        values: by name; ``input`` and ``inputs`` are the same, ``trust-all`` is ``trust = ["*"]``.
        where: the file or the flags, for messages.
        base: what is not in `values` is taken from it; None: the defaults.

    Raises:
        ConfigError: a key that is not known (the message lists those that are) or is there twice,
            or a value of the wrong type.
    """
    hints = {**typing.get_type_hints(BuildConfig), _TRUST_ALL: bool}
    cleaned: dict[str, Any] = {}
    for key, value in _split_batch(values, where).items():
        name = _FIELDS.get(key.replace("-", "_"), key.replace("-", "_"))
        if name not in hints:
            close = difflib.get_close_matches(key.replace("_", "-"), OPTIONS, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            known = ", ".join(OPTIONS)
            raise ConfigError(f"{where}: unknown option {key!r}. {hint}Known: {known}.")
        if name in cleaned:
            raise ConfigError(f"{where}: {key!r} is there twice. Keep one of them.")
        cleaned[name] = _convert(value, hints[name], f"{where}: {key}")
    if cleaned.pop(_TRUST_ALL, False):
        cleaned["trust"] = ("*",)
    return dataclasses.replace(base or BuildConfig(), **cleaned)


def _split_batch(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``batch``, where it is text: one size, or ``least,best,most``, which says `batches` too."""
    split = dict(values)
    batch = split.get("batch")
    if not isinstance(batch, str):
        return split
    if batch.lstrip("-").isdigit():
        return {**split, "batch": int(batch)}
    try:
        sizes = parse_sizes(batch)
    except ConfigError as error:
        raise ConfigError(f"{where}: batch: {error}") from error
    split["batch"] = sizes.best
    split["batches"] = (batch, *_listed(split.get("batches", ())))
    return split


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def read_project_options(directory: Path) -> dict[str, Any]:
    """The ``[tool.deploy]`` table of the ``pyproject.toml`` in `directory`; empty without one.

    Only the working directory is asked, never the folder of the model: a file that travels with a
    model must not be able to extend the trust in it.

    Raises:
        ConfigError: the file cannot be read or is not valid TOML, or ``tool.deploy`` is not a
            table.
    """
    path = directory / "pyproject.toml"
    if not path.is_file():
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. Mend it or remove it.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}. Mend it or remove it.") from error
    tools = content.get("tool", {})
    table = tools.get("deploy", {}) if isinstance(tools, dict) else tools
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.deploy must be a table: write [tool.deploy].")
    return {key: value for key, value in table.items() if key != "serve"}  # `deploy serve` reads it


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, or a ConfigError that says what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            value = [value]
        return tuple(_convert(item, arguments[0], where) for item in value)
    if origin is Literal:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {hint.__name__}, not {value!r}.")
    return value


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        option = name.replace("_", "-")
        raise ConfigError(f"--{option} {value}: must be {expected}.")


CONFIG_FIELDS = tuple(field.name for field in dataclasses.fields(BuildConfig))
_FIELDS = {"input": "inputs"}
_TRUST_ALL = "trust_all"
OPTIONS = tuple(
    sorted(
        name.replace("_", "-") for name in ({*CONFIG_FIELDS, _TRUST_ALL} - {"inputs"}) | {"input"}
    )
)
"""The names of all options as flags and ``[tool.deploy]`` have them."""
