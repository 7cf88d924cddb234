"""Which layers make a low precision wrong: the fewest that must stay float, by module path.

The bundle's float model is converted again and again with other nodes kept float, each mix is run
by the engine in a process of its own, and the outputs are held against the float model's.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle.folder import FALLBACK, Bundle
from deploy.commands.debug_samples import open_samples
from deploy.commands.int8_again import quantize_again
from deploy.config import BuildConfig
from deploy.engines.base import Array, EngineSpec, Feeds
from deploy.engines.process import EngineProcess
from deploy.judging.gates import MIN_SQNR_DB
from deploy.judging.output_parity import are_pixels, decibels
from deploy.measuring.machine import usable_cores
from export.artifacts import OnnxModel
from export.errors import (
    BundleError,
    ConfigError,
    EngineError,
    NothingToQuantizeError,
)
from export.onnx.cost import read_path
from export.onnx.files import read_model, read_opset
from export.onnx.graph import name_node
from export.onnx.tensor_types import float_tensors
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.half.fp16 import convert_fp16
from quantize.sensitivity.by_block import Quantizer
from quantize.sensitivity.culprits import find_culprits

ENGINES = ("onnxruntime", "openvino")
PRECISIONS = ("int8", "fp16")
MAX_BUILDS = 100


@dataclass(frozen=True)
class Culprit:
    """One node that must stay float.

    Attributes:
        where: the user's module path, or the node's name where there is none.
    """

    node: str
    where: str
    operator: str


@dataclass(frozen=True)
class PrecisionFinding:
    """What was found.

    Attributes:
        samples: in words, what the outputs were compared on.
        gate_db: the SQNR that was to be reached.
        before_db: with nothing kept float; -inf where an output is not finite.
        after_db: with the culprits kept float.
        nodes: how many could be in low precision.
        complete: whether the gate holds with `culprits` in float; else there are more.
        made: how int8 was made, and where that differs from the build; empty for float16.
        before_equal, after_equal: share of the class numbers that are equal, of the output that
            fares worst; None where the model returns none, and all that is said is the SQNR.
        least_equal: the share that was to be reached.
    """

    engine: str
    precision: str
    samples: str
    gate_db: float
    before_db: float
    after_db: float
    nodes: int
    culprits: tuple[Culprit, ...]
    builds: int
    complete: bool
    made: str = ""
    before_equal: float | None = None
    after_equal: float | None = None
    least_equal: float = 0.0


@dataclass(frozen=True)
class _Nearness:
    """Of a mix: the SQNR of the worst output of amounts, the share of equal class numbers."""

    sqnr_db: float
    equal: float | None

    def holds(self, sqnr_db: float, equal: float) -> bool:
        return self.sqnr_db >= sqnr_db and (self.equal is None or self.equal >= equal)


def debug_precision(
    bundle: Bundle,
    *,
    precision: str,
    engine: str = "onnxruntime",
    config: BuildConfig | None = None,
    builds: int = MAX_BUILDS,
    progress: ProgressCallback = ignore_progress,
) -> PrecisionFinding:
    """Find the fewest nodes of a bundle's model that must stay float.

    Args:
        precision: of `PRECISIONS`.
        engine: of `ENGINES`; it runs every mix.
        config: of its `data` a part calibrates int8, as in a build, and outputs are compared on
            the rest; without, the golden samples of the bundle are used for both. Its `min_sqnr`
            is the gate, else that of the precision; and `min_agreement` that of class numbers.
        builds: at most that many mixes are built.
        progress: told after every one.

    Raises:
        ConfigError: no such precision or engine, or they do not go together.
        BundleError: the bundle has no float model.
        DeployError: the model cannot be converted or run, or the data cannot be used.
    """
    config = config or BuildConfig()
    _check(precision, engine, builds)
    if FALLBACK not in bundle.manifest.engines:
        raise BundleError(f"{bundle.path} holds no float32 model to start from; build it again.")
    model = _open_model(bundle)
    samples = open_samples(bundle, config, calibrates=precision == "int8")
    gate = MIN_SQNR_DB[precision] if config.min_sqnr is None else config.min_sqnr
    if precision == "fp16":
        (convert, nodes), made = _convert_fp16(model), ""
    else:
        quantizer, made = quantize_again(bundle, model, engine, samples)
        convert, nodes = _convert_int8(quantizer)
    by_name = {name_node(node): node for node in read_model(model.path, weights=False).graph.node}
    found: dict[frozenset[str], _Nearness] = {}

    with tempfile.TemporaryDirectory(prefix="deploy-debug-") as folder:
        expected = _run(bundle.spec(FALLBACK, threads=config.threads), samples.comparison)

        def measure(kept: frozenset[str]) -> _Nearness:
            progress(Progress("debug precision", len(found), 0, f"{len(kept)} kept float"))
            path = Path(folder) / f"{len(found)}.onnx"
            spec = EngineSpec(
                engine,
                "mixed" if kept and precision == "int8" else precision,
                str(convert(path, kept).path),
                config.threads or usable_cores(),
                inputs=bundle.manifest.inputs,
                outputs=bundle.manifest.outputs,
            )
            found[kept] = _compare(expected, _run(spec, samples.comparison))
            path.unlink()
            return found[kept]

        least = config.min_agreement
        culprits = find_culprits(
            nodes, lambda kept: measure(kept).holds(gate, least), builds=builds
        )
        kept = frozenset(culprits.names)
        after = found[kept] if kept in found else measure(kept)
    return PrecisionFinding(
        engine=engine,
        precision=precision,
        samples=samples.words,
        gate_db=gate,
        before_db=found[frozenset()].sqnr_db,
        after_db=after.sqnr_db,
        nodes=len(nodes),
        culprits=tuple(
            Culprit(name, read_path(by_name[name]), by_name[name].op_type)
            for name in culprits.names
        ),
        builds=culprits.builds,
        complete=culprits.complete,
        made=made,
        before_equal=found[frozenset()].equal,
        after_equal=after.equal,
        least_equal=least,
    )


def _check(precision: str, engine: str, builds: int) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision}: choose {' or '.join(PRECISIONS)}.")
    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine}: choose {' or '.join(ENGINES)}.")
    if precision == "fp16" and engine == "openvino":
        raise ConfigError(
            "--precision fp16 --engine openvino: OpenVINO computes float16 in float32 on a CPU and "
            "would find nothing wrong. Use --engine onnxruntime."
        )
    if builds < 1:
        raise ConfigError(f"--builds {builds}: at least 1.")


def _open_model(bundle: Bundle) -> OnnxModel:
    path = bundle.path / bundle.manifest.engines[FALLBACK].file
    return OnnxModel(path, bundle.manifest.inputs, bundle.manifest.outputs, read_opset(path))


_Converter = tuple[Callable[[Path, frozenset[str]], OnnxModel], tuple[str, ...]]
"""What makes a mix, and the nodes that it may keep float, in graph order."""


def _convert_fp16(model: OnnxModel) -> _Converter:
    proto = read_model(model.path, weights=False)
    floats = set(float_tensors(proto))
    nodes = [n for n in proto.graph.node if floats.intersection((*n.input, *n.output))]
    names = tuple(name_node(node) for node in nodes if node.op_type != "Constant")
    return lambda path, kept: convert_fp16(model, path, keep_fp32=kept).model, names


def _convert_int8(quantizer: Quantizer) -> _Converter:
    model = quantizer.model
    blocks = quantizer.blocks(len(read_model(model.path, weights=False).graph.node))
    names = tuple(name for block in blocks for name in block.nodes)
    if not names:
        raise NothingToQuantizeError(f"{model.path.name} has nothing that runs in int8 there.")
    return lambda path, kept: quantizer.write(path, keep_float=kept), names


def _run(spec: EngineSpec, batches: list[Feeds]) -> list[Mapping[str, Array]]:
    with EngineProcess(spec) as process:
        return [process(batch) for batch in batches]


def _compare(expected: list[Mapping[str, Array]], ours: list[Mapping[str, Any]]) -> _Nearness:
    """The SQNR is -inf where an output is not finite and should be; infinite without amounts."""
    worst, equal = math.inf, None
    for name, first in expected[0].items():
        exact, value = (
            np.concatenate([np.ravel(batch[name]) for batch in batches])
            for batches in (expected, ours)
        )
        if first.dtype.kind in "biu" and not any(are_pixels(batch[name]) for batch in expected):
            share = float((exact == value).mean())
            equal = share if equal is None else min(equal, share)
            continue
        exact, value = (each.astype(np.float64) for each in (exact, value))
        if not np.isfinite(exact).all():
            raise EngineError(f"Output {name!r} of the float model itself is not finite here.")
        if not np.isfinite(value).all():
            return _Nearness(-math.inf, equal)
        error = float(np.square(value - exact).sum())
        worst = min(worst, decibels(float(np.square(exact).sum()), error))
    return _Nearness(worst, equal)
