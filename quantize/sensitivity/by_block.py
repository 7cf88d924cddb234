"""What int8 costs, block by block: one in int8, the rest in float, held against all in float.

No engines and no clocks: the graphs run in ONNX Runtime on the CPU, in its real int8 kernels.
Errors of the blocks are nearly independent, so the noise of several is nearly the sum of theirs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.artifacts import OnnxModel
from export.onnx.cost import read_path
from export.onnx.execute import ExposedModel
from export.onnx.files import read_model
from export.onnx.graph import GraphIndex, name_node
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.calibration.calibrate import Ranges
from quantize.int8.adjustments import Adjustments
from quantize.int8.insertion import quantize_int8
from quantize.placement.pooling import use_global_pooling
from quantize.placement.walk import place
from quantize.scheme import QuantScheme
from quantize.sensitivity.blocks import Block, group_blocks

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BlockSensitivity:
    """What one block in int8 does to the outputs.

    Attributes:
        noise: power of the error over power of the signal, at the output that suffers most.
        sqnr_db: the same in dB; infinite where the block changes nothing.
    """

    block: Block
    noise: float

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise."""
        return math.inf if self.noise == 0 else -10 * math.log10(self.noise)


@dataclass(frozen=True)
class Quantizer:
    """How one float model becomes int8; what varies is which layers stay float.

    Attributes:
        adjustments: weights and biases chosen by recovery; None: plain rounding.
    """

    model: OnnxModel
    ranges: Ranges
    scheme: QuantScheme
    adjustments: Adjustments | None = None

    def write(self, path: Path, *, keep_float: frozenset[str] = frozenset()) -> OnnxModel:
        """The int8 model with the nodes of those names kept float.

        Raises:
            NothingToQuantizeError: that keeps them all.
        """
        scheme = replace(self.scheme, keep_float=self.scheme.keep_float | keep_float)
        return quantize_int8(
            self.model, self.ranges, scheme, path, adjustments=self.adjustments
        ).model

    def blocks(self, limit: int) -> tuple[Block, ...]:
        """At most `limit` blocks of the layers that this quantizes."""
        proto = read_model(self.model.path, weights=False)
        use_global_pooling(proto)
        graph = GraphIndex(proto)
        nodes = [graph.nodes[use.node] for use in place(graph, self.scheme).weights]
        return group_blocks(((name_node(node), read_path(node)) for node in nodes), limit)


def measure_sensitivity(
    quantizer: Quantizer,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    scratch: Path,
    *,
    threads: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> tuple[BlockSensitivity, ...]:
    """The sensitivity of every block, in their order.

    Args:
        blocks: from `Quantizer.blocks`; together they are all layers in int8.
        batches: samples to run; kept in memory, so a few.
        scratch: a folder for one model file at a time.

    Raises:
        EngineError: ONNX Runtime refuses a model or a batch.
    """
    every = frozenset(name for block in blocks for name in block.nodes)
    reference = _run(quantizer.model, batches, threads)
    found = []
    path = scratch / "sensitivity.onnx"
    for index, block in enumerate(blocks):
        progress(Progress("sensitivity", index, len(blocks), block.name))
        model = quantizer.write(path, keep_float=every - frozenset(block.nodes))
        found.append(BlockSensitivity(block, _noise(reference, _run(model, batches, threads))))
    path.unlink(missing_ok=True)
    progress(Progress("sensitivity", len(blocks), len(blocks)))
    return tuple(found)


def _run(model: OnnxModel, batches: Sequence[Batch], threads: int) -> dict[str, list[np.ndarray]]:
    names = [spec.name for spec in model.outputs]
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with ExposedModel(model.path, names, threads=threads) as exposed:
        for batch in batches:
            for name, value in exposed(batch).items():
                outputs[name].append(value)
    return outputs


def _noise(
    reference: Mapping[str, list[np.ndarray]], ours: Mapping[str, list[np.ndarray]]
) -> float:
    """Error over signal of the output that suffers most; integers are not compared.

    Infinities that stand in the same places, as those of a mask do, are no error; in others they
    are nothing but error.
    """
    worst = 0.0
    for name, values in reference.items():
        if values[0].dtype.kind != "f":
            continue
        signal = error = 0.0
        for exact, value in zip(values, ours[name], strict=True):
            finite = np.isfinite(exact)
            if not np.array_equal(exact[~finite], value[~finite], equal_nan=True):
                return math.inf
            exact, value = (part[finite].astype(np.float64) for part in (exact, value))
            if not np.isfinite(value).all():
                return math.inf
            signal += float(np.square(exact).sum())
            error += float(np.square(value - exact).sum())
        worst = max(worst, error / signal if signal > 0 else (math.inf if error > 0 else 0.0))
    return worst
