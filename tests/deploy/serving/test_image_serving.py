"""A server whose model takes uint8 images: what it says of itself, as JSON and as raw bytes."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from servers import Server, serving
from tiny import OneFile, write_bundle_of

from deploy.bundle.folder import read_bundle
from deploy.client.replay import ServedModel, verify_server
from export.artifacts import TensorSpec
from export.images import ImageCall, ImageInput

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPE = (4, 5, 3)


def answer(images: np.ndarray) -> np.ndarray:
    """The mean of every channel of what the model is given, in float64."""
    return ((images.astype(np.float64) / 255 - MEAN) / STD).mean((1, 2))


def draw(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = draw(4, 0)
    file = OneFile(
        make_graph(),
        (TensorSpec("x", ("batch", *SHAPE), "uint8"),),
        (TensorSpec("means", ("batch", 3), "float32"),),
        {"x": images},
        {"means": answer(images).astype(np.float32)},
    )
    return write_bundle_of(
        tmp_path_factory.mktemp("images") / "pixels.deploy",
        file,
        input_ranges={"x": (0.0, 255.0)},
        images=ImageCall((ImageInput("x", MEAN, STD),)),
    )


def make_graph() -> onnx.GraphProto:
    constants = [
        numpy_helper.from_array((255 * np.array(values)).astype(np.float32), name)
        for name, values in (("shift", MEAN), ("factor", STD))
    ]
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    return helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["floats", "shift"], ["shifted"]),
            helper.make_node("Div", ["shifted", "factor"], ["prepared"]),
            helper.make_node("ReduceMean", ["prepared", "axes"], ["means"], keepdims=0),
        ],
        "pixels",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("means", TensorProto.FLOAT, ["batch", 3])],
        [*constants, axes],
    )


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    with serving(bundle) as running:
        yield running


def test_the_metadata_has_the_type_and_the_layout_of_images(server: Server) -> None:
    described = server.ask("/v2/models/pixels")
    assert described["parameters"]["images"] == {
        "x": {"mean": [*MEAN], "std": [*STD], "scale": 255.0}
    }
    (entry,) = described["inputs"]
    assert entry == {"name": "x", "datatype": "UINT8", "shape": [-1, *SHAPE]}


def test_images_are_taken_as_json(server: Server) -> None:
    images = draw(2, 1)
    entry = {"name": "x", "datatype": "UINT8", "shape": [2, *SHAPE], "data": images.tolist()}
    status, body = server.infer("pixels", {"inputs": [entry]})
    assert status == 200, body
    found = np.array(body["outputs"][0]["data"]).reshape(2, 3)
    np.testing.assert_allclose(found, answer(images), rtol=0, atol=1e-5)


def test_images_are_taken_as_they_lie_in_memory(server: Server) -> None:
    images = draw(3, 2)
    entry = {
        "name": "x",
        "datatype": "UINT8",
        "shape": [3, *SHAPE],
        "parameters": {"binary_data_size": images.nbytes},
    }
    head = json.dumps({"inputs": [entry]}).encode()
    headers = {"Inference_Header_Content_Length": str(len(head))}
    status, body = server.infer("pixels", head + images.tobytes(), **headers)
    assert status == 200, body
    found = np.array(body["outputs"][0]["data"]).reshape(3, 3)
    np.testing.assert_allclose(found, answer(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"datatype": "FP32", "data": [0.5] * 60}, "UINT8"),
        ({"datatype": "UINT8", "data": [256] * 60}, "x"),
        ({"datatype": "UINT8", "data": [-1] * 60}, "x"),
        ({"datatype": "UINT8", "data": [0.5] * 60}, "x"),
        ({"datatype": "UINT8", "shape": [1, 3, 4, 5], "data": [1] * 60}, "shape"),
    ],
    ids=["floats", "too large", "negative", "scaled", "channels first"],
)
def test_what_is_no_image_is_refused(entry: dict[str, object], said: str, server: Server) -> None:
    whole = {"name": "x", "shape": [1, *SHAPE], **entry}
    status, body = server.infer("pixels", {"inputs": [whole]})
    assert status == 400
    assert said in body["error"]


def test_the_recorded_answers_come_through_the_wire(server: Server, bundle: Path) -> None:
    served = ServedModel(f"http://{server.address}")
    (found,) = verify_server(read_bundle(bundle), served)
    assert found.holds, found
