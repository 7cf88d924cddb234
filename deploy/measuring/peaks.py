"""The machine's measured peak: a chain of large 1x1 convolutions, in each precision.

Beside every latency stands its distance to this limit. It is a marker, not a bound: other shapes
can run a little faster.
"""

import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy.candidates.schemes import choose_scheme
from deploy.engines.base import EngineSpec, Feeds
from deploy.engines.process import EngineProcess
from export.artifacts import OnnxModel, TensorSpec
from export.errors import DeployError
from export.optional import is_installed
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8

_CHANNELS, _SIZE, _LAYERS = 256, 28, 8
_MACS = _LAYERS * _CHANNELS * _CHANNELS * _SIZE * _SIZE
_CALLS = 40
_IR_VERSION = 10
"""Named, since onnx's own default may be newer than what the installed engines read."""


@functools.cache
def measure_peaks(*, threads: int) -> dict[str, float | None]:
    """GMAC/s of ``fp32``, ``bf16`` and ``int8`` on this machine; None where it cannot be run.

    OpenVINO is asked where it is installed, else ONNX Runtime, which has no bf16. The best quarter
    of the calls counts, since a peak is what the machine can do. Measured once in a process.
    """
    engine = "openvino" if is_installed("openvino") else "onnxruntime"
    with tempfile.TemporaryDirectory(prefix="deploy-peaks-") as folder:
        model = _make_chain(Path(folder) / "chain.onnx")
        feeds = {"x": np.random.default_rng(0).random(_shape(), dtype=np.float32)}
        ranges = calibrate(model, [feeds], observer="minmax")
        int8 = quantize_int8(model, ranges, choose_scheme(engine), Path(folder) / "int8.onnx").model
        peaks: dict[str, float | None] = {}
        for precision, path in (("fp32", model.path), ("bf16", model.path), ("int8", int8.path)):
            if precision == "bf16" and engine == "onnxruntime":
                peaks[precision] = None
                continue
            peaks[precision] = _measure(EngineSpec(engine, precision, str(path), threads), feeds)
        return peaks


def _measure(spec: EngineSpec, feeds: Feeds) -> float | None:
    try:
        with EngineProcess(spec) as process:
            process.prepare(feeds)
            seconds = process.time(_CALLS, warmup=5)
    except DeployError:
        return None  # this precision is not to be had on this CPU; the report says null
    return round(_MACS / float(np.percentile(seconds, 25)) / 1e9, 1)


def _shape() -> tuple[int, int, int, int]:
    return (1, _CHANNELS, _SIZE, _SIZE)


def _make_chain(path: Path) -> OnnxModel:
    rng = np.random.default_rng(0)
    nodes, weights, tensor = [], [], "x"
    for index in range(_LAYERS):
        weight = rng.standard_normal((_CHANNELS, _CHANNELS, 1, 1), dtype=np.float32) / 16
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [tensor, f"w{index}"], [f"c{index}"]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"y{index}"]))
        tensor = f"y{index}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, _shape())],
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, _shape())],
        weights,
    )
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION), path)
    spec = TensorSpec("x", _shape(), "float32")
    return OnnxModel(path, (spec,), (TensorSpec(tensor, _shape(), "float32"),), 20)
