"""The ONNX graphs that engines open or are built from, each made once for all that ask for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.candidates.schemes import choose_levels, choose_scheme
from deploy.engines.base import Feeds
from export.artifacts import OnnxModel
from export.errors import DeployError
from quantize.calibration.calibrate import Ranges
from quantize.half.bf16 import convert_bf16
from quantize.half.fp16 import Fp16Options, convert_fp16
from quantize.half.losses import Losses, measure_rounding
from quantize.int8.adjustments import Adjustments
from quantize.int8.insertion import quantize_int8
from quantize.transformers.dynamic import quantize_dynamic
from quantize.transformers.weight_only import WEIGHT_PRESETS, quantize_weights


def correct_nothing(target: str) -> None:
    """For int8 models whose biases stay as they are."""


@dataclass(frozen=True)
class GraphSources:
    """What graphs are made from.

    Attributes:
        model: the fused float32 model, inside `stage`.
        ranges: the calibration, or why there is none.
        stage: the staged bundle; files that an engine opens or is built from land here.
        scratch: for what nobody opens later.
        samples: a few batches, to measure on what single nodes lose in 16 bits.
        corrections: of the biases of the int8 model for a key of `PRESETS`.
        threads: of ONNX Runtime where it measures; 0 lets it choose.
    """

    model: OnnxModel
    ranges: Ranges | DeployError
    stage: Path
    scratch: Path
    samples: tuple[Feeds, ...] = ()
    corrections: Callable[[str], Adjustments | None] = correct_nothing
    threads: int = 0
    _losses: dict[str, Losses] = field(default_factory=dict)

    def calibrated(self) -> Ranges:
        if isinstance(self.ranges, DeployError):
            raise self.ranges
        return self.ranges

    def quantize(self, target: str, path: Path) -> OnnxModel:
        """The int8 model for a key of `PRESETS`."""
        return quantize_int8(
            self.model,
            self.calibrated(),
            choose_scheme(target),
            path,
            adjustments=self.corrections(target),
        ).model

    def losses(self, half: str) -> Losses | None:
        """What single nodes lose in a 16-bit float; None where nothing was given to tell it by."""
        if not self.samples:
            return None
        if half not in self._losses:  # two graphs ask for those of fp16
            self._losses[half] = measure_rounding(
                self.model, self.samples, half=half, threads=self.threads
            )
        return self._losses[half]


def _int8_for(target: str) -> Callable[[GraphSources], OnnxModel]:
    """The maker of the Q/DQ file that `target` opens as it is."""

    def make(sources: GraphSources) -> OnnxModel:
        path = sources.stage / f"{target}-int8" / "model.onnx"
        path.parent.mkdir()
        return sources.quantize(target, path)

    return make


def _tensorrt_fp16(sources: GraphSources) -> OnnxModel:
    ranges = None if isinstance(sources.ranges, DeployError) else sources.ranges
    options = Fp16Options(sources.losses("fp16"))
    path = sources.stage / "tensorrt-fp16" / "model.onnx"
    return convert_fp16(sources.model, path, ranges=ranges, options=options).model


def _tensorrt_int8(sources: GraphSources) -> OnnxModel:
    """int8 by Q/DQ, and the float remainder in fp16: fp32 there would cost more than int8 gains."""
    ranges, stage = sources.calibrated(), sources.stage
    quantized = sources.quantize("tensorrt", sources.scratch / "int8-fp32.onnx")
    options, path = Fp16Options(sources.losses("fp16")), stage / "tensorrt-int8" / "model.onnx"
    return convert_fp16(quantized, path, ranges=ranges, options=options).model


def _tensorrt_bf16(sources: GraphSources) -> OnnxModel:
    losses = sources.losses("bf16")
    path = sources.stage / "tensorrt-bf16" / "model.onnx"
    return convert_bf16(sources.model, path, losses=losses).model


def _dynamic(sources: GraphSources) -> OnnxModel:
    path = sources.stage / "onnx-int8-dynamic" / "model.onnx"
    return quantize_dynamic(sources.model, path, levels=choose_levels()).model


def _weights_in(precision: str) -> Callable[[GraphSources], OnnxModel]:
    """The maker of the file whose weights alone are in `precision`."""

    def make(sources: GraphSources) -> OnnxModel:
        path = sources.stage / f"onnx-{precision}-weights" / "model.onnx"
        return quantize_weights(sources.model, WEIGHT_PRESETS[precision], path).model

    return make


GRAPHS: Mapping[str, Callable[[GraphSources], OnnxModel]] = {
    "fp32": lambda sources: sources.model,
    "int8-onnxruntime": _int8_for("onnxruntime"),
    "int8-openvino": _int8_for("openvino"),
    "int8-dynamic": _dynamic,
    "int8-weights": _weights_in("int8"),
    "int4-weights": _weights_in("int4"),
    "fp16-tensorrt": _tensorrt_fp16,
    "bf16-tensorrt": _tensorrt_bf16,
    "int8-tensorrt": _tensorrt_int8,
}


def make_graph(name: str, sources: GraphSources) -> OnnxModel | DeployError:
    """The graph `name` of `GRAPHS`, or why it cannot be made."""
    try:
        return GRAPHS[name](sources)
    except DeployError as error:
        return error
