"""What OpenVINO does to the process that it is opened in."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from deploy.engines import EngineSpec, open_engine

pytest.importorskip("openvino", reason="openvino is not installed")

OUT_OF_ORDER = """
import os, signal, sys
import numpy as np
from deploy.engines import EngineSpec, open_engine

heard = []
signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
engines = [open_engine(EngineSpec("openvino", "fp32", sys.argv[1], 1)) for _ in range(3)]
for engine in engines:
    engine({"x": np.ones((1, 4), np.float32)})
del engine
while engines:  # the oldest first
    with engines.pop(0):
        pass
    os.kill(os.getpid(), signal.SIGINT)
print(len(heard))
"""


AT_ONCE = """
import sys, threading
import numpy as np
from deploy.engines import EngineSpec, open_engine
from deploy.engines.openvino_core import import_openvino, open_core

open_core()
sys.setswitchinterval(1e-6)
ready, sums = threading.Barrier(4), []

def use():
    ready.wait()
    import_openvino().Type.f32.to_dtype()  # as every engine asks
    with open_engine(EngineSpec("openvino", "fp32", sys.argv[1], 1)) as engine:
        sums.append(float(engine({"x": np.ones((1, 4), np.float32)})["y"].sum()))

threads = [threading.Thread(target=use, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(20)
print(sums)
"""


def test_threads_may_open_their_first_engines_at_once(tmp_path: Path) -> None:
    ended = run_script(AT_ONCE, tmp_path)
    assert (ended.returncode, ended.stdout.strip()) == (0, "[4.0, 4.0, 4.0, 4.0]"), ended.stderr


def test_weights_beside_the_file_are_those_that_were_there_when_it_was_opened(
    tmp_path: Path,
) -> None:
    path, data = tmp_path / "product.onnx", tmp_path / "product.bin"
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    rows = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 64]) for n in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    stored = numpy_helper.from_array(weight, "w")
    graph = helper.make_graph([node], "net", rows[:1], rows[1:], [stored])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    save(model, path, save_as_external_data=True, location=data.name, size_threshold=0)
    with open_engine(EngineSpec("openvino", "fp32", str(path), 1)) as engine:
        engine({"x": np.eye(64, dtype=np.float32)})
        with data.open("r+b") as file:
            file.write(bytes(data.stat().st_size))
        got = engine({"x": 2 * np.eye(64, dtype=np.float32)[:3]})["y"]  # compiled only now
    np.testing.assert_allclose(got, 2 * weight[:3], 1e-6)


def test_a_signal_is_heard_in_whichever_order_engines_are_closed(tmp_path: Path) -> None:
    ended = run_script(OUT_OF_ORDER, tmp_path)
    assert ended.returncode != -signal.SIGSEGV
    assert (ended.returncode, ended.stdout.strip()) == (0, "3"), ended.stderr


def run_script(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """A script in a process of its own, which is given the file of a network, [N, 4] to itself."""
    path = folder / "relu.onnx"
    rows = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", rows[:1], rows[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120
    )
