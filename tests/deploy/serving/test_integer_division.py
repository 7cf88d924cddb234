"""A model that divides integers of its clients: no request ends the server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from servers import Server, serving
from tiny import OneFile, write_bundle_of

from deploy.bundle.folder import read_bundle
from deploy.engines.integer_division import explain_trapping
from export.artifacts import TensorSpec
from export.onnx.division import guard_division

LEAST = -(2**63)
REFUSES_ZERO = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 26)


def _write(folder: Path, *, guarded: bool) -> Path:
    """A bundle that answers a / b, as it is exported now or as it was written before."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", 1]) for name in "abc"
    ]
    graph = helper.make_graph(
        [helper.make_node("Div", ["a", "b"], ["c"], name="divide")], "g", values[:2], values[2:]
    )
    if guarded:
        opset = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        assert guard_division(model) == 1
        graph = model.graph
    a, b, c = (TensorSpec(name, ("batch", 1), "int64") for name in "abc")
    golden = {"a": np.array([[7], [-7]]), "b": np.array([[2], [3]])}
    file = OneFile(graph, (a, b), (c,), golden, {"c": np.array([[3], [-2]])})
    return write_bundle_of(folder / "divide.deploy", file)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bundle = _write(tmp_path_factory.mktemp("guarded"), guarded=True)
    with serving(bundle) as running:
        yield running
        assert running.process.poll() is None, "it ended"
        said = [event["message"] for event in running.events]
    assert not REFUSES_ZERO or not [message for message in said if "may divide" in message]


def _divide(server: Server, *pairs: tuple[int, int]) -> tuple[int, Any]:
    inputs = [
        {"name": name, "datatype": "INT64", "shape": [len(pairs), 1], "data": list(column)}
        for name, column in zip("ab", zip(*pairs, strict=True), strict=True)
    ]
    status, answer = server.infer("divide", {"inputs": inputs})
    return status, answer["outputs"][0]["data"] if status == 200 else answer["error"]


def test_the_least_integer_by_minus_one_has_an_answer(server: Server) -> None:
    assert _divide(server, (LEAST, -1)) == (200, [LEAST])
    assert _divide(server, (7, 2), (LEAST, -1), (9, -1)) == (200, [3, LEAST, -9])


@pytest.mark.skipif(not REFUSES_ZERO, reason="ONNX Runtime before 1.26 ends at a divisor of zero")
def test_a_divisor_of_zero_fails_that_request_alone(server: Server) -> None:
    status, error = _divide(server, (7, 0))
    assert (status, error.split(":")[0]) == (500, "the engine failed on this request")
    assert _divide(server, (7, 2)) == (200, [3])


def test_a_file_of_an_older_build_is_told_of_in_the_log_alone(tmp_path: Path) -> None:
    bundle = _write(tmp_path, guarded=False)
    with serving(bundle) as older:
        event = older.wait_for("onnxruntime-fp32: divide may divide the least integer by -1")
        assert event["level"] == "warning"
        assert older.ask("/v2/models/divide")["parameters"]["notes"] == []


def test_an_onnx_runtime_that_does_not_refuse_zero_is_told_of(tmp_path: Path) -> None:
    spec = read_bundle(_write(tmp_path, guarded=True)).spec("onnxruntime-fp32")
    assert explain_trapping(spec, version="1.26.0") is None
    told = explain_trapping(spec, version="1.25.3")
    assert told is not None
    assert "divide may divide integers by zero, which ends the process in ONNX Runtime 1.25" in told


def test_models_without_integer_division_have_nothing_to_tell(pristine: Path) -> None:
    bundle = read_bundle(pristine)
    for name in bundle.manifest.engines:
        assert explain_trapping(bundle.spec(name), version="1.22.0") is None
