"""What the exporters leave behind: a Squeeze that takes whatever axis is 1 when it runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from deploy.engines.openvino_core import open_core
from export import export_model
from export.capture.agreement import run_onnx
from export.capture.ladder import Exported
from export.capture.signature import CallSignature, describe_call
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.scheme import NARROW, PRESETS

FEEDS = {"x": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


class Scorer(nn.Module):
    """One number a sample, as it is often written: ``squeeze()`` behind the pool and the head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x).mean((2, 3), keepdim=True).squeeze()
        return self.head(pooled).squeeze()


class InPlace(Scorer):
    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x).mean((2, 3), keepdim=True).squeeze_()
        return self.head(pooled).squeeze_()


class NothingToSqueeze(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze() * 2


def climb(
    module: nn.Module, workdir: Path, *, static_batch: bool = False
) -> tuple[CallSignature, Exported]:
    feeds = {"x": FEEDS["x"][:1]} if static_batch else FEEDS
    signature = describe_call(module, feeds, keyword=False, dynamic_batch=not static_batch)
    exported = export_model(
        module, feeds, workdir, signature=signature, static_batch=static_batch, opset=20
    )
    return signature, exported


def draw(batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("form", ["module", "in place", "script", "trace"])
def test_the_batch_axis_of_a_lone_sample_stays(form: str, tmp_path: Path) -> None:
    net = (InPlace() if form == "in place" else Scorer()).eval()
    made = {"script": torch.jit.script, "trace": lambda m: torch.jit.trace(m, FEEDS["x"])}
    _, exported = climb(made.get(form, lambda m: m)(net), tmp_path)
    assert exported.rung == ("torchscript" if form in made else "dynamo")
    assert exported.attempts == ()
    nodes = onnx.load(exported.onnx.path).graph.node
    assert [len(node.input) for node in nodes if node.op_type == "Squeeze"] == [2, 2]
    for batch in (1, 2, 5):
        x = draw(batch)
        (found,) = run_onnx(exported.onnx, {"x": x.numpy()}).values()
        assert found.shape == (batch,)
        expected = net(x).detach().numpy().reshape(batch)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_openvino_knows_the_rank_of_what_was_squeezed(tmp_path: Path) -> None:
    net = Scorer().eval()
    _, exported = climb(net, tmp_path)
    model = open_core().compile_model(exported.onnx.path, "CPU")
    assert model.outputs[0].get_partial_shape().rank.is_static
    for batch in (1, 3):
        x = draw(batch)
        found = model({"x": x.numpy()})[0]
        assert found.shape == (batch,)
        np.testing.assert_allclose(found, net(x).detach().numpy().reshape(batch), atol=1e-5)


def test_a_squeeze_of_no_axis_moves_nothing(tmp_path: Path) -> None:
    _, exported = climb(NothingToSqueeze(), tmp_path)
    (found,) = run_onnx(exported.onnx, {"x": draw(1).numpy()}).values()
    np.testing.assert_array_equal(found, draw(1).numpy() * 2)


class Wide(nn.Module):
    """Axes that are not 1 stay in torch where they are named: as in diffusers' transformers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1).mean((2, 3), keepdim=True).squeeze((1, 2, 3)) * 2


def test_named_axes_that_are_not_one_stay(tmp_path: Path) -> None:
    _, exported = climb(Wide(), tmp_path)
    assert exported.rung == "dynamo"
    for batch in (1, 3):
        (found,) = run_onnx(exported.onnx, {"x": draw(batch).numpy()}).values()
        expected = 2 * draw(batch).double().mean((2, 3))
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_static_batch_of_one_is_squeezed_as_eager_squeezes_it(tmp_path: Path) -> None:
    signature, exported = climb(Scorer().eval(), tmp_path, static_batch=True)
    assert [spec.shape for spec in signature.outputs] == [()]
    (found,) = run_onnx(exported.onnx, {"x": draw(1).numpy()}).values()
    assert found.shape == ()


class Queried(nn.Module):
    """Attention of learned queries, whose weights of keys and values torch cuts out of one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.queries = nn.Parameter(torch.randn(1, 3, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.queries.expand(x.shape[0], -1, -1), x, x)[0]


@pytest.mark.thorough
def test_weights_that_are_cut_out_of_one_are_stored_and_run_in_int8(tmp_path: Path) -> None:
    net = Queried().eval()
    feeds = {"x": torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))}
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    options = {"signature": signature, "static_batch": False, "opset": 20}
    exported = export_model(net, feeds, tmp_path, **options)
    nodes = onnx.load(exported.onnx.path).graph.node
    assert not [node for node in nodes if node.op_type == "Split" and len(node.output) == 2]
    wanted = net.double()(feeds["x"].double()).detach().numpy()
    arrays = {"x": feeds["x"].numpy()}
    (found,) = run_onnx(exported.onnx, arrays).values()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    ranges = calibrate(exported.onnx, [arrays])
    scheme = replace(PRESETS["openvino"], weight_levels=NARROW)
    result = quantize_int8(exported.onnx, ranges, scheme, tmp_path / "int8.onnx")
    assert not [skip for skip in result.skipped if "constant" in skip.reason]
    core = open_core()
    graph = core.read_model(result.model.path)
    graph.reshape([4, 5, 8])
    (found,) = core.compile_model(graph, "CPU")([arrays["x"]]).values()
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


class Decoder(nn.Module):
    """Attention to a memory, twice of the same weights, and once of others with equal biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        memory = x.flip(1) * 2
        for attention in (self.first, self.first, self.second):
            x = x + attention(x, memory, memory, need_weights=False)[0]
        return x + self.second(x, x, x, need_weights=False)[0]


@pytest.mark.thorough
def test_projections_of_queries_and_of_a_memory_have_constant_weights(tmp_path: Path) -> None:
    net = Decoder().eval()
    assert torch.equal(net.first.in_proj_bias, net.second.in_proj_bias)
    feeds = {"x": torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))}
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    options = {"signature": signature, "static_batch": False, "opset": 20}
    exported = export_model(net, feeds, tmp_path, **options)
    graph = onnx.load(exported.onnx.path).graph
    assert not [node for node in graph.node if node.op_type == "Split"]
    stored = {constant.name for constant in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    weighted = [node for node in products if node.input[1] in stored]
    # q, kv and out of three, but one kv is computed once; qkv and out of one; scores are 8 others
    assert len(weighted) == 10
    assert len(products) == 10 + 8
    wanted = net.double()(feeds["x"].double()).detach().numpy()
    arrays = {"x": feeds["x"].numpy()}
    (found,) = run_onnx(exported.onnx, arrays).values()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    scheme = replace(PRESETS["onnxruntime"], weight_levels=NARROW)
    ranges = calibrate(exported.onnx, [arrays])
    result = quantize_int8(exported.onnx, ranges, scheme, tmp_path / "int8.onnx")
    (found,) = run_onnx(result.model, arrays).values()
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.thorough
def test_a_weight_that_is_split_and_returned_is_both(tmp_path: Path) -> None:
    class Returned(Queried):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), self.attention.in_proj_weight

    net = Returned().eval()
    feeds = {"x": torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))}
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    options = {"signature": signature, "static_batch": False, "opset": 20}
    exported = export_model(net, feeds, tmp_path, **options)
    assert exported.rung == "dynamo"
    found = run_onnx(exported.onnx, {"x": feeds["x"].numpy()}).values()
    for one, wanted in zip(found, net.double()(feeds["x"].double()), strict=True):
        np.testing.assert_allclose(one, wanted.detach().numpy(), atol=1e-5)
