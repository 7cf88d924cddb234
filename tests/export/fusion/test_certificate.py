"""What the proof of a merge rejects, and what it says of the whole model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nets import randomize_norms
from torch import Tensor, nn

import export.fusion as fusion
import export.fusion.branches as branches
from export import fuse
from export.artifacts import Fused, Skip
from export.capture.ladder import export_model
from export.capture.program import capture
from export.capture.signature import describe_call
from export.fusion import fuse_program
from export.fusion.calls import add_call
from export.fusion.certificate import certify, find_doubt
from export.fusion.draft import Draft
from export.fusion.emission import Layer
from export.fusion.options import FusionOptions
from export.fusion.trial import Error, find_fault


class Rep(nn.Module):
    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (self.bn3(self.conv3(x)) + self.bn1(self.conv1(x)) + self.identity(x)).relu()


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms(nn.Sequential(Rep(), Rep())).eval()


def spoil(layer: Layer, how: str) -> Layer:
    weight, padding = layer.weight.clone(), layer.padding
    if how == "scaled":
        weight *= 1.01
    elif how == "channels swapped":
        weight = weight.roll(1, 0)
    elif how == "one tap":
        weight[0, 0, 0, 0] += 1e-3 * weight.abs().max()
    elif how == "not a number":
        weight[0, 0, 0, 0] = torch.nan
    bias = layer.bias + 1e-3 if how == "bias" and layer.bias is not None else layer.bias
    parts = (bias, layer.stride, padding, layer.dilation, layer.groups, layer.border)
    return Layer(weight, *parts)


@pytest.mark.parametrize("how", ["scaled", "channels swapped", "one tap", "not a number", "bias"])
def test_wrong_merge_is_left_with_its_error(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emit = branches.emit_layer
    monkeypatch.setattr(
        branches,
        "emit_layer",
        lambda map_: emit(map_) if map_.kernel.is_meta else spoil(emit(map_), how),
    )
    net, x = make_net(), torch.randn(3, 6, 7, 5)
    result = fuse(net, x)
    assert not [item for item in result.fused if item.kind == "branches"]
    wanted = "does not fit" if how == "not a number" else "merged it"
    assert [skip for skip in result.skipped if wanted in skip.reason and skip.where == "0"]
    torch.testing.assert_close(result.module(x), net(x), rtol=1e-5, atol=1e-5)


def test_what_eager_loses_sets_what_a_merge_may_lose() -> None:
    assert find_fault(Error(1e-16, 3e-7, 1e-7), torch.float32) is None
    assert find_fault(Error(1e-16, 5e-5, 2e-5), torch.float32) is None
    assert "more than 4 times" in str(find_fault(Error(1e-16, 5e-5, 1e-6), torch.float32))
    assert find_fault(Error(1e-16, 5e-6, 1e-7), torch.float32, terms=2304) is None
    assert find_fault(Error(1e-16, 5e-6, 1e-7), torch.float32, terms=9) is not None
    assert find_fault(Error(1e-16, 1e-5, 1e-7), torch.float32, terms=10**9) is not None
    assert "even in float64" in str(find_fault(Error(1e-6, 1e-7, 1e-7), torch.float32))
    assert find_fault(Error(float("nan"), 1e-7, 1e-7), torch.float32) is not None


def test_certificate_counts_the_whole_model_and_is_json() -> None:
    result = fuse(make_net(), torch.randn(2, 6, 7, 5))
    model = result.certificate.model
    assert (model.layers_before, model.layers_after) == (4, 2)
    assert model.parameters_after == 2 * (6 * 6 * 9 + 6)
    assert model.macs_after < model.macs_before
    assert model.error_float32 < 4 * max(model.noise_float32, 1e-7)
    plain = json.loads(json.dumps(result.certificate.as_dict(), allow_nan=False))
    assert plain["fused"][0]["structure"] == "bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x)"
    assert [item["paths"][0] for item in plain["fused"]] == ["0.conv3", "1.conv3"]


class Masked(nn.Module):
    """Half of its answer is minus infinity, which is no error."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).masked_fill(x > 0, -torch.inf)


def test_infinities_in_place_are_no_error_and_others_are_never_taken_for_none() -> None:
    x = {"x": torch.randn(2, 6, 7, 5)}
    good, broken = Masked().eval(), Masked().eval()
    with torch.no_grad():
        broken.net[1].conv3.weight[0, 0, 0, 0] = torch.nan
    program, other = (capture(net, x, keyword=False, dynamic_batch=True) for net in (good, broken))
    same = certify(program, fuse_program(program).program, (), ()).model
    assert same.error_float32 is not None
    assert 0 < same.error_float32 < 1e-5
    lost = certify(program, other, (), ()).model
    assert (lost.error_float32, lost.noise_float32) == (None, None)
    assert "NaN or Inf stand in other places" in str(lost.reason)


def test_outliers_of_merged_weights_are_seen() -> None:
    net = nn.Sequential(Rep()).eval()
    with torch.no_grad():
        net[0].conv3.weight.mul_(0.01)
        net[0].conv1.weight.mul_(0.01)
    weights = fuse(net, torch.randn(2, 6, 7, 5)).fused[0].weights
    assert weights is not None
    assert weights.is_worse  # the identity branch is a hundred times the rest
    assert weights.sqnr_db_before - weights.sqnr_db_after > 20
    with torch.no_grad():
        net[0].identity.weight.zero_()
    calm = fuse(net, torch.randn(2, 6, 7, 5)).fused[0].weights
    assert calm is not None
    assert not calm.is_worse


def test_sizes_that_are_not_known_before_run_time_merge_and_stay_open() -> None:
    net = make_net()
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        net, (torch.randn(2, 6, 8, 9),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    fused = fuse_program(program)
    assert [item.kind for item in fused.certificate.fused] == ["branches", "branches"]
    for shape in ((1, 6, 8, 9), (3, 6, 5, 12), (2, 6, 4, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(fused.program.module()(x), net(x), rtol=1e-5, atol=1e-5)


def test_a_program_that_cannot_run_in_float64_says_so() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("scale", torch.ones(4, 1, 1, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.mul.Tensor(self.conv(x).half(), self.scale).float()

    program = capture(Half().eval(), {"x": torch.randn(2, 3, 6, 6)}, keyword=False,
                      dynamic_batch=True)  # fmt: skip
    model = fuse_program(program).certificate.model
    assert model.error_float32 is not None or model.reason


class Attention(nn.Module):
    """Attention as it is written by hand, with products of two computed tensors."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(8, 24)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(x).chunk(3, -1)
        if self.heads:
            parts = tuple(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k, v = parts
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        if self.heads:
            mixed = mixed.transpose(1, 2).flatten(2)
        return self.out(mixed)


@pytest.mark.parametrize("heads", [0, 2])
def test_products_of_computed_tensors_leave_the_batch_dynamic(heads: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, feeds = Attention(heads).eval(), {"x": torch.randn(2, 6, 8)}
    program = capture(net, feeds, keyword=False, dynamic_batch=True)
    fused = fuse_program(program)
    sizes = [
        node.meta["val"].shape[0] for node in fused.program.graph.nodes if node.name == "linear"
    ]
    assert all(isinstance(size, torch.SymInt) for size in sizes)
    assert not any(size.node.expr.is_number for size in sizes)
    assert fused.certificate.model.macs_before == 6 * (8 * 24 + 2 * 6 * 8 + 8 * 5)
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    exported = export_model(net, feeds, tmp_path, signature=signature, static_batch=False, opset=20)
    assert (exported.rung, exported.dynamic_batch) == ("dynamo", True)


def test_a_format_that_is_named_in_forward_does_not_stop_the_proof() -> None:
    """``.to(torch.float32)`` leaves a check of the format, which a run in float64 would fail."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = torch.ones(x.shape[2], device=x.device).to(torch.float32)
            return self.bn(self.conv(x * scale)).relu()

    torch.manual_seed(0)
    model = fuse(Named().eval(), torch.randn(2, 3, 6, 6)).certificate.model
    assert model.reason is None
    assert model.error_float32 == pytest.approx(0, abs=1e-5)


def _spoil_last(draft: Draft, options: FusionOptions) -> tuple[tuple[Fused, ...], tuple[Skip, ...]]:
    """A rewrite that changes what a merged layer made, after its proof."""
    last = [node for node in draft.graph.nodes if node.target is torch.ops.aten.conv2d.default][-1]
    with draft.graph.inserting_after(last):
        scaled = add_call(last, torch.ops.aten.mul.Scalar, last, 1.01)
    last.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
    return (), ()


def test_a_model_that_is_wrong_as_a_whole_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, x = make_net(), torch.randn(2, 6, 9, 9)
    monkeypatch.setattr(fusion, "PASSES", (*fusion.PASSES, _spoil_last))
    result = fuse(net, x)
    assert not result.fused
    assert result.skipped[0].where == "the whole model"
    assert "off by 1.00e-02 of the largest value" in result.skipped[0].reason
    torch.testing.assert_close(result.module(x), net(x))
    assert result.certificate.model.layers_after == result.certificate.model.layers_before


def test_a_step_that_rounding_crosses_once_is_no_reason_to_leave_a_model() -> None:
    """A model that jumps may be off by all of its range at one input, and by nothing beside it."""
    program = capture(make_net(), {"x": torch.randn(2, 6, 9, 9)}, keyword=False, dynamic_batch=True)
    fused = fuse_program(program)
    jumped = replace(fused.certificate.model, error_float32=1.0)
    assert find_doubt(program, fused.program, jumped) is None
    draft = Draft(fused.program)
    _spoil_last(draft, FusionOptions())
    assert "off by 1.00e+00" in str(find_doubt(program, draft.finish(), jumped))
    unknown = replace(jumped, error_float32=None, noise_float32=None)
    assert find_doubt(program, draft.finish(), unknown) is None
