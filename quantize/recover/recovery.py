"""Float model, ranges and calibration batches → better weights and biases for the int8 model.

Layers are taken in groups whose moments fit into memory together; the batches run once a group.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from export.artifacts import OnnxModel, Skip
from export.errors import ConfigError, QuantizeError
from export.onnx.execute import ExposedModel
from export.onnx.files import read_model
from export.onnx.graph import GraphIndex
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.calibration.calibrate import Ranges, batch_size
from quantize.int8.adjustments import Adjustments, LayerAdjustment
from quantize.int8.codes import ranges_by_tensor, smallest_scales, weight_scales
from quantize.placement.pooling import use_global_pooling
from quantize.recover.bias_correction import mean_output_error
from quantize.recover.moments import PatchMoments
from quantize.recover.outliers import clip_scales, measure_outliers
from quantize.recover.patches import gather_patches
from quantize.recover.recoverable import RecoverableLayer, find_layers
from quantize.recover.rounding import output_error, round_adaptively
from quantize.scheme import QuantScheme

Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]
"""Gives the calibration batches anew at every call, an array for every graph input."""


@dataclass(frozen=True)
class RecoverySettings:
    """Which remedies are used, and how much data and memory they take.

    Attributes:
        bias_correction: take the mean error off the biases.
        rounding: round weights up or down by the layer's output error.
        clipping: search weight scales that cut outliers off.
        weight_bits: codes use that many of the eight bits; 2 to 8.
        samples: calibration samples that are run, at least; the batch that reaches it is the last.
        positions: patches taken of one sample of one layer, at most.
        memory_bytes: of the second moments that are kept at once; one layer's always are.
        threads: of ONNX Runtime; 0 lets it choose.
    """

    bias_correction: bool = True
    rounding: bool = True
    clipping: bool = True
    weight_bits: int = 8
    samples: int = 128
    positions: int = 64
    memory_bytes: int = 2**29
    threads: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.weight_bits <= 8:
            raise ConfigError(f"weight_bits {self.weight_bits} is not 2 to 8.")
        if min(self.samples, self.positions) < 1:
            raise ConfigError("samples and positions of the recovery must be at least 1.")

    @property
    def levels(self) -> int:
        """The largest code."""
        return int(2 ** (self.weight_bits - 1) - 1)

    @property
    def needs_second(self) -> bool:
        """Whether means alone will not do."""
        return self.rounding or self.clipping


BIASES_ALONE = RecoverySettings(rounding=False, clipping=False, samples=64)
"""What costs no time at inference and little before it; for every int8 model made from data."""


def recover(
    model: OnnxModel,
    ranges: Ranges,
    scheme: QuantScheme,
    batches: Batches,
    settings: RecoverySettings | None = None,
    *,
    progress: ProgressCallback = ignore_progress,
) -> Adjustments:
    """Choose codes, scales and biases for every int8 layer of `model`.

    Each layer is looked at alone, on the float model's own activations, so the choice for one does
    not depend on the others and holds whichever of them stay float.

    Args:
        model: the float model; its file is read, never written.
        ranges: from `calibrate` on the same model.
        scheme: the target's.
        batches: called once for each group of layers; see `RecoverySettings.memory_bytes`.
        settings: None for the defaults, all remedies at 8 bits.
        progress: called after each layer with ``Progress("recover", done, total, label)``.

    Returns:
        What to pass to `quantize_int8` with the same model, ranges and scheme. ConvTranspose is
        left to nearest rounding, and MatMul, which has no bias, without correction.

    Raises:
        QuantizeError: a range is missing, weights are not finite, or there are no batches.
        EngineError: ONNX Runtime refuses the model or a batch.
    """
    settings = settings or RecoverySettings()
    proto = read_model(model.path)
    twins = use_global_pooling(proto)
    known = ranges_by_tensor(ranges, twins, scheme)
    layers, skipped = find_layers(GraphIndex(proto), scheme, known)
    chosen: dict[str, LayerAdjustment] = {}
    done = 0
    for group in _split(layers, settings):
        moments = _observe(model, proto, group, batches, settings)
        for layer in group:
            seen = moments.pop(layer.name)
            done += 1
            if seen.count:
                chosen[layer.name] = _adjust(layer, seen, scheme, settings)
            else:
                skipped.append(Skip(layer.label, "recover", "none of the samples reached it"))
            progress(Progress("recover", done, len(layers), layer.label))
    return Adjustments(chosen, tuple(skipped))


def _split(
    layers: list[RecoverableLayer], settings: RecoverySettings
) -> Iterator[list[RecoverableLayer]]:
    """Neighbours whose second moments fit into memory together; all of them where none are kept."""
    group: list[RecoverableLayer] = []
    for layer in layers:
        size = sum(other.bytes for other in (*group, layer))
        if group and settings.needs_second and size > settings.memory_bytes:
            yield group
            group = []
        group.append(layer)
    if group:
        yield group


def _observe(
    model: OnnxModel,
    proto: onnx.ModelProto,
    layers: list[RecoverableLayer],
    batches: Batches,
    settings: RecoverySettings,
) -> dict[str, PatchMoments]:
    """Run the batches and accumulate the moments of `layers`, by name."""
    moments = {
        layer.name: PatchMoments(layer.layout, second=settings.needs_second) for layer in layers
    }
    sources = tuple(dict.fromkeys(layer.source for layer in layers))
    done = 0
    with ExposedModel(proto, sources, threads=settings.threads) as exposed:
        for number, batch in enumerate(batches()):
            tensors = exposed(batch)
            for layer in layers:
                patches = gather_patches(
                    tensors[layer.source],
                    layer.layout,
                    settings.positions,
                    np.random.default_rng(number),
                )
                rounded = layer.codes.round(patches)  # padding is a code as well
                moments[layer.name].update(patches, rounded)
            done += batch_size(model, batch)
            if done >= settings.samples:
                break
    if not done:
        raise QuantizeError("No calibration batches to recover with; pass at least one.")
    for layer in layers:
        seen = moments[layer.name]
        if seen.count and not np.isfinite(seen.exact_mean).all():
            raise QuantizeError(
                f"Tensor {layer.source!r} is NaN or infinite in a calibration batch; calibrate on "
                "the same batches first, which names the sample."
            )
    return moments


def _adjust(
    layer: RecoverableLayer, moments: PatchMoments, scheme: QuantScheme, settings: RecoverySettings
) -> LayerAdjustment:
    """Scales, then codes for these scales, then the bias for these codes."""
    layout, levels = layer.layout, min(settings.levels, scheme.weight_levels)
    corrects = settings.bias_correction and layer.takes_bias
    matrix = layout.to_matrix(layer.weight).astype(np.float32)
    scales = nearest_scales = _plain_scales(layer, scheme, levels)
    second = moments.take_second(centred=corrects) if settings.needs_second else None
    if second is not None and settings.clipping:
        power = np.einsum("gkk->gk", second)
        scales = clip_scales(matrix, scales, power, levels, per_channel=scheme.per_channel_weights)
        scales = np.maximum(scales, _least_scales(layer, scheme)).astype(np.float32)
    codes = _nearest(matrix, scales, levels)
    if second is not None and settings.rounding:
        codes = round_adaptively(matrix / scales[..., None], second, levels)
    bias = None
    if corrects:
        error = mean_output_error(matrix, codes * scales[..., None], moments)
        bias = ((0 if layer.bias is None else layer.bias) - error).astype(np.float32)
    chosen = settings.needs_second or levels < scheme.weight_levels
    nearest = _nearest(matrix, nearest_scales, levels)
    return LayerAdjustment(
        layer.label,
        layout.to_weight(codes).astype(np.int8) if chosen else None,
        scales.reshape(-1) if chosen else None,
        bias,
        _measure_sqnr(matrix, nearest * nearest_scales[..., None], second),
        _measure_sqnr(matrix, codes * scales[..., None], second),
        measure_outliers(layer.weight, nearest_scales.reshape(-1), layout),
    )


def _plain_scales(layer: RecoverableLayer, scheme: QuantScheme, levels: int) -> np.ndarray:
    """[groups, rows] float32: those that cut nothing off, as `quantize_int8` takes them."""
    scales = weight_scales(
        layer.weight,
        layer.layout.axis,
        layer.bias if scheme.integer_bias else None,
        layer.codes.scale,
        per_channel=scheme.per_channel_weights,
    )
    wide = (scales * np.float32(127 / levels)).astype(np.float32)
    return wide.reshape(layer.layout.groups, layer.layout.rows)


def _least_scales(layer: RecoverableLayer, scheme: QuantScheme) -> np.ndarray:
    """[groups, rows]: twice those at which the int32 bias overflows, as the bias is to move yet."""
    if layer.bias is None or not scheme.integer_bias:
        return np.zeros((layer.layout.groups, layer.layout.rows))
    least = 2 * smallest_scales(layer.bias, layer.codes.scale)
    return least.reshape(layer.layout.groups, layer.layout.rows)


def _nearest(matrix: np.ndarray, scales: np.ndarray, levels: int) -> np.ndarray:
    result: np.ndarray = np.clip(np.rint(matrix / scales[..., None]), -levels, levels)
    return result


def _measure_sqnr(
    exact: np.ndarray, quantized: np.ndarray, second: np.ndarray | None
) -> float | None:
    """Of the layer's output, dB; None where moments or errors are missing."""
    if second is None:
        return None
    signal = float(output_error(exact, second).sum())
    noise = float(output_error(quantized - exact, second).sum())
    return 10 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else None
