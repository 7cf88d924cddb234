"""The options of a build in one frozen record, each checked."""

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deploy.option_values import check_choice, check_option, convert_value
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

    ``mode`` says whether they have three channels or one. Where `uint8`, engines scale and
    normalize themselves: an image stays [H, W, C] with its pixels as they are.
    """

    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    mode: ImageMode = "rgb"
    uint8: bool = False


@dataclass(frozen=True)
class BuildConfig:
    """Every option of ``deploy build``. Each field is a flag and a key of ``[tool.deploy]``.

    Two go by another name there: `inputs` is ``--input``, and ``--trust-all`` stands for
    ``trust=("*",)``.

    Attributes:
        inputs: ``[name:]SIZExSIZE...[:dtype]``, batch first; ``LEAST:BEST:MOST`` in place of a size
            makes that axis dynamic. Empty: taken from `data`.
        image_input: ``[NAME:]mean=M,...:std=S,...[:scale=255]``: engines take uint8 images of
            [N, H, W, C] at this input, and give the model ``(image / scale - mean) / std`` as
            [N, C, H, W], which `inputs` describes.
        data: ``.npz``, ``.npy``, ``.pt``, a folder of images, or ``package.module:callable``.
        model: ``package.module:factory`` that makes the module a state_dict belongs to.
        trust: packages whose code the model file may run; ``("*",)`` is ``--trust-all``.
        calibration_samples, evaluation_samples: how many of the data int8 is calibrated on, and how
            many engines are judged on, at most.
        seed: of the split of the data, of orders and of synthetic inputs.
        static_batch: keep the batch size of `inputs` instead of a dynamic batch axis.
        observer: how the ranges of int8 are found; ``auto``: the best for each tensor, by the error
            that it causes in the layers behind it.
        classes: the output whose classes the labels are, ``NAME`` or, with the axis on which they
            lie, ``NAME:AXIS``; None: the one that they fit best.
        max_drop: largest loss of accuracy, or of R², as a fraction, where there are labels; and of
            the mean F1 of their classes, where a sample has many.
        min_sqnr: smallest output SQNR in dB without labels; None: by precision.
        min_agreement: smallest share of equal top-1 answers on unlabelled data.
        threads: intra-op threads of every engine; 0: one for each usable core.
        measure_seconds: aim of the time spent on measuring latency.
        batch: batch size at which latency is measured.
        batches: ``least,best,most`` of the dynamic batch in engines of TensorRT; several: one
            optimization profile for each. ``--batch 1,8,32`` says this, and that latency is
            measured at the second.
        target: ``cuda`` makes all that engines of NVIDIA TensorRT, and of ONNX Runtime on the GPU,
            need, also where there is no GPU to run them: ``deploy finish`` does that later.
            ``auto``: what this machine can build.
        device: where the baseline runs, eager on the ``cpu`` or on the GPU (``cuda``); ``auto``: on
            the GPU where torch can use one. What is exact is told by the CPU in either case. With
            ``cpu``, ONNX Runtime is not tried on the GPU either.
        compute_capability: of the GPUs that TensorRT for RTX builds for.
        workspace_mb: scratch memory of a layer in TensorRT, in MiB; None: no limit.
        optimization_level: of TensorRT's builder, 0 to 5; None: its default.
        no_tf32: no TensorFloat-32 in float32 engines for GPUs.
        refittable, stripped, version_compatible, hardware_compatible: of TensorRT's engines; see
            `export.tensorrt.BuildOptions`.
        plugin: libraries with layers of your own for TensorRT, by their paths; they ship in the
            bundle, and `deploy finish` loads them as well.
        opset: of the ONNX model.
        effort: how long the search over precisions may take.
        recover: what is tried where int8 fails its gate: ``auto`` for all, ``none``, or some of
            ``bias``, ``rounding``, ``equalization``, ``fallback``.
        remeasure: build and measure even where nothing has changed since the bundle was built.
        no_cache: neither use nor keep what earlier builds found out, nor keep the bundle that
            stands.
        golden_from_data: record real samples as golden inputs; else synthetic ones.
        merge_always: merge branches wherever that is exact, even where it costs more.
        image_resize, image_crop: pixels of the shorter side of a folder's images, and of the square
            that is taken from their centre.
        image_mean, image_std: what they are normalized by, in units of pixels between 0 and 1; one
            number, or one a channel.
        image_mode: channels of the images of a folder; None: gray where the model is known to take
            one channel, else rgb.
        output: folder of the bundle; None: ``NAME.deploy`` beside the model file.
    """

    inputs: tuple[str, ...] = ()
    image_input: tuple[str, ...] = ()
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
            if convert_value(value, hint, option) != value and value == value:  # NaN is told below
                raise ConfigError(f"{option} must be a tuple, not {value!r}.")
        check_option(self.threads >= 0, "threads", self.threads, "0 (all cores) or more")
        check_option(self.batch >= 1, "batch", self.batch, "1 or more")
        check_option(self.seed >= 0, "seed", self.seed, "0 or more")
        check_option(0 <= self.max_drop < 1, "max_drop", self.max_drop, "a fraction, such as 0.01")
        check_option(0 <= self.min_agreement <= 1, "min_agreement", self.min_agreement, "0 to 1")
        check_option(
            0 < self.measure_seconds < math.inf,
            "measure_seconds",
            self.measure_seconds,
            "more than 0, and finite",
        )
        check_option(
            self.min_sqnr is None or math.isfinite(self.min_sqnr),
            "min_sqnr",
            self.min_sqnr,
            "a number of dB, such as 20",
        )
        for name in ("calibration_samples", "evaluation_samples"):
            check_option(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check_option(18 <= self.opset <= 25, "opset", self.opset, "18 to 25")
        check_choice("observer", self.observer, Observer)
        check_choice("effort", self.effort, EffortName)
        check_choice("target", self.target, TargetName)
        check_choice("device", self.device, DeviceName)
        if self.image_mode is not None:
            check_choice("image_mode", self.image_mode, ImageMode)
        for step in self.recover:
            check_choice("recover", step, Recovery)
        self.engine_options()

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

    def images_for(
        self, shapes: Sequence[Sequence[int | str]], *, uint8: bool = False
    ) -> ImageConfig:
        """The image options as one record, for a model that takes inputs of `shapes`.

        A lone input of one channel, [N, 1, H, W], makes the images gray where `image_mode` does not
        say otherwise. No shapes: they are not known yet. `uint8`: engines take them as they are.

        Raises:
            ConfigError: `uint8`, and a mean or deviation of folders of images was given as well.
        """
        for name in ("image_mean", "image_std"):
            check_option(
                not (uint8 and getattr(self, name)),
                name,
                getattr(self, name),
                "left out: engines normalize uint8 images by themselves, as --image-input said",
            )
        one_channel = len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1] == 1
        mode = self.image_mode or ("gray" if one_channel else "rgb")
        return ImageConfig(
            self.image_resize, self.image_crop, self.image_mean, self.image_std, mode, uint8
        )
