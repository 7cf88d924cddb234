import re

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from nets import bottleneck_net
from torch import nn

from export import fuse_program, to_onnx
from export.capture.program import capture
from export.errors import ExportError
from export.onnx.exporter import torchscript_to_onnx, write_onnx


def run(model, feeds):
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in feeds.items()})


def export(net, x, path, **options):
    program = fuse_program(capture(net, {"x": x}, keyword=False, dynamic_batch=True)).program
    names = {"input_names": ["image"], "output_names": ["logits"], **options}
    return to_onnx(program, path / "model.onnx", **names)


@pytest.fixture(scope="module")
def fused():
    """A network, and its program as `to_onnx` takes it."""
    net, x = bottleneck_net(), torch.randn(2, 3, 32, 32)
    return net, fuse_program(capture(net, {"x": x}, keyword=False, dynamic_batch=True)).program


@pytest.fixture(scope="module")
def exported(fused, tmp_path_factory):
    net, program = fused
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return net, to_onnx(program, path, input_names=["image"], output_names=["logits"])


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_onnx_equals_eager_at_every_batch(exported, batch):
    net, model = exported
    x = torch.randn(batch, 3, 32, 32)
    (found,) = run(model, {"image": x})
    expected = net.double()(x.double()).detach().numpy()
    net.float()
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5


def test_names_axes_and_opset_are_as_asked(exported):
    _, model = exported
    assert [str(spec) for spec in model.inputs] == ["image:batchx3x32x32:float32"]
    assert [str(spec) for spec in model.outputs] == ["logits:batchx10:float32"]
    proto = onnx.load(model.path)
    assert model.opset == 20 == proto.opset_import[0].version
    axes = {d.dim_param for v in proto.graph.value_info for d in v.type.tensor_type.shape.dim}
    assert axes <= {"", "batch"}


def test_file_is_single_and_keeps_the_users_module_paths(exported):
    _, model = exported
    assert [path.name for path in model.path.parent.iterdir()] == ["model.onnx"]
    proto = onnx.load(model.path)
    props = [{p.key: p.value for p in node.metadata_props} for node in proto.graph.node]
    scopes = [p["pkg.torch.onnx.name_scopes"] for p in props]
    assert any("'stages.1.0.conv1'" in scope for scope in scopes)
    assert all("pkg.torch.onnx.stack_trace" not in p for p in props)
    lines = [p["deploykit.source"] for p in props if "deploykit.source" in p]
    assert len(lines) > 0.9 * len(props)
    assert all(re.fullmatch(r"nets\.py:\d+", line) for line in lines), lines
    assert "stages.1.0.conv1.weight" in {tensor.name for tensor in proto.graph.initializer}


def test_the_float_model_keeps_the_mean_of_the_exporter(exported):
    operators = [node.op_type for node in onnx.load(exported[1].path).graph.node]
    assert operators.count("ReduceMean") == 1
    assert "GlobalAveragePool" not in operators
    assert "BatchNormalization" not in operators


def test_inputs_by_name_are_not_confused(tmp_path):
    class Difference(nn.Module):
        def forward(self, a, b):
            return a - b

    a, b = torch.randn(2, 3), torch.randn(2, 3)
    program = capture(Difference(), {"b": b, "a": a}, keyword=True, dynamic_batch=True)
    model = to_onnx(program, tmp_path / "m.onnx", input_names=["a", "b"], output_names=["y"])
    assert [spec.name for spec in model.inputs] == ["a", "b"]
    np.testing.assert_allclose(run(model, {"a": a, "b": b})[0], (a - b).numpy())


def test_constants_among_the_outputs_are_left_out(tmp_path):
    class Mixed(nn.Module):
        def forward(self, x):
            return {"y": x * 2, "scale": 3, "none": None, "z": x}

    x = torch.randn(2, 3)
    model = export(Mixed(), x, tmp_path, output_names=["y", "z"])
    y, z = run(model, {"image": x})
    np.testing.assert_allclose(y, 2 * x.numpy())
    np.testing.assert_allclose(z, x.numpy())


class BiasedAttention(nn.Module):
    """Attention with a trained bias of position, as T5 and Swin have it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.bias = nn.Linear(12, 36), nn.Linear(12, 5), nn.Embedding(7, 3)

    def forward(self, x):
        batch, length, _ = x.shape
        parts = self.qkv(x).view(batch, length, 3, 3, 4).permute(2, 0, 3, 1, 4)
        bias = self.bias(torch.arange(length)).T[None, :, None, :]
        attended = nn.functional.scaled_dot_product_attention(*parts, attn_mask=bias)
        return self.out(attended.transpose(1, 2).reshape(batch, length, 12))


@pytest.mark.parametrize("batch", [1, 3])
def test_attention_with_a_trained_bias_is_exported(tmp_path, batch):
    torch.manual_seed(1)
    net = BiasedAttention().eval()
    model = export(net, torch.randn(2, 7, 12), tmp_path)
    x = torch.randn(batch, 7, 12)
    (found,) = run(model, {"image": x})
    expected = net.double()(x.double()).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


class ImagesOfBytes(nn.Module):
    """A permutation puts channels last in memory, and convolutions keep them there."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(8, 5)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return self.head(self.pool(self.conv(x.permute(0, 3, 1, 2))).flatten(1))


@pytest.mark.parametrize("batch", [1, 3])
def test_pool_of_channels_last_is_a_mean_and_no_gather(tmp_path, batch):
    torch.manual_seed(2)
    net = ImagesOfBytes().eval()
    model = export(net, torch.randn(2, 7, 9, 3), tmp_path)
    kinds = [node.op_type for node in onnx.load(model.path).graph.node]
    assert kinds == ["Transpose", "Conv", "ReduceMean", "Reshape", "Gemm"]
    x = torch.randn(batch, 7, 9, 3)
    (found,) = run(model, {"image": x})
    expected = net.double()(x.double()).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_graph_of_a_refused_operator_does_not_reach_the_terminal(tmp_path, capfd):
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x).abs()

    with pytest.raises(ExportError, match="fft_rfft"):
        torchscript_to_onnx(
            Spectrum(),
            {"x": torch.randn(2, 8)},
            tmp_path / "m.onnx",
            input_names=["x"],
            output_names=["y"],
            keyword=False,
            dynamic_batch=True,
            opset=20,
        )
    assert capfd.readouterr() == ("", "")


@pytest.mark.thorough
@pytest.mark.parametrize("opset", [18, 21, 23])
def test_other_opsets_are_written(tmp_path, fused, opset):
    net, program = fused
    x = torch.randn(2, 3, 32, 32)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    model = to_onnx(program, tmp_path / "model.onnx", opset=opset, **names)
    assert model.opset == opset
    np.testing.assert_allclose(run(model, {"image": x})[0], net(x).detach(), rtol=1e-3, atol=1e-4)


def test_large_weights_go_to_a_file_beside(tmp_path, exported):
    path = tmp_path / "model.onnx"
    write_onnx(ir.load(exported[1].path), path, inline_limit=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    x = torch.randn(2, 3, 32, 32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": x.numpy()})
    assert np.array_equal(found, run(exported[1], {"image": x})[0])


def test_nothing_reaches_the_terminal(tmp_path, capfd):
    net, x = bottleneck_net(), torch.randn(2, 3, 32, 32)
    export(net, x, tmp_path)
    options = {"input_names": ["x"], "output_names": ["y"], "keyword": False}
    torchscript_to_onnx(net, {"x": x}, tmp_path / "t.onnx", dynamic_batch=True, opset=20, **options)
    assert capfd.readouterr() == ("", "")


def test_operator_without_onnx_form_is_an_export_error(tmp_path):
    class Unknown(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real

    with pytest.raises(ExportError, match="ONNX exporter failed"):
        export(Unknown(), torch.randn(2, 3, 3), tmp_path)


def test_wrong_number_of_outputs_is_an_export_error(tmp_path):
    with pytest.raises(ExportError, match="returns"):
        export(nn.Linear(3, 3), torch.randn(2, 3), tmp_path, output_names=["y", "z"])


def test_torchscript_file_has_the_same_names_and_numbers(tmp_path):
    net, x = bottleneck_net(), torch.randn(2, 3, 32, 32)
    model = torchscript_to_onnx(
        net,
        {"x": x},
        tmp_path / "model.onnx",
        input_names=["image"],
        output_names=["logits"],
        keyword=True,
        dynamic_batch=True,
        opset=21,
    )
    assert model.opset == 20
    assert [str(spec) for spec in model.outputs] == ["logits:batchx10:float32"]
    assert "fc.weight" in {tensor.name for tensor in onnx.load(model.path).graph.initializer}
    x = torch.randn(3, 3, 32, 32)
    np.testing.assert_allclose(run(model, {"image": x})[0], net(x).detach(), rtol=1e-3, atol=1e-4)


class Named(nn.Module):
    """Returns what it computes last under `keys`, its weight and its input beside them."""

    def __init__(self, *keys: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.linear, self.keys = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4), keys

    def forward(self, x):
        y = torch.relu(self.linear(x)) @ self.weight
        z = torch.relu(y) + self.linear(y)
        results = (y, z, z, x, self.weight)
        return dict(zip(self.keys, results, strict=False))


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(
    "keys",
    [
        ("weight", "linear.weight"),
        ("relu", "linear"),
        ("linear", "relu_1", "add", "matmul", "val_0"),
        ("first", "second", "again", "input", "kernel"),
    ],
)
def test_outputs_may_be_called_as_weights_and_values_in_between(keys, dynamo, tmp_path):
    net, x = Named(*keys).eval(), torch.randn(3, 4)
    names = {"input_names": ["x"], "output_names": list(keys)}
    if dynamo:
        model = export(net, x, tmp_path, **names)
    else:
        options = {"keyword": False, "dynamic_batch": True, "opset": 20}
        model = torchscript_to_onnx(net, {"x": x}, tmp_path / "m.onnx", **names, **options)
    assert [spec.name for spec in model.outputs] == list(keys)
    wanted = {key: value.detach().numpy() for key, value in net.double()(x.double()).items()}
    for found, (key, value) in zip(run(model, {"x": x}), wanted.items(), strict=True):
        np.testing.assert_allclose(found, value, atol=1e-5, err_msg=key)
