"""A server of the tiny bundle for all tests that do not need another."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny import OneFile, write_bundle_of

sys.path.insert(0, str(Path(__file__).parent))
from servers import Server, serving
from socketless import Service, serving_without_sockets

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
    shape = ("batch", "axis_1")
    x = np.abs(np.random.default_rng(0).standard_normal((4, 6), dtype=np.float32)) + 0.5
    file = OneFile(
        echo_graph(),
        (TensorSpec("x", shape, "float32"),),
        tuple(TensorSpec(name, shape, "float32") for name in ("y", "log")),
        {"x": x},
        {"y": x, "log": np.log(x)},
    )
    return write_bundle_of(
        tmp_path_factory.mktemp("identity") / "echo.deploy",
        file,
        structure="tuple",
        input_ranges={"x": (0.0, 10.0)},
    )


@pytest.fixture(scope="module")
def service(identity_bundle: Path) -> Iterator[Service]:
    """The identity bundle, model ``echo``, behind connections without sockets."""
    with serving_without_sockets(identity_bundle) as running:
        yield running


def echo_graph() -> onnx.GraphProto:
    """y = x, log = ln x."""
    shape = ["batch", "n"]
    return helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Log", ["x"], ["log"]),
        ],
        "echo",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("y", "log")],
    )
