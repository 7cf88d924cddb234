"""The same requests to a real Triton 2.51 and to ours: the same answer, or a stricter one.

Where the two differ the row is listed here and, with its reason, in docs/serving.md.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from servers import ROOT, Server, serving
from tiny import OneFile, write_bundle_of
from triton_server import Answer, ask, find_triton, running_triton

from deploy.datatypes import DATATYPES, read_datatype
from deploy.engines.base import Array
from export.artifacts import TensorSpec

pytestmark = pytest.mark.slow

KINDS = tuple(name for name in DATATYPES if name != "bfloat16")
"""bfloat16 is missing: ONNX Runtime takes no such array, and Triton's python backend has none."""

MODEL = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb.InferenceResponse([
                pb.Tensor("y" + tensor.name()[1:], tensor.as_numpy()) for tensor in r.inputs()
            ])
            for r in requests
        ]
"""


def draw_kind(name: str, rows: int) -> Array:
    """Three values a row of every dtype, its extremes among them."""
    generator = np.random.default_rng(rows)
    dtype = np.dtype(name)
    if dtype.kind == "b":
        return generator.integers(0, 2, (rows, 3)).astype(bool)
    if dtype.kind == "f":
        return generator.standard_normal((rows, 3)).astype(dtype)
    limits = np.iinfo(dtype)
    values = generator.integers(0, 100, (rows, 3)).astype(dtype)
    values[0, :2] = limits.min, limits.max
    return values


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Model ``one``: x FP32 [-1, 4] → y; model ``kinds``: an input and output of every dtype."""
    folder = tmp_path_factory.mktemp("bundles")
    write_identities(folder / "one.deploy", {"x": "float32"}, 4)
    write_identities(folder / "kinds.deploy", {f"x_{kind}": kind for kind in KINDS}, 3)
    with serving(folder / "one.deploy", folder / "kinds.deploy") as running:
        yield running


def write_identities(target: Path, inputs: dict[str, str], width: int) -> None:
    """A bundle whose outputs are its inputs, under names that begin with y."""
    outputs = {f"y{name[1:]}": kind for name, kind in inputs.items()}

    def describe(names: dict[str, str]) -> list[Any]:
        return [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), ["batch", width]
            )
            for name, kind in names.items()
        ]

    nodes = [helper.make_node("Identity", [n], [f"y{n[1:]}"]) for n in inputs]
    given = {name: np.resize(draw_kind(kind, 2), (2, width)) for name, kind in inputs.items()}
    file = OneFile(
        helper.make_graph(nodes, "identities", describe(inputs), describe(outputs)),
        tuple(TensorSpec(n, ("batch", width), kind) for n, kind in inputs.items()),
        tuple(TensorSpec(n, ("batch", width), kind) for n, kind in outputs.items()),
        given,
        {f"y{name[1:]}": array for name, array in given.items()},
    )
    write_bundle_of(target, file, structure="tuple")


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The same two models behind Triton."""
    packages, reason = find_triton()
    if packages is None or sys.platform != "linux":
        pytest.skip(reason or "Triton's wheel is for Linux")
    work = tmp_path_factory.mktemp("triton")
    repository = work / "models"
    write_triton_model(repository, "one", {"x": "float32"}, 4)
    write_triton_model(repository, "kinds", {f"x_{kind}": kind for kind in KINDS}, 3)
    with running_triton(packages, repository, work) as port:
        yield port


def write_triton_model(repository: Path, model: str, inputs: dict[str, str], width: int) -> None:
    lines = [f'name: "{model}"', 'backend: "python"', "max_batch_size: 8"]
    for name, kind in inputs.items():
        data_type = f"TYPE_{DATATYPES[kind]}"
        lines.append(f'input {{ name: "{name}" data_type: {data_type} dims: {width} }}')
        lines.append(f'output {{ name: "y{name[1:]}" data_type: {data_type} dims: {width} }}')
    (repository / model / "1").mkdir(parents=True)
    (repository / model / "config.pbtxt").write_text("\n".join(lines))
    (repository / model / "1" / "model.py").write_text(MODEL)


@dataclass(frozen=True)
class Attempt:
    """One request, under the name that it has in docs/serving.md."""

    name: str
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    path: str = "/v2/models/one/infer"
    method: str = "POST"

    def send(self, port: int) -> Answer:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return ask(port, self.method, self.path, body, self.headers)


ENTRY = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
RAW = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
LENGTH = "Inference-Header-Content-Length"


def entry(**changes: Any) -> dict[str, Any]:
    """A request with one input, changed; None takes a key away."""
    changed = {key: value for key, value in {**ENTRY, **changes}.items() if value is not None}
    return {"inputs": [changed]}


def raw(size: Any = 16, sent: int = 16, length: str | None = None, **more: Any) -> dict[str, Any]:
    """What is needed of an `Attempt` with a raw tensor."""
    changed = {**RAW, "parameters": {"binary_data_size": size}, **more}
    head = json.dumps({"inputs": [changed]}).encode()
    headers = {LENGTH: str(len(head)) if length is None else length}
    return {"body": head + np.ones(sent, np.uint8).tobytes(), "headers": headers}


ATTEMPTS = (
    Attempt("a good request", entry()),
    Attempt("a good raw request", **raw()),
    Attempt("nested data", entry(shape=[2, 4], data=[[1, 2, 3, 4], [5, 6, 7, 8]])),
    Attempt("data nested otherwise than its shape", entry(data=[[1, 2], [3, 4]])),
    Attempt("id and parameters", {**entry(), "id": "7", "parameters": {"priority": 1}}),
    Attempt("an unknown parameter", {**entry(), "parameters": {"nothing": 1}}),
    Attempt("no body"),
    Attempt("not JSON", b"{"),
    Attempt("JSON and more behind it", json.dumps(entry()).encode() + b" {}"),
    Attempt("not UTF-8", b'{"inputs": "\xff"}'),
    Attempt("a list for a body", [entry()]),
    Attempt("no inputs", {"outputs": []}),
    Attempt("inputs that are no list", {"inputs": 3}),
    Attempt("an empty list of inputs", {"inputs": []}),
    Attempt("an input that is no object", {"inputs": [3]}),
    Attempt("an unknown input", entry(name="z")),
    Attempt("an input beside the model's", {"inputs": [ENTRY, {**ENTRY, "name": "z"}]}),
    Attempt("an input twice", {"inputs": [ENTRY, ENTRY]}),
    Attempt("a name that is a number", entry(name=1)),
    Attempt("no name", entry(name=None)),
    Attempt("another datatype", entry(datatype="INT32")),
    Attempt("an unknown datatype", entry(datatype="FP31")),
    Attempt("a datatype in lower case", entry(datatype="fp32")),
    Attempt("no datatype", entry(datatype=None)),
    Attempt("no shape", entry(shape=None)),
    Attempt("a shape that is text", entry(shape="[1, 4]")),
    Attempt("another rank", entry(shape=[4])),
    Attempt("a higher rank", entry(shape=[1, 1, 4])),
    Attempt("another size", entry(shape=[1, 5], data=[1, 2, 3, 4, 5])),
    Attempt("no rows", entry(shape=[0, 4], data=[])),
    Attempt("a negative size", entry(shape=[-1, 4])),
    Attempt("a size with a fraction", entry(shape=[1.5, 4])),
    Attempt("a size as 1.0", entry(shape=[1.0, 4])),
    Attempt("a size that is true", entry(shape=[True, 4])),
    Attempt("a size beyond 64 bits", entry(shape=[2**64, 4])),
    Attempt("sizes whose product overflows", entry(shape=[2**62, 4])),
    Attempt("more rows than a batch holds", entry(shape=[9, 4], data=[1] * 36)),
    Attempt("too few values", entry(data=[1, 2, 3])),
    Attempt("too many values", entry(data=[1, 2, 3, 4, 5])),
    Attempt("no data", entry(data=None)),
    Attempt("data that is text", entry(data="1234")),
    Attempt("values that are text", entry(data=["1", "2", "3", "4"])),
    Attempt("values that are null", entry(data=[None] * 4)),
    Attempt("values that are true", entry(data=[True] * 4)),
    Attempt("a value beyond FP32", entry(data=[1e39, 2, 3, 4])),
    Attempt("a value beyond FP64", json.dumps(entry()).replace("[1, 2,", "[1e400, 2,").encode()),
    Attempt("a value that is NaN", json.dumps(entry(data=[float("nan"), 2, 3, 4])).encode()),
    Attempt("an unknown output", {**entry(), "outputs": [{"name": "z"}]}),
    Attempt("an output twice", {**entry(), "outputs": [{"name": "y"}] * 2}),
    Attempt("outputs that are no list", {**entry(), "outputs": 3}),
    Attempt("an empty list of outputs", {**entry(), "outputs": []}),
    Attempt("an id that is a number", {**entry(), "id": 7}),
    Attempt("an id of 1,000 characters", {**entry(), "id": "a" * 1000}),
    Attempt("parameters that are a list", {**entry(), "parameters": [1]}),
    Attempt("a priority that is text", {**entry(), "parameters": {"priority": "high"}}),
    Attempt("a negative priority", {**entry(), "parameters": {"priority": -1}}),
    Attempt("a negative timeout", {**entry(), "parameters": {"timeout": -1}}),
    Attempt(
        "a region of shared memory", entry(data=None, parameters={"shared_memory_region": "a"})
    ),
    Attempt("a header length below zero", **raw(length="-5")),
    Attempt("a header length that is text", **raw(length="abc")),
    Attempt("a header length beyond the body", **raw(length="10000")),
    Attempt("a header length beyond 64 bits", **raw(length="9" * 30)),
    Attempt("a header length of zero", **raw(length="0")),
    Attempt("a header length that cuts the JSON", **raw(length="20")),
    Attempt("raw data too short by its size", **raw(size=12, sent=12)),
    Attempt("raw data shorter than its size", **raw(sent=12)),
    Attempt("raw data with bytes behind it", **raw(sent=20)),
    Attempt("a size of raw data below zero", **raw(size=-16)),
    Attempt("a size of raw data that is text", **raw(size="16")),
    Attempt("raw data without its header", raw()["body"]),
    Attempt("data and raw data", **raw(data=[1, 2, 3, 4])),
    Attempt("an unknown model", entry(), path="/v2/models/none/infer"),
    Attempt("an unknown version", entry(), path="/v2/models/one/versions/2/infer"),
    Attempt("a version that is text", entry(), path="/v2/models/one/versions/a/infer"),
    Attempt("a version beyond 64 bits", entry(), path=f"/v2/models/one/versions/{2**64}/infer"),
    Attempt("a version of -1", entry(), path="/v2/models/one/versions/-1/infer"),
    Attempt("the version there is", entry(), path="/v2/models/one/versions/1/infer"),
    Attempt("an empty version", entry(), path="/v2/models/one/versions//infer"),
    Attempt("a slash at the end", entry(), path="/v2/models/one/infer/"),
    Attempt("an encoded model name", entry(), path="/v2/models/on%65/infer"),
    Attempt("an encoded slash", entry(), path="/v2/models/one%2Finfer"),
    Attempt("a model name with ..", entry(), path="/v2/models/..%2fone/infer"),
    Attempt("a query behind the path", entry(), path="/v2/models/one/infer?a=b"),
    Attempt("GET on infer", method="GET"),
    Attempt("PUT on infer", entry(), method="PUT"),
    Attempt("DELETE on a model", method="DELETE", path="/v2/models/one"),
    Attempt("POST on server metadata", b"{}", path="/v2"),
    Attempt("an unknown path", path="/v2/nothing", method="GET"),
    Attempt("an unknown content encoding", entry(), {"Content-Encoding": "zstd"}),
    Attempt("gzip that is none", entry(), {"Content-Encoding": "gzip"}),
    Attempt("loading a model", b"{}", path="/v2/repository/models/one/load"),
)
STRICTER = frozenset(
    {
        "data nested otherwise than its shape",
        "a value beyond FP32",
        "a value that is NaN",
        "an output twice",
        "an id of 1,000 characters",
    }
)
LAXER = frozenset({"a slash at the end", "an encoded model name"})


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name.replace(" ", "-"))
def test_ours_answers_as_triton_does_or_more_strictly(
    ours: Server, triton: int, attempt: Attempt
) -> None:
    theirs, mine = attempt.send(triton), attempt.send(ours.port)
    assert mine[0] == 200 or 400 <= mine[0] < 500 or mine[0] == 501
    if theirs[0] == mine[0] == 200:
        assert read(mine) == read(theirs)
    difference = (theirs[0] == 200) - (mine[0] == 200)
    assert difference == (attempt.name in STRICTER) - (attempt.name in LAXER)
    if difference:
        assert f"| {attempt.name} |" in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def read(answer: Answer) -> Any:
    """A JSON answer without what Triton adds, its values as what their datatypes hold.

    Triton writes an FP32 with the digits of an FP64.
    """
    content = json.loads(answer[2])
    outputs = {}
    for output in content.pop("outputs"):
        values = np.array(output["data"], read_datatype(output["datatype"]))
        outputs[output["name"]] = output["datatype"], output["shape"], values.tobytes()
    content.pop("parameters", None)
    return content, outputs


def read_raw(answer: Answer) -> dict[str, bytes]:
    """The raw tensors of an answer, by name."""
    length = int(answer[1][LENGTH.lower()])
    content, rest = json.loads(answer[2][:length]), answer[2][length:]
    found = {}
    for output in content["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]], rest = rest[:size], rest[size:]
    assert not rest
    return found


@pytest.mark.parametrize("rows", [1, 5])
def test_every_dtype_raw_has_tritons_answer(ours: Server, triton: int, rows: int) -> None:
    arrays = {f"x_{kind}": draw_kind(kind, rows) for kind in KINDS}
    entries = [
        {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(array.tobytes() for array in arrays.values())
    attempt = Attempt("raw", body, {LENGTH: str(len(head))}, "/v2/models/kinds/infer")
    theirs, mine = attempt.send(triton), attempt.send(ours.port)
    assert (theirs[0], mine[0]) == (200, 200), (theirs, mine)
    assert read_raw(mine) == read_raw(theirs)
    assert read_raw(mine) == {f"y{name[1:]}": a.tobytes() for name, a in arrays.items()}


def test_every_dtype_that_json_has_has_tritons_answer(ours: Server, triton: int) -> None:
    """FP16 goes in raw beside the others and is not asked for, since JSON cannot hold it."""
    arrays = {f"x_{kind}": draw_kind(kind, 2) for kind in KINDS}
    entries = [
        {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": list(array.shape)}
        | (
            {"parameters": {"binary_data_size": array.nbytes}}
            if array.dtype.name == "float16"
            else {"data": array.reshape(-1).tolist()}
        )
        for name, array in arrays.items()
    ]
    outputs = [{"name": f"y_{kind}"} for kind in KINDS if kind != "float16"]
    head = json.dumps({"inputs": entries, "outputs": outputs}).encode()
    body = head + arrays["x_float16"].tobytes()
    attempt = Attempt("json", body, {LENGTH: str(len(head))}, "/v2/models/kinds/infer")
    theirs, mine = attempt.send(triton), attempt.send(ours.port)
    assert (theirs[0], mine[0]) == (200, 200), (theirs, mine)
    got, expected = read(mine)[1], read(theirs)[1]
    assert {name: a.tobytes() for name, a in arrays.items() if name != "x_float16"} == {
        f"x{name[1:]}": values for name, (_, _, values) in got.items()
    }
    doubles = [np.frombuffer(found.pop("y_float64")[2]) for found in (got, expected)]
    np.testing.assert_array_max_ulp(*doubles, maxulp=1)  # Triton's reader loses the last bit
    assert got == expected


def test_metadata_has_tritons_fields(ours: Server, triton: int) -> None:
    for path in ("/v2/models/one", "/v2/models/kinds/versions/1"):
        attempt = Attempt("metadata", path=path, method="GET")
        theirs, mine = json.loads(attempt.send(triton)[2]), json.loads(attempt.send(ours.port)[2])
        assert {k: mine[k] for k in theirs if k != "platform"} == {
            k: v for k, v in theirs.items() if k != "platform"
        }
