"""A model whose images may have any size of a range, behind a real server."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from servers import Server, serving
from tiny import OneFile, write_bundle_of

from deploy.client import bench_server, make_settings
from deploy.client.wire import open_server
from deploy.engines.base import Array
from export.artifacts import SizeRange, TensorSpec
from export.errors import ServerError

ENGINES = ("onnxruntime-fp32", "openvino-fp32")
SIZES = {"h": SizeRange(4, 8, 16), "w": SizeRange(6, 6, 9)}


def draw(height: int, width: int, rows: int = 1) -> Array:
    rng = np.random.default_rng(height * width)
    return rng.standard_normal((rows, 2, height, width), np.float32)


def write_bundle(path: Path, winner: str) -> Path:
    """The negative half of an image."""
    specs = [TensorSpec(name, ("batch", 2, "h", "w"), "float32", SIZES) for name in "xy"]
    values = [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, s.shape) for s in specs]
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Relu", ["n"], ["y"])]
    graph = helper.make_graph(nodes, "half", values[:1], values[1:])
    x = draw(8, 6, 4)
    file = OneFile(graph, (specs[0],), (specs[1],), {"x": x}, {"y": np.maximum(-x, 0)})
    others = tuple(name for name in ENGINES if name != winner)
    return write_bundle_of(path, file, engines=(winner, *others))


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Server:
    if request.param.startswith("openvino"):
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    path = write_bundle(tmp_path_factory.mktemp("sizes") / "half.deploy", request.param)
    with serving(path, "--max-delay-ms", "2") as running:
        yield running


def test_metadata_has_minus_one_and_the_sizes(server: Server) -> None:
    described = server.ask("/v2/models/half")
    assert described["inputs"][0]["shape"] == [-1, 2, -1, -1]
    assert described["parameters"]["sizes"] == {"x": {"2": [4, 8, 16, 1], "3": [6, 6, 9, 1]}}


def test_requests_of_many_sizes_at_a_time_get_their_own_answers(server: Server) -> None:
    def ask(number: int) -> None:
        x = draw(4 + number % 13, 6 + number % 4)
        with open_server(f"http://{server.address}") as client:
            np.testing.assert_array_equal(client.infer("half", {"x": x})["y"], np.maximum(-x, 0))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(60)))


@pytest.mark.parametrize(
    ("height", "width", "words"),
    [
        (3, 6, "has 3 on axis 2; the model takes 4 to 16"),
        (17, 6, "has 17 on axis 2; the model takes 4 to 16"),
        (8, 10, "has 10 on axis 3; the model takes 6 to 9"),
    ],
)
def test_a_size_out_of_its_range_is_the_senders_fault(
    server: Server, height: int, width: int, words: str
) -> None:
    with open_server(f"http://{server.address}") as client, pytest.raises(ServerError) as caught:
        client.infer("half", {"x": draw(height, width)})
    assert words in str(caught.value)
    assert caught.value.status == 400


def test_made_up_load_has_the_best_sizes(server: Server) -> None:
    load = {"rate": None, "concurrency": 1, "arrivals": None, "seconds": 0.2}
    settings = make_settings({**load, "connections": None, "timeout": None}, batch=2, seed=0)
    assert bench_server(f"http://{server.address}", settings).answered > 0
