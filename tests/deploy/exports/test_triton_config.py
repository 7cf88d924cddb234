"""The configuration, read back with Triton's own protobuf, says what the bundle says."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from altered import alter, alter_report, with_plan, with_shapes
from google.protobuf import text_format

from deploy.bundle.folder import Bundle, read_bundle
from deploy.bundle.manifest import BundledEngine
from deploy.exports.triton import export_triton
from deploy.exports.triton_config import (
    TritonModel,
    choose_batching,
    plan_warmups,
    render_config,
)
from export.artifacts import TensorSpec
from export.errors import BundleError

model_config_pb2 = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed"
)
FP32 = model_config_pb2.TYPE_FP32


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return read_bundle(bundle_path)


def parse(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def configure(bundle: Bundle, engine: str = "onnxruntime-int8", **golden: Any) -> Any:
    backend = bundle.manifest.engines[engine].engine
    model = TritonModel(bundle, engine, backend, "tiny", 1)
    batching = choose_batching(model)
    feeds = golden or {"x": np.zeros((4, 4), np.float32)}
    return parse(render_config(model, batching, plan_warmups(feeds, batching)))


def test_an_exported_model_says_what_it_takes(bundle: Bundle, tmp_path: Path) -> None:
    export = export_triton(bundle, tmp_path / "repo", name="tiny", version=7)
    config = parse((export.path / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.platform) == ("tiny", "onnxruntime", "")
    assert config.max_batch_size == 3  # the largest that the report says was checked
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("x", FP32, [4])]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [("logits", FP32, [3])]
    assert config.default_model_filename == "model.onnx"
    assert list(config.version_policy.specific.versions) == [7]
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert list(config.dynamic_batching.preferred_batch_size) == []
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert dict(config.metric_tags) == {"deploykit_engine": "onnxruntime-int8"}


def test_it_agrees_with_the_signature_of_the_onnx_file(bundle: Bundle, tmp_path: Path) -> None:
    export = export_triton(bundle, tmp_path / "repo")
    config = parse((export.path / "config.pbtxt").read_text())
    graph = onnx.load(export.path / "1" / config.default_model_filename).graph
    for described, values in ((config.input, graph.input), (config.output, graph.output)):
        for ours, theirs in zip(described, values, strict=True):
            dims = [d.dim_value or -1 for d in theirs.type.tensor_type.shape.dim]
            assert (ours.name, [-1, *ours.dims]) == (theirs.name, dims)
            assert theirs.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_warm_ups_are_golden_samples_in_every_size(bundle: Bundle, tmp_path: Path) -> None:
    alter_report(bundle, lambda report: report["measurement"].update(batch=2))
    export = export_triton(bundle, tmp_path / "repo")
    config = parse((export.path / "config.pbtxt").read_text())
    assert list(config.dynamic_batching.preferred_batch_size) == [2]
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 2, 3]
    golden = np.load(bundle.path / "golden.npz")["input/x"]
    for index, warmup in enumerate(config.model_warmup):
        ((name, sample),) = warmup.inputs.items()
        assert (name, sample.data_type, list(sample.dims)) == ("x", FP32, [4])
        raw = (export.path / "warmup" / sample.input_data_file).read_bytes()
        np.testing.assert_array_equal(np.frombuffer(raw, "<f4"), golden[index])


def test_a_batch_that_was_measured_and_is_larger_than_any_checked_is_allowed(
    bundle: Bundle,
) -> None:
    alter_report(bundle, lambda report: report["measurement"].update(batch=8))
    config = configure(bundle)
    assert config.max_batch_size == 8
    assert list(config.dynamic_batching.preferred_batch_size) == [8]


@pytest.mark.parametrize(
    ("takes", "gives", "dims"),
    [
        ((2, 4), ((2, 3),), [2, 3]),  # a batch that was fixed
        (("batch", 4), (("time", "batch", 3),), [-1, -1, 3]),  # a batch on another axis
        (("batch", 4), ((3,),), [3]),  # an output without it
    ],
)
def test_where_the_batch_is_not_in_front_of_all_shapes_are_whole_and_nothing_is_batched(
    bundle: Bundle, takes: tuple[Any, ...], gives: tuple[Any, ...], dims: list[int]
) -> None:
    config = configure(with_shapes(bundle, takes, *gives), x=np.zeros((2, 4), np.float32))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [2 if takes[0] == 2 else -1, 4]
    assert list(config.output[0].dims) == dims
    assert config.WhichOneof("scheduling_choice") is None
    (warmup,) = config.model_warmup
    assert (warmup.batch_size, list(warmup.inputs["x"].dims)) == (1, [2, 4])


def test_other_dynamic_axes_are_minus_one(bundle: Bundle) -> None:
    changed = with_shapes(bundle, ("batch", "length", 8), ("batch", "length"))
    config = configure(changed, x=np.zeros((4, 5, 8), np.float32))
    assert list(config.input[0].dims) == [-1, 8]
    assert list(config.output[0].dims) == [-1]
    assert list(config.model_warmup[0].inputs["x"].dims) == [5, 8]


def test_a_tensor_without_an_axis_of_its_own_is_reshaped(bundle: Bundle) -> None:
    config = configure(with_shapes(bundle, ("batch", 4), ("batch",)))
    (output,) = config.output
    assert list(output.dims) == [1]
    assert output.HasField("reshape")
    assert list(output.reshape.shape) == []
    assert not config.input[0].HasField("reshape")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("float16", "FP16"),
        ("float64", "FP64"),
        ("bfloat16", "BF16"),
        ("int8", "INT8"),
        ("uint8", "UINT8"),
        ("int32", "INT32"),
        ("int64", "INT64"),
        ("bool", "BOOL"),
    ],
)
def test_every_dtype_has_tritons_name(bundle: Bundle, dtype: str, name: str) -> None:
    changed = alter(bundle, inputs=(TensorSpec("x", ("batch", 4), dtype),))
    config = configure(changed)
    assert config.input[0].data_type == model_config_pb2.DataType.Value(f"TYPE_{name}")


def test_a_dtype_that_triton_has_not_is_refused(bundle: Bundle) -> None:
    changed = alter(bundle, inputs=(TensorSpec("x", ("batch", 4), "complex64"),))
    with pytest.raises(BundleError, match="'x': Triton has no dtype complex64"):
        configure(changed)


def test_onnxruntime_for_the_gpu_runs_there(bundle: Bundle) -> None:
    name, file = "onnxruntime-fp16-cuda", "model.onnx"
    entry = BundledEngine("onnxruntime", "fp16", file, 0.1, variant="cuda")
    config = configure(alter(bundle, engines={**bundle.manifest.engines, name: entry}), name)
    assert config.backend == "onnxruntime"
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("tf32", "1"), ("fp16", "1")])
@pytest.mark.parametrize(("batch", "search"), [("batch", "HEURISTIC"), (2, "EXHAUSTIVE")])
def test_its_provider_has_the_options_that_it_was_judged_with(
    bundle: Bundle, precision: str, tf32: str, batch: str | int, search: str
) -> None:
    name = f"onnxruntime-{precision}-cuda"
    entry = BundledEngine("onnxruntime", precision, "model.onnx", 0.1, variant="cuda")
    inputs = (TensorSpec("x", (batch, 4), "float32"),)
    engines = {**bundle.manifest.engines, name: entry}
    config = configure(alter(bundle, engines=engines, inputs=inputs), name)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    assert accelerator.parameters["use_tf32"] == tf32
    assert accelerator.parameters["cudnn_conv_algo_search"] == search
    assert not configure(bundle, "onnxruntime-fp32").HasField("optimization")


def test_a_plan_of_tensorrt_runs_on_the_gpu_in_the_sizes_of_its_profiles(bundle: Bundle) -> None:
    config = configure(with_plan(bundle, (1, 1, 4), (1, 8, 16)), "tensorrt-fp16")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert config.max_batch_size == 16
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8, 16]
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 4, 8, 16]


def test_a_plan_of_which_no_profile_is_known_takes_what_was_measured(bundle: Bundle) -> None:
    alter_report(bundle, lambda report: report["measurement"].update(batch=2))
    config = configure(with_plan(bundle), "tensorrt-fp16")
    assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (2, [2])


def test_names_with_quotes_and_other_alphabets_survive(bundle: Bundle) -> None:
    name = 'größe "1"\\n'
    changed = alter(bundle, inputs=(TensorSpec(name, ("batch", 4), "float32"),))
    config = configure(changed, **{name: np.zeros((4, 4), np.float32)})
    assert config.input[0].name == name
    assert list(config.model_warmup[0].inputs) == [name]
