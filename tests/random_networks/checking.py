"""What is held of a random network: every form of it computes what the float64 original does."""

import contextlib
import os
import pickle
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization import (
    quantize_dynamic as quantize_dynamic_reference,
)
from torch import Tensor

from deploy.candidates.schemes import choose_scheme
from deploy.engines.base import EngineSpec
from deploy.engines.openvino import OpenVinoEngine
from deploy.inputs.dynamic_axes import settle_axes
from export.capture.copying import deep_copy
from export.capture.ladder import Exported, export_model
from export.capture.program import capture
from export.capture.signature import flatten_outputs
from export.errors import DeployError, NothingToQuantizeError
from export.fusion import fuse_program
from export.ranges import describe_sizes, probe_sizes
from quantize.calibration.calibrate import calibrate
from quantize.half.fp16 import convert_fp16
from quantize.int8.insertion import quantize_int8
from quantize.transformers.dynamic import quantize_dynamic
from quantize.transformers.weight_only import WEIGHT_PRESETS, quantize_weights
from random_networks.made import Made

Arrays = dict[str, np.ndarray[Any, Any]]

EXACT = 1e-8
"""Of the range of an output, in float64."""
INT8_SLACK_DB, INT8_ENOUGH_DB = 6.0, 25.0
"""int8 may be so much behind ONNX Runtime's own, and is not asked for more than so much."""
FP16_DB = 30.0
ENDS_IN_FP16 = ("NchwcTransformer",)
"""What ends ONNX Runtime's process at a Transpose before a MatMul in float16, on CPUs alone."""
WEIGHTS_DB = {"int8": 25.0, "int4": 8.0}
"""By the precision of packed weights, whose activations are int8."""
BATCHES = (1, 3, 5)


@dataclass
class Findings:
    """What was found of one network.

    Attributes:
        wrong: stage and words of each defect.
        notes: what is no defect by itself: rungs, SQNR, what was left.
    """

    seed: int
    wrong: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, *accepted: type[Exception]) -> Iterator[None]:
        """Whatever is raised in it is a defect of that stage."""
        started = time.perf_counter()
        try:
            yield
        except accepted as error:
            self.notes[name] = f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001, that is what is looked for
            where = "" if isinstance(error, DeployError) else traceback.format_exc(limit=-4)
            self.wrong.append((name, f"{type(error).__name__}: {error}\n{where}".strip()))
        self.notes[f"{name} s"] = round(time.perf_counter() - started, 2)


def in_child(function: Callable[..., Any], *arguments: object, seconds: int = 120) -> Any:
    """Call it in a fork of this process, which its death does not touch.

    Raises:
        RuntimeError: it raised, or its process died.
    """
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            signal.alarm(seconds)
            os.close(read)
            try:
                answer = True, function(*arguments)
            except Exception as error:  # noqa: BLE001, told to the parent
                answer = False, f"{type(error).__name__}: {error}"
            with os.fdopen(write, "wb") as stream:
                pickle.dump(answer, stream)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    if not told:
        raise RuntimeError(f"the process died: {os.waitstatus_to_exitcode(status)}")
    fine, answer = pickle.loads(told)
    if not fine:
        raise RuntimeError(answer)
    return answer


def check_network(made: Made, folder: Path) -> Findings:
    """Take it through every stage; files go into `folder`."""
    findings = Findings(made.seed)
    warnings.simplefilter("ignore")
    check = _Check(made, folder, findings)
    check.check_fusion()
    check.check_export()
    if check.exported is not None:
        check.check_openvino("openvino fp32", check.exported.onnx.path, "fp32", None)
        check.check_fp16()
        check.check_int8()
        check.check_products()
    return findings


class _Check:
    def __init__(self, made: Made, folder: Path, findings: Findings) -> None:
        self.made, self.folder, self.findings = made, folder, findings
        self.wide = deep_copy(made.module).double()
        self.exported: Exported | None = None
        self.sqnr: dict[str, float] = {}

    def original(self, feeds: dict[str, Tensor], *, wide: bool = True) -> Arrays:
        """The outputs of the module itself, by name."""
        module = self.wide if wide else self.made.module
        if wide:
            feeds = widen(feeds)
        with torch.no_grad():
            result = module(**feeds) if self.made.keyword else module(*feeds.values())
        names, tensors, _ = flatten_outputs(result)
        names = tuple(f"{name}_out" if name in feeds else name for name in names)
        return {n: t.detach().numpy().copy() for n, t in zip(names, tensors, strict=True)}

    def check_fusion(self) -> None:
        """Captured and fused, in float64."""
        feeds, keyword = widen(self.made.feeds(2, seed=1)), self.made.keyword
        with self.findings.stage("fusion"):
            try:
                axes = self.made.describe_inputs()
                program = capture(
                    self.wide, feeds, keyword=keyword, dynamic_batch=True, inputs=axes
                )
            except DeployError as error:
                self.findings.wrong.append(("capture", str(error)))
                program = capture(self.wide, feeds, keyword=keyword, dynamic_batch=False)
            fused = fuse_program(program)
            self.findings.notes["fused"] = len(fused.fused)
            self.findings.notes["skipped"] = [
                f"{skip.where}: {skip.reason}" for skip in fused.skipped
            ]
            for name, graph in (("captured", program), ("fused", fused.program)):
                for batch in (2, 3) if name == "fused" else (2,):
                    samples = widen(self.made.feeds(batch, seed=2))
                    try:
                        module = graph.module()
                        with torch.no_grad():
                            result = (
                                module(**samples)
                                if self.made.keyword
                                else module(*samples.values())
                            )
                    except AssertionError:  # a guard: captured for one batch
                        continue
                    outputs = [t.numpy() for t in flatten_outputs(result)[1]]
                    expected = self.original(samples).values()
                    for index, (found, right) in enumerate(zip(outputs, expected, strict=True)):
                        error = measure(right, found)
                        if not error <= EXACT:
                            self.findings.wrong.append(
                                (name, f"output {index} at batch {batch} is off by {error:.2e}")
                            )

    def check_export(self) -> None:
        """The file in ONNX Runtime, at several batches."""
        made, findings = self.made, self.findings
        with findings.stage("export"):
            feeds = made.feeds(2, seed=1)
            signature = settle_axes(made, made.describe_at(2, dynamic=True))
            exported = export_model(
                made.module,
                feeds,
                self.folder,
                signature=signature,
                static_batch=False,
                opset=20,
            )
            self.exported = exported
            findings.notes["rung"] = exported.rung
            for attempt in exported.attempts:
                findings.wrong.append((f"rung {attempt.rung}", attempt.error))
            if not exported.dynamic_batch:
                findings.wrong.append(("batch", "the dynamic batch is lost"))
            graph = onnx.load(exported.onnx.path).graph
            kinds = {node.op_type for node in graph.node}
            findings.notes["operators"] = sorted(kinds)
            if "BatchNormalization" in kinds:
                findings.notes["norms left"] = sum(
                    node.op_type == "BatchNormalization" for node in graph.node
                )
            lost = set(made.sizes) - {n for spec in exported.onnx.inputs for n in spec.ranges}
            if lost:
                findings.wrong.append(("sizes", f"dynamic axes are lost: {', '.join(lost)}"))
            for batch in BATCHES if exported.dynamic_batch else (2,):
                self.compare_onnxruntime(batch, {})
            for sizes in self.probes():
                self.compare_onnxruntime(2, sizes)

    def probes(self) -> tuple[dict[str, int], ...]:
        """Other sizes of dynamic axes."""
        assert self.exported is not None
        return probe_sizes(self.exported.onnx.inputs)

    def compare_onnxruntime(self, batch: int, sizes: dict[str, int]) -> None:
        assert self.exported is not None
        samples = self.made.feeds(batch, seed=3, sizes=sizes)
        found = run_onnxruntime(self.exported.onnx.path, to_arrays(samples))
        self.compare_float(f"onnxruntime fp32 {describe_sizes(sizes)}".strip(), samples, found)

    def compare_float(self, where: str, samples: dict[str, Tensor], found: Arrays) -> None:
        """Within a multiple of what eager itself loses in float32."""
        wide, eager = self.original(samples), self.original(samples, wide=False)
        batch = len(next(iter(samples.values())))
        for name, right in wide.items():
            if name not in found:
                self.findings.wrong.append((where, f"{name} is missing among {list(found)}"))
                continue
            if right.dtype.kind not in "fc":
                differ = float(np.mean(right != found[name]))
                if differ > float(np.mean(right != eager[name])) + 0.05:
                    self.findings.wrong.append((where, f"{name}: {differ:.0%} integers differ"))
                continue
            noise, error = measure(right, eager[name]), measure(right, found[name])
            if not error <= max(30 * noise, 2e-5):
                self.findings.wrong.append(
                    (where, f"{name} at batch {batch} is off by {error:.2e}, eager by {noise:.2e}")
                )

    def check_openvino(self, stage: str, path: Path, precision: str, floor: float | None) -> None:
        """OpenVINO at fixed sizes, in a process of its own."""
        assert self.exported is not None
        extents = [(1, {}), (3, {}), *((2, sizes) for sizes in self.probes()[1:])]
        for batch, sizes in [(2, {})] if not self.exported.dynamic_batch else extents:
            with self.findings.stage(stage):
                samples = self.made.feeds(batch if floor is None else 16, seed=3, sizes=sizes)
                if not self.exported.dynamic_batch:
                    samples = self.made.feeds(2, seed=3)
                found = in_child(run_openvino, path, precision, to_arrays(samples))
                if floor is None:
                    self.compare_float(stage, samples, found)
                else:
                    self.hold_sqnr(stage, samples, found, floor)
                    return

    def hold_sqnr(
        self, where: str, samples: dict[str, Tensor], found: Arrays, floor: float
    ) -> None:
        """No output is noisier than `floor`, in dB."""
        expected = self.original(samples)
        worst = min(
            (
                measure_sqnr(right, found[name])
                for name, right in expected.items()
                if right.dtype.kind == "f"
            ),
            default=float("inf"),
        )
        self.sqnr[where] = worst
        self.findings.notes[f"{where} dB"] = round(worst, 1)
        if not worst >= floor:
            self.findings.wrong.append((where, f"{worst:.1f} dB, expected {floor:.1f} dB"))

    def samples(self) -> dict[str, Tensor]:
        assert self.exported is not None
        return self.made.feeds(16 if self.exported.dynamic_batch else 2, seed=3)

    def check_fp16(self) -> None:
        """The file in float16, in ONNX Runtime."""
        assert self.exported is not None
        with self.findings.stage("fp16"):
            path = self.folder / "fp16.onnx"
            convert_fp16(self.exported.onnx, path)
            samples = self.samples()
            try:
                found = in_child(run_onnxruntime, path, to_arrays(samples), False, ENDS_IN_FP16)
            except RuntimeError as error:
                if "MLFloat16 data type is not supported" not in str(error):
                    raise
                self.findings.notes["fp16"] = str(error)  # by ONNX Runtime on a CPU
                return
            self.hold_sqnr("fp16", samples, found, FP16_DB)

    def check_int8(self) -> None:
        """Both placements for x86, and that of TensorRT, against ONNX Runtime's own int8."""
        assert self.exported is not None
        model, size = self.exported.onnx, 8 if self.exported.dynamic_batch else 2
        batches = [to_arrays(self.made.feeds(size, seed=10 + index)) for index in range(6)]
        samples = self.samples()
        floor = -float("inf")
        with self.findings.stage("reference"):
            reference = self.folder / "reference.onnx"
            try:
                in_child(quantize_reference, model.path, reference, batches)
                found = in_child(run_onnxruntime, reference, to_arrays(samples))
                self.hold_sqnr("reference", samples, found, -float("inf"))
                floor = min(self.sqnr["reference"] - INT8_SLACK_DB, INT8_ENOUGH_DB)
            except RuntimeError as error:  # that of others may fail
                self.findings.notes["reference"] = str(error)[:300]
        ranges = None
        with self.findings.stage("calibrate", NothingToQuantizeError):
            ranges = calibrate(model, batches, threads=1)
        if ranges is None:
            return
        for target in ("onnxruntime", "openvino", "tensorrt"):
            with self.findings.stage(f"int8 {target}", NothingToQuantizeError):
                path = self.folder / f"{target}.onnx"
                made = quantize_int8(model, ranges, choose_scheme(target), path)
                self.findings.notes[f"int8 {target} layers"] = made.quantized
                self.findings.notes[f"int8 {target} left"] = [
                    f"{skip.where}: {skip.reason}" for skip in made.skipped
                ]
                if target == "openvino":
                    self.check_openvino("int8 openvino", path, "int8", floor)
                    continue
                found = in_child(run_onnxruntime, path, to_arrays(samples), target == "tensorrt")
                self.hold_sqnr(f"int8 {target}", samples, found, floor)

    def check_products(self) -> None:
        """Products without calibration: int8 as it comes, and packed weights of 8 and 4 bits."""
        assert self.exported is not None
        model, samples = self.exported.onnx, self.samples()
        with self.findings.stage("dynamic", NothingToQuantizeError):
            path = self.folder / "dynamic.onnx"
            quantize_dynamic(model, path)
            reference = self.folder / "dynamic_reference.onnx"
            in_child(quantize_dynamic_reference, model.path, reference, None, True)
            found = in_child(run_onnxruntime, reference, to_arrays(samples))
            self.hold_sqnr("dynamic reference", samples, found, -float("inf"))
            floor = min(self.sqnr["dynamic reference"] - INT8_SLACK_DB, INT8_ENOUGH_DB)
            found = in_child(run_onnxruntime, path, to_arrays(samples))
            self.hold_sqnr("dynamic", samples, found, floor)
        for precision, floor in WEIGHTS_DB.items():
            with self.findings.stage(f"{precision} weights", NothingToQuantizeError):
                path = self.folder / f"{precision}_weights.onnx"
                quantize_weights(model, WEIGHT_PRESETS[precision], path)
                found = in_child(run_onnxruntime, path, to_arrays(samples))
                self.hold_sqnr(f"{precision} weights", samples, found, floor)
                found = in_child(run_openvino, path, precision, to_arrays(samples), "weights")
                self.hold_sqnr(f"{precision} weights openvino", samples, found, floor)


def widen(feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floats in float64."""
    return {name: v.double() if v.is_floating_point() else v for name, v in feeds.items()}


def to_arrays(feeds: dict[str, Tensor]) -> Arrays:
    """The same as arrays."""
    return {name: value.numpy() for name, value in feeds.items()}


def measure(right: Any, found: Any) -> float:
    """The largest difference over the range of `right`; infinite where shapes or NaN differ."""
    if right.shape != found.shape:
        return float("inf")
    if right.dtype.kind not in "fc":
        return float(np.mean(right != found))
    right, found = right.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(right)
    if not np.array_equal(right[~finite], found[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = max(float(np.ptp(right[finite])), 0.01 * float(np.abs(right[finite]).max()), 1e-30)
    error = float(np.abs(right[finite] - found[finite]).max()) / scale
    return error if np.isfinite(error) else float("inf")


def measure_sqnr(right: Any, found: Any) -> float:
    """In dB, around the mean of `right`."""
    if right.shape != found.shape or not np.isfinite(found).all():
        return -float("inf")
    right, found = right.astype(np.float64), found.astype(np.float64)
    noise = float(((right - found) ** 2).mean())
    power = float(right.var()) or float((right**2).mean())
    return 10 * float(np.log10(power / noise)) if noise and power else 200.0


def run_onnxruntime(
    path: Path, feeds: Arrays, plain: bool = False, without: tuple[str, ...] = ()
) -> Arrays:
    """The file in ONNX Runtime; `plain`: as it stands, with no optimizations, or some `without`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
    )
    names = [output.name for output in session.get_outputs()]
    taken = {put.name for put in session.get_inputs()}
    fed = {name: value for name, value in feeds.items() if name in taken}
    return dict(zip(names, session.run(names, fed), strict=True))


def run_openvino(path: Path, precision: str, feeds: Arrays, variant: str = "") -> Arrays:
    """The file in OpenVINO, for the sizes of `feeds`."""
    spec = EngineSpec("openvino", precision, str(path), 1, variant=variant)
    with OpenVinoEngine(spec) as engine:
        return engine({spec.name: feeds[spec.name] for spec in engine.inputs})


def quantize_reference(path: Path, target: Path, batches: list[Arrays]) -> None:
    """ONNX Runtime's own int8: Q/DQ, a scale a channel, min-max ranges."""

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            taken = {put.name for put in onnx.load(path).graph.input}
            self.left = iter([{n: v for n, v in b.items() if n in taken} for b in batches])

        def get_next(self) -> Arrays | None:
            return next(self.left, None)

    quantize_static(
        str(path),
        str(target),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
