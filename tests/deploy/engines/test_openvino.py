"""OpenVINO answers as the closed form does at every batch, and never runs another precision."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import answer, draw

from deploy.engines import EngineSpec, open_engine
from deploy.engines import openvino as backend
from deploy.engines.openvino_core import open_core
from deploy.engines.openvino_reductions import reduce_in_four_axes
from deploy.engines.openvino_snippets import has_joined_products, swaps_equal_axes
from deploy.engines.process import EngineProcess
from export.artifacts import TensorSpec
from export.errors import EngineError


def spec(path: Path, precision: str = "fp32") -> EngineSpec:
    return EngineSpec("openvino", precision, str(path), 1)


def test_more_batch_sizes_than_are_kept_are_all_right(tiny_onnx: Path) -> None:
    order = [*range(1, 7), *range(6, 0, -1), 1, 5, 1, 6, 2]
    with open_engine(spec(tiny_onnx)) as engine:
        for seed, batch in enumerate(order):
            x = draw(batch, seed)
            np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=1e-4, atol=1e-4)
        assert isinstance(engine, backend.OpenVinoEngine)
        assert len(engine._requests) == 4


def test_axes_of_outputs_go_by_the_names_of_the_signature_where_that_is_given(
    tiny_onnx: Path,
) -> None:
    turned = onnx.load(tiny_onnx)
    turned.graph.node.append(helper.make_node("Transpose", ["logits"], ["columns"], perm=[1, 0]))
    columns = helper.make_tensor_value_info("columns", TensorProto.FLOAT, [3, "batch"])
    turned.graph.output.append(columns)
    path = tiny_onnx.with_name("turned.onnx")
    onnx.save(turned, path)
    given = (
        TensorSpec("logits", ("batch", 3), "float32"),
        TensorSpec("columns", (3, "batch"), "float32"),
    )
    with open_engine(replace(spec(path), outputs=given)) as engine:
        assert [each.shape for each in engine.outputs] == [("batch", 3), (3, "batch")]
        answered = engine({"x": draw(5)})
    np.testing.assert_array_equal(answered["columns"], answered["logits"].T)


def test_two_names_of_one_tensor_stay_two_outputs(tmp_path: Path) -> None:
    def info(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])

    nodes = [
        helper.make_node("Relu", ["x"], ["b"]),
        helper.make_node("Identity", ["b"], ["a"]),
        helper.make_node("Identity", ["x"], ["through"]),
    ]
    graph = helper.make_graph(nodes, "g", [info("x")], [info(n) for n in ("b", "a", "through")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "twice.onnx",
    )
    x = draw(3)
    with open_engine(spec(tmp_path / "twice.onnx")) as engine:
        got = engine({"x": x})
    kept = x.copy()
    x[:] = 7
    assert list(got) == ["b", "a", "through"]
    np.testing.assert_array_equal(got["a"], np.maximum(kept, 0))
    np.testing.assert_array_equal(got["b"], np.maximum(kept, 0))
    np.testing.assert_array_equal(got["through"], kept)


def test_bf16_without_the_instructions_is_an_error_and_not_fp32(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_supports_bf16", lambda core: False)
    with pytest.raises(EngineError, match="no bf16 instructions; OpenVINO would run fp32"):
        open_engine(spec(tiny_onnx, "bf16"))


def test_bf16_is_close_and_is_not_fp32(tiny_onnx: Path) -> None:
    if not backend.cpu_has_bf16():
        pytest.skip("this CPU has no bf16 instructions")
    x = draw(64)
    with open_engine(spec(tiny_onnx, "bf16")) as engine:
        got = engine({"x": x})["logits"]
    assert got.dtype == np.float32
    error = np.abs(got - answer(x)).max() / np.abs(answer(x)).max()
    assert 1e-5 < error < 3e-2


@pytest.mark.parametrize("precision", ["tf32", ""])
def test_a_precision_that_it_has_not_is_refused(tiny_onnx: Path, precision: str) -> None:
    with pytest.raises(EngineError, match=r"no precision .*; choose fp32, fp16, bf16, int8"):
        open_engine(spec(tiny_onnx, precision))


@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_a_file_that_is_no_model_is_an_engine_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"cannot open .*broken\.onnx"):
        open_engine(spec(path))


def test_a_wrong_input_is_said_before_the_backend_sees_it(tiny_onnx: Path) -> None:
    with (
        open_engine(spec(tiny_onnx)) as engine,
        pytest.raises(EngineError, match=r"shape \[2, 3\]; the engine takes x:batchx4:float32"),
    ):
        engine({"x": draw(2)[:, :3]})


@pytest.mark.thorough
def test_opening_it_reports_to_nobody(tiny_onnx: Path) -> None:
    code = (
        "import psutil, sys\n"
        "from deploy.engines import EngineSpec, open_engine\n"
        f"open_engine(EngineSpec('openvino', 'fp32', {str(tiny_onnx)!r}, 1))\n"
        "print(psutil.Process().children(), sys.modules['openvino_telemetry'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] None"


def test_arrays_that_cannot_be_read_in_place_are_copied(tiny_onnx: Path) -> None:
    whole = draw(8)
    frozen = draw(4, seed=3)
    frozen.setflags(write=False)
    with open_engine(spec(tiny_onnx)) as engine:
        for x in (whole[::2], frozen, np.asfortranarray(draw(4, seed=5)), draw(4, seed=6)):
            kept = x.copy()
            np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(x, kept)


def write_residual_mlp(path: Path, kind: str) -> Callable[[np.ndarray], np.ndarray]:
    """Two residual blocks of two products each, and what they give in float64."""
    random = np.random.default_rng(0)
    weights = [random.normal(0, 0.3, (12, 12)).astype(np.float32) for _ in range(4)]
    biases = [random.normal(0, 0.3, 12).astype(np.float32) for _ in range(4)]
    constants = [numpy_helper.from_array(each, f"w{i}") for i, each in enumerate(weights)]
    constants += [numpy_helper.from_array(each, f"b{i}") for i, each in enumerate(biases)]
    nodes, x = [], "x"
    for block in (0, 1):
        source = x
        if kind == "before":
            nodes.append(helper.make_node("Relu", [x], [source := f"s{block}"]))
        first, second = 2 * block, 2 * block + 1
        nodes += [
            helper.make_node("Gemm", [source, f"w{first}", f"b{first}"], [f"p{block}"]),
            helper.make_node("Relu", [f"p{block}"], [f"q{block}"]),
            helper.make_node("Gemm", [f"q{block}", f"w{second}", f"b{second}"], [f"r{block}"]),
            helper.make_node("Add", [x, f"r{block}"], [x := f"y{block}"]),
        ]
    (inputs, outputs) = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 12])] for name in ("x", x)
    )
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )

    def compute(values: np.ndarray) -> np.ndarray:
        y = values.astype(np.float64)
        for i in (0, 2):
            source = np.maximum(y, 0) if kind == "before" else y
            hidden = np.maximum(source @ weights[i] + biases[i], 0)
            y = y + hidden @ weights[i + 1] + biases[i + 1]
        return y

    return compute


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["between", "before"])
def test_a_residual_mlp_does_not_end_the_process(tmp_path: Path, kind: str, threads: int) -> None:
    """OpenVINO 2026.4 ends by SIGSEGV on one thread; in a worker, so that it would be seen."""
    compute = write_residual_mlp(tmp_path / "mlp.onnx", kind)
    mlp = EngineSpec("openvino", "fp32", str(tmp_path / "mlp.onnx"), threads)
    with EngineProcess(mlp) as engine:
        for rows in (1, 3, 40):
            x = np.random.default_rng(rows).normal(size=(rows, 12)).astype(np.float32)
            (answered,) = engine({"x": x}).values()
            np.testing.assert_allclose(answered, compute(x), rtol=1e-4, atol=1e-4)


_ON_ONE_CORE = """
import os, sys
import numpy as np
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from deploy.engines import EngineSpec, open_engine
with open_engine(EngineSpec("openvino", "fp32", sys.argv[1], 2)) as engine:
    engine({"x": np.ones((1, 12), np.float32)})
"""


def test_nor_where_the_process_may_use_one_core(tmp_path: Path) -> None:
    """OpenVINO has one thread there, whatever is asked for."""
    write_residual_mlp(tmp_path / "mlp.onnx", "between")
    subprocess.run([sys.executable, "-c", _ON_ONE_CORE, str(tmp_path / "mlp.onnx")], check=True)


def test_why_a_model_is_not_compiled_is_a_sentence_with_the_sizes(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "rows",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])],
        [numpy_helper.from_array(np.array([2, 8]), "shape")],
    )
    path = tmp_path / "rows.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    with EngineProcess(EngineSpec("openvino", "fp32", str(path), threads=1)) as process:
        assert process({"x": np.ones((2, 8), np.float32)})["y"].shape == (2, 8)
        with pytest.raises(EngineError, match=r"compile this model for x 3x8: \S") as info:
            process({"x": np.ones((3, 8), np.float32)})
    assert "Exception from" not in str(info.value)
    assert "\n" not in str(info.value)


def test_only_products_that_are_joined_by_a_residual_are_kept_apart(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    write_residual_mlp(tmp_path / "mlp.onnx", "between")
    proto = onnx.load(tmp_path / "mlp.onnx")
    core = open_core()
    assert has_joined_products(core.read_model(proto.SerializeToString()))
    for node in proto.graph.node:
        if node.op_type == "Add":  # of a constant: a bias
            node.input[0] = "w0"
    assert not has_joined_products(core.read_model(proto.SerializeToString()))


MISH = {
    "operator": [helper.make_node("Mish", ["a"], ["b"])],
    "softplus": [
        helper.make_node("Softplus", ["a"], ["s"]),
        helper.make_node("Tanh", ["s"], ["t"]),
        helper.make_node("Mul", ["a", "t"], ["b"]),
    ],
    "written out": [
        helper.make_node("Exp", ["a"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["f"]),
        helper.make_node("Log", ["f"], ["s"]),
        helper.make_node("Tanh", ["s"], ["t"]),
        helper.make_node("Mul", ["a", "t"], ["b"]),
    ],
}


@pytest.mark.parametrize("form", MISH)
def test_mish_between_two_layers_is_not_refused(tmp_path: Path, form: str) -> None:
    """OpenVINO 2026.4 has no code for it there on one thread."""
    random = np.random.default_rng(0)
    first, second = random.normal(0, 0.5, (24, 16)), random.normal(0, 0.5, (16, 8))
    constants = {"w0": first, "w1": second, "one": np.array(1.0)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        *MISH[form],
        helper.make_node("MatMul", ["b", "w1"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()],
    )
    path = tmp_path / "mlp.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    with open_engine(EngineSpec("openvino", "fp32", str(path), 1)) as engine:
        for rows in (1, 3):
            x = random.normal(size=(rows, 24)).astype(np.float32)
            hidden = x.astype(np.float64) @ first.astype(np.float32).astype(np.float64)
            hidden *= np.tanh(np.logaddexp(0, hidden))
            right = hidden @ second.astype(np.float32).astype(np.float64)
            np.testing.assert_allclose(engine({"x": x})["y"], right, rtol=1e-4, atol=1e-5)


def write_attention(
    path: Path, tokens: int, heads: int, scale: float = 1.0
) -> Callable[[np.ndarray], np.ndarray]:
    """Scaled attention; queries, keys and values are cut out of one tensor. And it in float64."""
    width = 2
    channels = heads * width
    weight = np.random.default_rng(0).normal(size=(channels, 3 * channels)).astype(np.float32)
    integers = {"apart": [0, tokens, 3, heads, width], "joined": [0, tokens, channels]}
    constants = [numpy_helper.from_array(weight, "w")]
    constants += [numpy_helper.from_array(np.array(v), k) for k, v in integers.items()]
    constants.append(numpy_helper.from_array(np.float32([scale]), "scale"))
    constants += [numpy_helper.from_array(np.array([n]), f"n{n}") for n in range(4)]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["qkv"]),
        helper.make_node("Reshape", ["qkv", "apart"], ["split"]),
        helper.make_node("Transpose", ["split"], ["moved"], perm=[2, 0, 3, 1, 4]),
    ]
    for n, name in enumerate("qkv"):
        part = [f"n{n}", f"n{n + 1}", "n0"]
        nodes.append(helper.make_node("Slice", ["moved", *part], [f"one_{name}"]))
        nodes.append(helper.make_node("Squeeze", [f"one_{name}", "n0"], [name]))
    nodes += [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"]),
        *([helper.make_node("Mul", ["mixed", "scale"], ["scaled"])] if scale != 1 else []),
        helper.make_node(
            "Transpose", ["mixed" if scale == 1 else "scaled"], ["back"], perm=[0, 2, 1, 3]
        ),
        helper.make_node("Reshape", ["back", "joined"], ["y"]),
    ]
    shape = ["batch", tokens, channels]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "attention", ports[:1], ports[1:], constants)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)

    def compute(x: np.ndarray) -> np.ndarray:
        split = (x.astype(np.float64) @ weight).reshape(len(x), tokens, 3, heads, width)
        q, k, v = split.transpose(2, 0, 3, 1, 4)
        shares = np.exp(q @ k.transpose(0, 1, 3, 2))
        mixed = shares / shares.sum(-1, keepdims=True) @ v * scale
        return mixed.transpose(0, 2, 1, 3).reshape(x.shape)

    return compute


@pytest.mark.parametrize(
    ("tokens", "heads", "scale"), [(6, 6, 1), (6, 3, 1), (3, 6, 1), (4, 4, 1.7)]
)
def test_attention_with_as_many_heads_as_tokens_answers_for_the_right_tokens(
    tmp_path: Path, tokens: int, heads: int, scale: float
) -> None:
    """OpenVINO 2026.4 leaves heads and tokens where they are if there are as many of both."""
    compute = write_attention(tmp_path / "model.onnx", tokens, heads, scale)
    with EngineProcess(EngineSpec("openvino", "fp32", str(tmp_path / "model.onnx"), 1)) as engine:
        for rows in (1, 3):
            size = (rows, tokens, 2 * heads)
            x = np.random.default_rng(rows).normal(size=size).astype(np.float32)
            np.testing.assert_allclose(engine({"x": x})["y"], compute(x), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "order", "kind", "found"),
    [
        ((2, 6, 6, 4), (0, 2, 1, 3), "MatMul", True),
        ((2, 6, 3, 4), (0, 2, 1, 3), "MatMul", False),
        ((2, -1, -1, 4), (0, 2, 1, 3), "MatMul", False),
        ((2, 6, 6, 4), (0, 1, 3, 2), "MatMul", False),
        ((2, 6, 6, 4), (0, 2, 1, 3), "Relu", False),
        ((6, 6, 4), (1, 0, 2), "MatMul", False),
    ],
)
def test_only_an_exchange_of_equal_axes_behind_a_product_is_told(
    shape: tuple[int, ...], order: tuple[int, ...], kind: str, found: bool
) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    from openvino import opset13 as ops

    x = ops.parameter(list(shape), np.float32)
    inner = (
        ops.relu(x) if kind == "Relu" else ops.matmul(x, np.eye(4, dtype=np.float32), False, False)
    )
    moved = ops.transpose(inner, np.array(order, np.int64))
    assert swaps_equal_axes(openvino.Model([moved], [x], "net")) is found


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("pool", ["GlobalAveragePool", "ReduceMean", "ReduceMax", "ReduceL2"])
def test_what_is_learned_a_channel_behind_the_pool_of_a_signal_is_of_the_right_channel(
    tmp_path: Path, pool: str, keep: int
) -> None:
    """OpenVINO 2026.4 takes those of other channels for all samples but the first."""
    random = np.random.default_rng(0)
    shape = (5, 1) if keep or pool == "GlobalAveragePool" else (5,)
    scale, shift = (random.normal(size=(1, *shape)).astype(np.float32) for _ in range(2))
    axis = [] if pool == "GlobalAveragePool" else ["axis"]
    options = {"keepdims": keep} if axis else {}
    nodes = [
        helper.make_node(pool, ["x", *axis], ["pooled"], **options),
        helper.make_node("Mul", ["pooled", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.array([-1]), "axis")]
    constants += [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(shift, "shift")]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5, 7]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *shape]),
    ]
    graph = helper.make_graph(nodes, "signal", ports[:1], ports[1:], constants)
    opsets = [helper.make_opsetid("", 20)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    compute = {
        "ReduceMax": lambda x: x.max(-1),
        "ReduceL2": lambda x: np.sqrt((x**2).sum(-1)),
    }.get(pool, lambda x: x.mean(-1))
    with EngineProcess(EngineSpec("openvino", "fp32", str(path), 1)) as engine:
        for rows in (1, 3):
            x = random.normal(size=(rows, 5, 7)).astype(np.float32)
            pooled = compute(x.astype(np.float64)).reshape(rows, *shape)
            np.testing.assert_allclose(engine({"x": x})["y"], pooled * scale + shift, atol=1e-5)


@pytest.mark.parametrize("pool", ["ReduceMax", "ReduceMean"])
def test_the_scales_of_int8_are_of_the_right_channel_behind_the_pool_of_a_signal(
    tmp_path: Path, pool: str
) -> None:
    """OpenVINO moves them there by itself; of a maximum it took those of other channels."""
    random = np.random.default_rng(0)
    codes = random.integers(-63, 64, (9, 3, 5)).astype(np.int8)  # sums of 8 bits may saturate
    scales = random.uniform(1e-4, 1e-2, 9).astype(np.float32)
    constants = {
        "codes": codes,
        "scales": scales,
        "zeros": np.zeros(9, np.int8),
        "bias": random.normal(size=9).astype(np.float32),
        "axis": np.array([-1]),
        "step": np.float32(0.02),
        "zero": np.uint8(128),
        "low": np.uint8(0),
        "codes_of_y": np.eye(9, dtype=np.int8) * np.int8(50),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["quantized"]),
        helper.make_node("DequantizeLinear", ["quantized", "step", "zero"], ["held"]),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["weight"], axis=0),
        helper.make_node("Conv", ["held", "weight", "bias"], ["summed"], pads=[2, 2]),
        helper.make_node("Relu", ["summed"], ["positive"]),
        helper.make_node(pool, ["positive", "axis"], ["pooled"], keepdims=0),
        helper.make_node("QuantizeLinear", ["pooled", "step", "low"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "step", "low"], ["answer"]),
        helper.make_node("DequantizeLinear", ["codes_of_y", "step"], ["weight_of_y"]),
        helper.make_node("MatMul", ["answer", "weight_of_y"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 20]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 9]),
    ]
    stored = [numpy_helper.from_array(np.asarray(value), n) for n, value in constants.items()]
    graph = helper.make_graph(nodes, "signal", ports[:1], ports[1:], stored)
    path = tmp_path / "model.onnx"
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    x = random.uniform(-2.5, 2.5, (4, 3, 20)).astype(np.float32)
    held = np.pad((np.clip(np.rint(x / 0.02), -128, 127) * 0.02), ((0, 0), (0, 0), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(held, 5, axis=2)
    weight = codes.astype(np.float64) * scales[:, None, None]
    summed = np.einsum("nctk,ock->not", windows, weight) + constants["bias"][:, None]
    positive = np.maximum(summed, 0)
    expected = np.minimum(positive.max(-1) if pool == "ReduceMax" else positive.mean(-1), 5.1)
    with EngineProcess(EngineSpec("openvino", "int8", str(path), 1)) as engine:
        found = engine({"x": x})["y"]
    np.testing.assert_allclose(found, expected, atol=0.011)  # half a step


def test_an_activation_before_what_is_learned_a_channel_leaves_the_channels_right(
    tmp_path: Path,
) -> None:
    """OpenVINO 2026.4 joins it with the reduction, and the constants behind it as well."""
    random = np.random.default_rng(0)
    scale, half = random.normal(size=(1, 5)).astype(np.float32), np.float32(0.5)
    between = {  # behind a reduction each: equal ones are made one, which nothing is joined with
        "Relu": ("ReduceMean", lambda x: np.maximum(x.mean(-1), 0)),
        "Tanh": ("ReduceSum", lambda x: np.tanh(x.sum(-1))),
        "Identity": ("ReduceMax", lambda x: x.max(-1)),
        "Mul": ("ReduceMin", lambda x: x.min(-1) * half),
    }
    nodes = []
    for kind, (reduction, _) in between.items():
        reduced, activated, y = (f"{kind}_{step}" for step in ("reduced", "activated", "y"))
        factor = ["half"] if kind == "Mul" else []
        nodes += [
            helper.make_node(reduction, ["x", "axis"], [reduced], keepdims=0),
            helper.make_node(kind, [reduced, *factor], [activated]),
            helper.make_node("Mul", [activated, "scale"], [y]),
        ]
    constants = {"axis": np.array([2]), "scale": scale, "half": half}
    graph = helper.make_graph(
        nodes,
        "signal",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5, 7])],
        [
            helper.make_tensor_value_info(f"{kind}_y", TensorProto.FLOAT, ["batch", 5])
            for kind in between
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    x = random.normal(size=(3, 5, 7)).astype(np.float32)
    with EngineProcess(EngineSpec("openvino", "fp32", str(path), 1)) as engine:
        found = engine({"x": x})
    for kind, (_, compute) in between.items():
        wanted = compute(x.astype(np.float64)) * scale
        np.testing.assert_allclose(found[f"{kind}_y"], wanted, atol=1e-5, err_msg=kind)


def test_the_norm_of_each_token_is_left_as_it_is() -> None:
    """OpenVINO has a kernel for it as a whole."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    from openvino import opset13 as ops

    x = ops.parameter([-1, 4, 8], np.float32)
    power = ops.reduce_mean(ops.multiply(x, x), np.int64(-1), keep_dims=True)
    inverse = ops.divide(np.float32(1), ops.sqrt(ops.add(power, np.float32(1e-5))))
    scaled = ops.multiply(ops.multiply(x, inverse), np.ones(8, np.float32))
    model = openvino.Model([scaled], [x], "norm")
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    reduce_in_four_axes(model)
    assert [node.get_type_name() for node in model.get_ordered_ops()] == before
