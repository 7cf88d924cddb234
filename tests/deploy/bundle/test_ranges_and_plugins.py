"""What whole builds alone show of dynamic sizes, from ``--input`` to what serves them.

The same build has a plugin library for TensorRT, which must be in its bundle.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from built_nets import QUICK, Halver, Net, Segmenter
from plugin_libraries import compile_library

from deploy.bundle.folder import Bundle, load, read_bundle
from deploy.bundle.manifest import hash_file
from deploy.config import BuildConfig
from deploy.engines import Engine, EngineSpec, open_engine
from deploy.engines.base import Array
from deploy.pipeline import build
from deploy.serving.errors import MalformedRequestError
from deploy.serving.protocol import check_shape, count_rows, make_signature
from deploy.source import Problem, open_problem
from export.artifacts import OnnxModel, SizeRange
from export.capture.ladder import export_model
from export.errors import ConfigError, DataError, EngineError, ExportError, InputError
from export.tensorrt.options import ShapeProfile
from export.tensorrt.plugins import PluginLibrary

pytestmark = pytest.mark.long
SIZES = "1x3x16:32:49x24:40:64"
HEIGHT, WIDTH = SizeRange(16, 32, 49), SizeRange(24, 40, 64)
SCHEMA = Path(__file__).parents[3] / "deploy" / "report" / "schema.json"


def draw(rows: int, height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, 3, height, width), np.float32)


def config(**options: Any) -> BuildConfig:
    values = {
        "inputs": (SIZES,),
        "threads": 1,
        "measure_seconds": QUICK,
        "effort": "quick",
        "compute_capability": ("SM89",),
    }
    return BuildConfig(**{**values, **options})


@pytest.fixture(scope="module")
def net() -> Segmenter:
    return Segmenter().eval()


@pytest.fixture(scope="module")
def bundle(net: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Built on samples of the best size, so that int8 is judged as well."""
    folder = tmp_path_factory.mktemp("sizes")
    np.savez(folder / "data.npz", x=draw(24, 32, 40))
    libraries = (str(compile_library(folder / "ours.so")),) if shutil.which("cc") else ()
    options = config(data=str(folder / "data.npz"), target="cuda", plugin=libraries)
    return build(net, options, output=folder / "net.deploy")


def rows(bundle: Bundle) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in bundle.report()["candidates"]}


@pytest.mark.thorough
def test_a_plugin_library_ships_beside_engines_and_for_those_still_to_be_built(
    bundle: Bundle,
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler (cc)")
    files, engines = bundle.manifest.files, bundle.manifest.engines
    digest = hash_file(bundle.path.parent / "ours.so")
    for name in ("tensorrt_rtx-fp16", "tensorrt-fp16"):  # built here, and still to be built
        recipe = engines[name].recipe
        assert recipe is not None
        assert recipe.plugins == (PluginLibrary("plugins/ours.so", digest),)
    record = engines["tensorrt_rtx-fp16"].record
    assert record is not None
    assert record.plugins == {"ours.so": digest}
    assert files["plugins/ours.so"] == files["tensorrt_rtx-fp16/ours.so"] == digest
    assert read_bundle(bundle.path).manifest == bundle.manifest


@pytest.mark.thorough
def test_the_axes_are_dynamic_in_the_onnx_file_and_in_the_manifest(bundle: Bundle) -> None:
    graph = onnx.load(bundle.path / "model.onnx").graph
    dims = [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "x_2", "x_3"]
    manifest = bundle.manifest
    assert manifest.inputs[0].shape == ("batch", 3, "x_2", "x_3")
    assert manifest.inputs[0].ranges == {"x_2": HEIGHT, "x_3": WIDTH}
    assert manifest.outputs[0].shape == ("batch", 4, "output_2", "output_3")


@pytest.mark.thorough
def test_every_engine_was_tried_at_the_ends_and_at_odd_sizes(bundle: Bundle) -> None:
    jsonschema.validate(bundle.report(), json.loads(SCHEMA.read_text()))
    seen = rows(bundle)
    for name in ("onnxruntime-fp32", "openvino-fp32", "onnxruntime-int8", "openvino-int8"):
        parity = seen[name]["parity"]
        assert parity["passed"], seen[name]["reason"]
        tried = [tuple(entry["sizes"].values()) for entry in parity["sizes_checked"]]
        assert tried == [(16, 24), (49, 64), (25, 53)]
    assert bundle.report()["model"]["inputs"][0]["ranges"]["x_2"] == {
        "least": 16,
        "best": 32,
        "most": 49,
        "step": 1,
    }


@pytest.mark.thorough
def test_engines_of_tensorrt_take_the_range_in_every_precision(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    built = [entry for entry in bundle.manifest.engines.values() if entry.record is not None]
    assert {entry.precision for entry in built} == {"tf32", "fp16", "bf16", "int8"}
    wanted = ShapeProfile({"x": ((1, 3, 16, 24), (8, 3, 32, 40), (16, 3, 49, 64))})
    for entry in built:
        assert entry.record is not None
        assert entry.record.profiles == (wanted,)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32", "openvino-int8"])
def test_an_engine_of_the_bundle_answers_any_size_and_refuses_others(
    bundle: Bundle, net: Segmenter, name: str
) -> None:
    with load(bundle.path, engine=name, threads=1) as engine:
        for height, width in ((16, 24), (32, 40), (49, 64), (33, 27), (47, 63), (17, 64)):
            x = draw(2, height, width, seed=height)
            expected = net(torch.from_numpy(x)).detach().numpy()
            answered = engine({"x": x})["output"]
            assert answered.shape == expected.shape
            largest = np.abs(expected).max()
            assert np.abs(answered - expected).max() <= (0.2 if "int8" in name else 1e-4) * largest
        with pytest.raises(EngineError, match="has 50 on axis 2, which may be 16 to 49"):
            engine({"x": draw(1, 50, 40)})
        with pytest.raises(EngineError, match="has 23 on axis 3, which may be 24 to 64"):
            engine({"x": draw(1, 32, 23)})


def test_eager_refuses_sizes_out_of_the_range_as_well(net: Segmenter, tmp_path: Path) -> None:
    problem = open_problem(net, config(), tmp_path)
    with (
        open_engine(problem.baseline_spec(1)) as engine,
        pytest.raises(EngineError, match="16 to 49"),
    ):
        engine({"x": draw(1, 15, 40)})


@pytest.mark.thorough
def test_serving_says_minus_one_and_refuses_what_is_out_of_the_range(bundle: Bundle) -> None:
    signature = make_signature(bundle.manifest.inputs, bundle.manifest.outputs)
    assert signature.inputs["x"].describe()["shape"] == [-1, 3, -1, -1]
    assert signature.outputs["output"].describe()["shape"] == [-1, 4, -1, -1]
    assert check_shape(signature.inputs["x"], [2, 3, 49, 24]) == (2, 3, 49, 24)
    with pytest.raises(MalformedRequestError, match="has 65 on axis 3; the model takes 24 to 64"):
        check_shape(signature.inputs["x"], [2, 3, 49, 65])


def export(net: torch.nn.Module, options: BuildConfig, folder: Path) -> OnnxModel:
    """The ONNX model of a build, by the stages that come before its engines."""
    return export_problem(open_problem(net.eval(), options, folder), folder)


def export_problem(problem: Problem, folder: Path) -> OnnxModel:
    return export_model(
        problem.module,
        problem.trace_feeds(),
        folder,
        signature=problem.signature,
        static_batch=problem.static_batch is not None,
        opset=20,
    ).onnx


def open_onnx(model: OnnxModel) -> Engine:
    return open_engine(EngineSpec("onnxruntime", "fp32", str(model.path), 1, inputs=model.inputs))


def test_a_fixed_batch_keeps_the_other_axes_dynamic(net: Segmenter, tmp_path: Path) -> None:
    options = config(inputs=("2x3x16:32:49x40",), static_batch=True)
    model = export(net, options, tmp_path)
    assert model.inputs[0].shape == (2, 3, "x_2", 40)
    with open_onnx(model) as engine:
        assert engine({"x": draw(2, 17, 40)})["output"].shape == (2, 4, 17, 40)
        with pytest.raises(EngineError, match="the engine takes"):
            engine({"x": draw(1, 17, 40)})


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_torchscript_file_takes_ranges_too(tmp_path: Path) -> None:
    script = torch.jit.script(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()))
    script.save(tmp_path / "m.pt")
    options = config(inputs=("1x3x8:16:33x9",), trust=("*",))
    problem = open_problem(tmp_path / "m.pt", options, tmp_path)
    model = export_problem(problem, tmp_path)
    assert model.inputs[0].shape == ("batch", 3, "input_2", 9)
    with open_onnx(model) as engine:
        assert engine({model.inputs[0].name: draw(3, 33, 9)})["output"].shape == (3, 4, 31, 7)
        with pytest.raises(EngineError, match="has 34 on axis 2"):
            engine({model.inputs[0].name: draw(3, 34, 9)})


def test_a_batch_that_comes_out_fixed_keeps_the_other_axes_dynamic(tmp_path: Path) -> None:
    class Pair(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x.reshape(2, 3, x.shape[2]) * 2)

    problem = open_problem(Pair().eval(), config(inputs=("2x3x4:8:16",)), tmp_path)
    static = problem.with_static_batch().signature
    assert static.inputs[0].shape == (2, 3, "x_2")
    assert static.outputs[0].shape == (2, 3, "output_2")


def test_data_of_another_size_than_the_best_is_refused(net: Segmenter, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=draw(8, 33, 40))
    with pytest.raises(DataError, match="3x33x40 and the model takes"):
        build(net, config(data=str(tmp_path / "data.npz")), output=tmp_path / "net.deploy")


def test_an_axis_that_the_model_wants_even_is_named_with_what_to_do(tmp_path: Path) -> None:
    options = config(inputs=("1x3x16:32:48x32",))
    with pytest.raises((ExportError, InputError)) as caught:
        build(Halver().eval(), options, output=tmp_path / "net.deploy")
    words = str(caught.value)
    assert "the model itself fails at x_2=25: RuntimeError: " in words
    assert "It does run at x_2=16:32:48/2, which says that sizes are multiples" in words
    assert not (tmp_path / "net.deploy").exists()


def test_a_step_lets_a_network_with_skips_through(tmp_path: Path) -> None:
    net = Halver().eval()
    model = export(net, config(inputs=("1x3x16:32:48/2x8:12:16/2",)), tmp_path)
    assert model.inputs[0].shape == ("batch", 3, "x_2", "x_3")
    x = draw(3, 18, 10)
    with open_onnx(model) as engine:
        expected = net(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(engine({"x": x})["output"], expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(EngineError, match="has 19 on axis 2, which may be 16 to 48 in steps"):
            engine({"x": draw(3, 19, 10)})


def test_a_size_at_which_the_model_itself_fails_is_named(tmp_path: Path) -> None:
    class Fixed(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[2] == 16, "16 rows"
            return super().forward(x)

    with pytest.raises(InputError, match="the model itself fails at x_2=8: AssertionError: 16 row"):
        build(Fixed().eval(), config(inputs=("1x3x8:16:32x16",)), output=tmp_path / "net.deploy")


def test_a_size_that_the_code_fixes_is_named_with_its_axis(tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x / math.sqrt(x.shape[2]))

    with pytest.raises(ExportError) as caught:
        export(Scaled(), config(inputs=("1x3x16:32:48x8",)), tmp_path)
    words = str(caught.value)
    assert "axis 2 of input 'x' (16:32:48) is made a constant, 32, by the model's code" in words
    assert "give one size to each axis that has a range in --input" in words


def test_axes_of_one_name_are_one_size(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.relu(a + b)

    shapes = ("a:1xlength=4:8:16", "b:1xlength=4:8:16")
    model = export(Sum(), config(inputs=shapes), tmp_path)
    assert [spec.shape for spec in model.inputs] == [("batch", "length")] * 2
    five, six = np.ones((2, 5), np.float32), np.ones((2, 6), np.float32)
    with open_onnx(model) as engine:
        assert engine({"a": five, "b": five})["output"].shape == (2, 5)
        with pytest.raises(EngineError, match="'length' is 6 in input 'b' and 5 in 'a'"):
            engine({"a": five, "b": six})
    with pytest.raises(MalformedRequestError, match="different sizes on their axis 'length'"):
        count_rows(make_signature(model.inputs, model.outputs), {"a": five, "b": six})
    other = ("a:1xlength=4:8:16", "b:1xlength=4:8:17")
    with pytest.raises(ConfigError, match="'length' is 4:8:16 in one place and 4:8:17 in another"):
        open_problem(Sum().eval(), config(inputs=other), tmp_path)


@pytest.mark.thorough
def test_a_file_is_opened_with_the_ranges_that_are_given(bundle: Bundle) -> None:
    path = str(bundle.path / "model.onnx")
    given = EngineSpec(
        "onnxruntime", "fp32", path, 1, inputs=read_bundle(bundle.path).manifest.inputs
    )
    with open_engine(given) as engine:
        assert str(engine.inputs[0]) == "x:batchx3x16:32:49x24:40:64:float32"
