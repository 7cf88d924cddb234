"""A server of the tiny bundle for all tests that do not need another."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny import fill_stage

sys.path.insert(0, str(Path(__file__).parent))
from servers import Server, serving
from socketless import Service, serving_without_sockets

from deploy.bundle import GOLDEN
from deploy.golden import Golden
from deploy.manifest import BundledEngine, write_manifest
from deploy.staging import stage_bundle
from export.artifacts import TensorSpec


@pytest.fixture(scope="module")
def server(pristine: Path) -> Iterator[Server]:
    """The tiny bundle, model ``tiny``; it ends with its file, as other tests count processes."""
    with serving(pristine) as running:
        yield running


@pytest.fixture(scope="session")
def identity_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose model answers with its input, [batch, n] float32, and with its logarithm.

    The logarithm of a negative number is NaN, of zero minus infinity.
    """
    target = tmp_path_factory.mktemp("identity") / "echo.deploy"
    with stage_bundle(target) as stage:
        fill_stage(stage)
        for folder in ("openvino", "onnx-int8"):
            for file in (stage / folder).glob("*"):
                file.unlink()
            if (stage / folder).is_dir():
                (stage / folder).rmdir()
        (stage / "manifest.json").unlink()
        write_echo(stage / "model.onnx")
        x = np.abs(np.random.default_rng(0).standard_normal((4, 6), dtype=np.float32)) + 0.5
        recorded = {"y": x, "log": np.log(x)}
        names = ("reference", "onnxruntime-fp32")
        Golden({"x": x}, dict.fromkeys(names, recorded)).save(stage / GOLDEN)
        write_manifest(
            stage,
            created="2026-11-25T00:00:00Z",
            model="echo.pt",
            winner="onnxruntime-fp32",
            engines={"onnxruntime-fp32": BundledEngine("onnxruntime", "fp32", "model.onnx", 1e-4)},
            inputs=(TensorSpec("x", ("batch", "axis_1"), "float32"),),
            outputs=tuple(
                TensorSpec(name, ("batch", "axis_1"), "float32") for name in ("y", "log")
            ),
            structure="tuple",
            machine={},
            input_ranges={"x": (0.0, 10.0)},
        )
    return target


@pytest.fixture(scope="module")
def service(identity_bundle: Path) -> Iterator[Service]:
    """The identity bundle, model ``echo``, behind connections without sockets."""
    with serving_without_sockets(identity_bundle) as running:
        yield running


def write_echo(path: Path) -> None:
    """y = x, log = ln x."""
    shape = ["batch", "n"]
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Log", ["x"], ["log"]),
        ],
        "echo",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("y", "log")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
