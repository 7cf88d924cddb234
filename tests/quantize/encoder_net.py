"""A transformer's encoder layer in ONNX, with random weights, for tests."""

from pathlib import Path

import numpy as np
from test_nets import Net

from export.artifacts import OnnxModel

WIDTH, HEADS, LENGTH, CLASSES = 96, 4, 7, 5


def encoder(folder: Path, *, opset: int = 20, norms: str = "node") -> tuple[Net, OnnxModel]:
    """Self-attention and a feed-forward part, residuals, norms, the mean of the tokens, a Gemm.

    Args:
        folder: where the file goes.
        opset: of the model.
        norms: ``node``: LayerNormalization. ``parts``: Pow, ReduceMean, Sqrt, Div.
    """
    net = Net(LENGTH, WIDTH, opset=opset)
    x = _attend(net, "x")
    x = _norm(net, net.op("Add", x, "x"), "norm1", norms)
    y = net.op("Gelu", _linear(net, x, WIDTH, 2 * WIDTH, "up"))
    y = _linear(net, y, 2 * WIDTH, WIDTH, "down")
    x = _norm(net, net.op("Add", x, y), "norm2", norms)
    tokens = net.constant("tokens", np.array([1], np.int64))
    x = net.op("ReduceMean", x, tokens, keepdims=0, name="pool")
    return net, net.save(folder / f"encoder{opset}{norms}.onnx", net.gemm(x, WIDTH, 61))


def _linear(net: Net, x: str, inside: int, outside: int, name: str) -> str:
    weight = net.random.normal(0, inside**-0.5, (inside, outside)).astype(np.float32)
    bias = net.random.normal(0, 0.1, outside).astype(np.float32)
    product = net.op("MatMul", x, net.constant(f"{name}_w", weight), name=name)
    return net.op("Add", product, net.constant(f"{name}_b", bias), name=f"{name}_add")


def _attend(net: Net, x: str) -> str:
    split = net.constant("split", np.array([0, LENGTH, HEADS, WIDTH // HEADS], np.int64))
    merge = net.constant("merge", np.array([0, LENGTH, WIDTH], np.int64))
    q, k, v = (
        net.op("Reshape", _linear(net, x, WIDTH, WIDTH, name), split) for name in ("q", "k", "v")
    )
    q, v = (net.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, v))
    k = net.op("Transpose", k, perm=[0, 2, 3, 1])
    scale = net.constant("root", np.float32((WIDTH / HEADS) ** -0.5).reshape(()))
    scores = net.op("Mul", net.op("MatMul", q, k, name="scores"), scale)
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1, name="softmax"), v, name="mixed")
    mixed = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), merge)
    return _linear(net, mixed, WIDTH, WIDTH, "out")


def _norm(net: Net, x: str, name: str, kind: str) -> str:
    scale = net.constant(f"{name}_scale", net.random.uniform(0.5, 2, WIDTH).astype(np.float32))
    shift = net.constant(f"{name}_shift", net.random.normal(0, 1, WIDTH).astype(np.float32))
    if kind == "node":
        return net.op("LayerNormalization", x, scale, shift, name=name, epsilon=1e-12)
    axes = net.constant(f"{name}_axes", np.array([-1], np.int64))
    two = net.constant(f"{name}_two", np.float32(2).reshape(()))
    tiny = net.constant(f"{name}_eps", np.float32(1e-12).reshape(()))
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes, name=f"{name}_mean"))
    square = net.op("Pow", centred, two, name=f"{name}_square")
    variance = net.op("ReduceMean", square, axes, name=f"{name}_variance")
    root = net.op("Sqrt", net.op("Add", variance, tiny, name=f"{name}_guard"), name=f"{name}_root")
    unit = net.op("Div", centred, root, name=f"{name}_unit")
    return net.op("Add", net.op("Mul", unit, scale), shift)
