"""The small nets of this folder's tests, and proof that they are valid and run."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.artifacts import BATCH, OnnxModel, TensorSpec
from export.cpu import saturates_int8


class Net:
    """Builds one ONNX model node by node; every method returns the name of its result."""

    def __init__(self, *shape: int, seed: int = 0, opset: int = 20) -> None:
        self.random = np.random.default_rng(seed)
        self.shape, self.opset = shape, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        results = [f"{name}_out{'' if i == 0 else i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, results, name=name, **attributes))
        return results[0]

    def conv(
        self,
        x: str,
        inside: int,
        outside: int,
        *,
        kernel: int = 3,
        name: str = "",
        groups: int = 1,
        bias: bool = True,
        **attributes,
    ) -> str:
        name = name or f"conv{len(self.nodes)}"
        fan_in = inside // groups * kernel**2
        weight = self.random.normal(0, fan_in**-0.5, (outside, inside // groups, kernel, kernel))
        inputs = [x, self.constant(f"{name}_w", weight.astype(np.float32))]
        if bias:
            values = self.random.normal(0, 0.1, outside).astype(np.float32)
            inputs.append(self.constant(f"{name}_b", values))
        return self.op(
            "Conv",
            *inputs,
            name=name,
            group=groups,
            kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
            **attributes,
        )

    def gemm(self, x: str, inside: int, outside: int, *, name: str = "gemm", trans: int = 1) -> str:
        weight = self.random.normal(0, inside**-0.5, (outside, inside)).astype(np.float32)
        weight = weight if trans else np.ascontiguousarray(weight.T)
        bias = self.random.normal(0, 0.1, outside).astype(np.float32)
        return self.op(
            "Gemm",
            x,
            self.constant(f"{name}_w", weight),
            self.constant(f"{name}_b", bias),
            name=name,
            transB=trans,
        )

    def clip6(self, x: str) -> str:
        name = f"clip{len(self.nodes)}"
        low = self.constant(f"{name}_low", np.float32(0).reshape(()))
        high = self.constant(f"{name}_high", np.float32(6).reshape(()))
        return self.op("Clip", x, low, high, name=name)

    def flatten(self, x: str) -> str:
        return self.op("Flatten", x)

    def save(self, path: Path, *results: str) -> OnnxModel:
        """Ends the net in outputs ``y``, ``y1`` ... and writes it."""
        names = ["y" if i == 0 else f"y{i}" for i in range(len(results))]
        for node in self.nodes:
            for old, new in zip(results, names, strict=True):
                node.input[:] = [new if item == old else item for item in node.input]
                node.output[:] = [new if item == old else item for item in node.output]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, *self.shape])
        ys = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
        graph = helper.make_graph(self.nodes, "net", [x], ys, self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10
        )
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        specs = [TensorSpec("x", (BATCH, *self.shape), "float32")]
        return OnnxModel(
            path,
            tuple(specs),
            tuple(TensorSpec(name, (BATCH,), "float32") for name in names),
            self.opset,
        )

    def feed(self, batch: int, seed: int = 1) -> dict[str, np.ndarray]:
        values = np.random.default_rng(seed).normal(0, 1, (batch, *self.shape))
        return {"x": values.astype(np.float32)}


def classifier(folder: Path, *, opset: int = 20) -> tuple[Net, OnnxModel]:
    """Conv-relu, a residual block, depthwise and Clip6, a downsampling block, pools and a Gemm."""
    net = Net(3, 16, 16, opset=opset)
    x = net.op("Relu", net.conv("x", 3, 8, name="stem"), name="stem_relu")
    y = net.op("Relu", net.conv(x, 8, 8, name="block_a"), name="block_relu")
    x = net.op("Relu", net.op("Add", net.conv(y, 8, 8, name="block_b"), x, name="residual"))
    x = net.op("MaxPool", x, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    x = net.clip6(net.conv(x, 8, 8, groups=8, name="depthwise"))
    y = net.conv(x, 8, 16, name="main", strides=[2, 2])
    z = net.conv(x, 8, 16, kernel=1, name="shortcut", strides=[2, 2])
    x = net.op("Relu", net.op("Add", y, z, name="down"))
    x = net.flatten(net.op("GlobalAveragePool", x, name="gap"))
    return net, net.save(folder / f"classifier{opset}.onnx", net.gemm(x, 16, 10, name="head"))


def attention(net: Net, width: int = 32, heads: int = 2, tokens: int = 6) -> str:
    """A pre-norm transformer block with an attention of `heads`, as torch exports it."""

    def linear(x: str, inside: int, outside: int, name: str) -> str:
        weight = net.random.normal(0, inside**-0.5, (inside, outside)).astype(np.float32)
        bias = net.random.normal(0, 0.1, outside).astype(np.float32)
        product = net.op("MatMul", x, net.constant(f"{name}_w", weight), name=name)
        return net.op("Add", product, net.constant(f"{name}_b", bias))

    def norm(x: str, name: str) -> str:
        ones = net.constant(f"{name}_w", np.ones(width, np.float32))
        zeros = net.constant(f"{name}_b", np.zeros(width, np.float32))
        return net.op("LayerNormalization", x, ones, zeros, name=name)

    split = net.constant("split", np.array([0, tokens, heads, width // heads]))
    merge = net.constant("merge", np.array([0, tokens, width]))
    scale = net.constant("scale", np.float32((width // heads) ** -0.25).reshape(()))
    normed = norm("x", "norm1")
    orders = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
    parts = {
        name: net.op(
            "Transpose", net.op("Reshape", linear(normed, width, width, name), split), perm=order
        )
        for name, order in orders.items()
    }
    query, key = (net.op("Mul", parts[name], scale) for name in ("query", "key"))
    weights = net.op("Softmax", net.op("MatMul", query, key, name="scores"), axis=-1)
    mixed = net.op("MatMul", weights, parts["value"], name="mixed")
    mixed = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), merge)
    x = net.op("Add", "x", linear(mixed, width, width, "proj"))
    hidden = net.op("Gelu", linear(norm(x, "norm2"), width, 2 * width, "fc1"))
    return net.op("Add", x, linear(hidden, 2 * width, width, "fc2"))


def detector(net: Net, folder: Path) -> OnnxModel:
    """A head that only rows whose first value is positive reach, and one for all."""
    ends = [net.constant(name, np.array([n])) for n, name in enumerate(("zero", "one"))]
    first = net.op("Squeeze", net.op("Slice", "x", *ends, ends[1]), ends[1])
    found = net.op("NonZero", net.op("Greater", first, net.constant("least", np.float32(0))))
    rows = net.op("GatherND", "x", net.op("Transpose", found))
    heads = (net.random.normal(0, 1, (6, 8)).astype(np.float32) for _ in range(2))
    names = ("all", "some")
    weights = [net.constant(f"{n}_w", w) for n, w in zip(names, heads, strict=True)]
    outputs = [
        net.op("MatMul", x, w, name=n) for x, w, n in zip(("x", rows), weights, names, strict=True)
    ]
    return net.save(folder / "m.onnx", *outputs)


def run(model: OnnxModel | Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """ONNX Runtime's own outputs, graph optimizations on, but for int8 that would saturate."""
    path = model.path if isinstance(model, OnnxModel) else model
    options = exact_options()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def exact_options() -> onnxruntime.SessionOptions:
    """Of a session that computes what its file says, whatever the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if saturates_int8():
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def run_exactly(model: OnnxModel, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of ONNX's numpy reference, which rounds to float16 after every node.

    ONNX Runtime on a CPU does not: it computes float16 nodes in float32 and drops the Casts between
    them, so it shows neither rounding nor overflow.
    """
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(onnx.load(model.path)).run(None, feeds)


def sqnr(reference: np.ndarray, value: np.ndarray) -> float:
    """Signal to quantization noise, dB."""
    reference, value = np.asarray(reference, np.float64), np.asarray(value, np.float64)
    noise = ((reference - value) ** 2).sum()
    return float(10 * np.log10((reference**2).sum() / noise)) if noise else np.inf


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_classifier_runs_at_every_batch_size(tmp_path: Path, batch: int) -> None:
    net, model = classifier(tmp_path)
    (y,) = run(model, net.feed(batch))
    assert y.shape == (batch, 10)
    assert y.std() > 0.1
