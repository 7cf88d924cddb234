import copy

import numpy as np
import onnx
import pytest
import torch
from nets import Anchored, bottleneck_net, randomize_norms
from torch import nn

from export import export_model
from export.artifacts import Skip
from export.capture.agreement import run_onnx
from export.capture.ladder import RUNGS
from export.capture.program import capture
from export.capture.signature import describe_call
from export.errors import ExportError


def climb(module, feeds, workdir, *, keyword=False, static_batch=False, **options):
    signature = describe_call(module, feeds, keyword=keyword, dynamic_batch=not static_batch)
    exported = export_model(
        module,
        feeds,
        workdir,
        signature=signature,
        static_batch=static_batch,
        opset=20,
        **options,
    )
    return signature, exported


def assert_repeats(signature, exported, module, feeds):
    expected = signature.call(module, feeds)
    found = run_onnx(exported.onnx, {name: value.numpy() for name, value in feeds.items()})
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.detach().numpy(), rtol=1e-3, atol=1e-4)


def test_a_detector_that_keeps_its_anchors_takes_any_batch(tmp_path):
    """It has been called at the traced batch before it is captured."""
    net = Anchored().eval()
    signature, exported = climb(net, {"x": torch.randn(2, 3, 4, 6)}, tmp_path)
    assert (exported.rung, exported.dynamic_batch) == ("dynamo", True)
    for batch in (1, 2, 5):
        assert_repeats(signature, exported, net, {"x": torch.randn(batch, 3, 4, 6)})


class Normalizes(nn.Module):
    """Writes to both of its inputs, and returns one of them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x, hidden):
        x.sub_(0.5).div_(0.25)
        hidden.logical_not_()
        return self.layer(x).relu_() * hidden, x


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("scripted", [False, True])
def test_a_module_that_writes_to_its_inputs_is_exported(tmp_path, scripted):
    module = Normalizes().eval()
    feeds = {"x": torch.rand(2, 3, 6, 6), "hidden": torch.rand(2, 4, 1, 1) > 0.5}
    kept = {name: value.clone() for name, value in feeds.items()}
    called = torch.jit.script(module) if scripted else module
    signature = describe_call(
        called, {n: v.clone() for n, v in feeds.items()}, keyword=False, dynamic_batch=True
    )
    exported = export_model(
        called, feeds, tmp_path, signature=signature, static_batch=False, opset=20
    )
    assert exported.rung == ("torchscript" if scripted else "dynamo")
    assert exported.dynamic_batch
    assert all(torch.equal(feeds[name], value) for name, value in kept.items())
    found = run_onnx(exported.onnx, {name: value.numpy() for name, value in kept.items()})
    wide = copy.deepcopy(module).double()
    with torch.no_grad():
        expected = wide(kept["x"].double(), kept["hidden"].clone())
    for values, exact in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(values, exact.numpy(), rtol=0, atol=1e-5)


def test_rungs_stand_in_their_order():
    assert [rung.name for rung in RUNGS] == [
        "dynamo",
        "dynamo-strict",
        "dynamo-static",
        "torchscript",
        "torchscript-static",
    ]


def test_ordinary_net_holds_on_the_first_rung(tmp_path, capfd):
    net = bottleneck_net()
    told = []
    signature, exported = climb(
        net, {"x": torch.randn(2, 3, 32, 32)}, tmp_path, progress=told.append
    )
    assert (exported.rung, exported.attempts, exported.dynamic_batch) == ("dynamo", (), True)
    assert len(exported.fused) == 9
    assert exported.fusion is not None
    assert exported.fusion.error_float32 <= 4 * exported.fusion.noise_float32
    assert exported.program is not None
    assert told[-1].done == told[-1].total
    assert capfd.readouterr() == ("", "")
    assert_repeats(signature, exported, net, {"x": torch.randn(5, 3, 32, 32)})


class Probability(nn.Module):
    """One probability a sample."""

    def forward(self, x):
        return torch.sigmoid(x.sum(-1))


@pytest.mark.parametrize("logit", [-8.0, -12.0, -15.0])
def test_a_lone_probability_near_zero_does_not_cost_the_dynamic_batch(tmp_path, logit):
    x = torch.tensor([[logit, 0.013, -0.17], [1.3, -0.4, 0.21]])
    signature, exported = climb(Probability().eval(), {"x": x}, tmp_path)
    assert (exported.rung, exported.dynamic_batch) == ("dynamo", True)
    assert_repeats(signature, exported, Probability(), {"x": x.repeat(3, 1)})


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) if x.abs().sum() > 0 else x


def test_control_flow_on_data_ends_on_torchscript_with_the_reasons_kept(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), DataDependent())
    signature, exported = climb(net, {"x": torch.randn(2, 4)}, tmp_path)
    assert exported.rung == "torchscript"
    assert exported.dynamic_batch
    assert [attempt.rung for attempt in exported.attempts] == [r.name for r in RUNGS[:3]]
    assert "at '1'" in exported.attempts[0].error
    assert all("ata-dependent" in attempt.error for attempt in exported.attempts)
    assert [skip.what for skip in exported.skipped] == ["fusion"]
    assert_repeats(signature, exported, net, {"x": torch.randn(3, 4)})


def test_model_that_fixes_its_batch_ends_on_the_static_rung(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, -1) * 2

    signature, exported = climb(Fixed(), {"x": torch.randn(2, 4)}, tmp_path)
    assert (exported.rung, exported.dynamic_batch) == ("dynamo-static", False)
    assert exported.onnx.inputs[0].shape == (2, 4)
    assert len(exported.attempts) == 2
    assert_repeats(signature, exported, Fixed(), {"x": torch.randn(2, 4)})


def test_static_batch_on_request(tmp_path):
    _, exported = climb(nn.Linear(4, 4), {"x": torch.randn(1, 4)}, tmp_path, static_batch=True)
    assert exported.rung == "dynamo-static"
    assert exported.onnx.inputs[0].shape == (1, 4)


class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids, mask):
        pooled = (self.embedding(ids) * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return {"logits": self.head(pooled), "aux": (pooled, None, 3, [ids, pooled.argmax(1)])}


@pytest.mark.parametrize("order", [("ids", "mask"), ("mask", "ids")])
def test_several_integer_inputs_and_nested_outputs(tmp_path, order):
    torch.manual_seed(0)
    both = {"ids": torch.randint(0, 50, (2, 6)), "mask": torch.ones(2, 6)}
    feeds = {name: both[name] for name in order}
    net = Embedder()
    signature, exported = climb(net, feeds, tmp_path, keyword=True)
    assert exported.rung == "dynamo"
    names = [spec.name for spec in exported.onnx.outputs]
    assert names == ["logits", "aux.0", "aux.3.0", "aux.3.1"]
    assert [spec.name for spec in exported.onnx.inputs] == list(order)
    assert_repeats(signature, exported, net, {name: feeds[name][:1] for name in order})


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_model_goes_straight_to_the_last_exporter(tmp_path):
    torch.manual_seed(0)
    script = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    signature, exported = climb(script, {"x": torch.randn(2, 3, 6, 6)}, tmp_path)
    assert (exported.rung, exported.attempts, exported.program) == ("torchscript", (), None)
    assert exported.skipped == (
        Skip("(model)", "fusion", "TorchScript models are exported as they are"),
    )
    assert {value.dtype for value in script.parameters()} == {torch.float32}
    assert_repeats(signature, exported, script, {"x": torch.randn(3, 3, 6, 6)})


def make_small_net(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    return randomize_norms(net, seed).eval()


def test_given_program_is_the_capture_of_the_first_rung(tmp_path):
    net = make_small_net(seed=0)
    feeds = {"x": torch.randn(2, 3, 8, 8)}
    program = capture(net, feeds, keyword=False, dynamic_batch=True)
    _, exported = climb(net, feeds, tmp_path, program=program)
    assert (exported.rung, len(exported.fused)) == ("dynamo", 1)


def test_wrong_program_is_caught_and_the_next_rung_taken(tmp_path):
    net = make_small_net(seed=0)
    feeds = {"x": torch.randn(2, 3, 8, 8)}
    wrong = capture(make_small_net(seed=1), feeds, keyword=False, dynamic_batch=True)
    signature, exported = climb(net, feeds, tmp_path, program=wrong)
    assert exported.rung == "dynamo-strict"
    assert "The exported model is wrong: output 'output' at batch 1" in exported.attempts[0].error
    assert_repeats(signature, exported, net, feeds)


def test_batch_baked_in_by_tracing_is_caught(tmp_path):
    class Baked(nn.Module):
        def forward(self, x):
            return x / int(x.shape[0]) if x.abs().sum() > 0 else x

    signature, exported = climb(Baked(), {"x": torch.randn(2, 4)}, tmp_path)
    assert (exported.rung, exported.dynamic_batch) == ("torchscript-static", False)
    assert exported.attempts[-1].error.startswith("The exported model is wrong: output 'output' at")
    assert_repeats(signature, exported, Baked(), {"x": torch.randn(2, 4)})


def test_all_rungs_failing_lists_each_reason_in_a_line(tmp_path):
    class Impossible(nn.Module):
        def forward(self, x):
            return torch.from_numpy(np.linalg.svd(x.detach().numpy())[1])

    with pytest.raises(ExportError) as caught:
        climb(Impossible(), {"x": torch.randn(2, 3, 3)}, tmp_path)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [rung.name for rung in RUNGS]


def test_caller_model_is_not_changed(tmp_path):
    net = make_small_net(seed=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    climb(net, {"x": torch.randn(2, 3, 8, 8)}, tmp_path)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_file_passes_the_checker(tmp_path):
    _, exported = climb(nn.Linear(4, 4), {"x": torch.randn(2, 4)}, tmp_path)
    onnx.checker.check_model(str(exported.onnx.path), full_check=True)


class Half(nn.Module):
    """float32 outside, a narrower format inside, as checkpoints of large models are wrapped."""

    def __init__(self, dtype):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).to(dtype)
        self.dtype = dtype

    def forward(self, x):
        return self.body(x.to(self.dtype)).float().mean((2, 3))


def test_weights_of_half_precision_are_held_to_what_half_precision_loses(tmp_path):
    torch.manual_seed(0)
    net = Half(torch.float16).eval()
    x = torch.randn(2, 3, 9, 11)
    _, exported = climb(net, {"x": x}, tmp_path)
    assert (exported.rung, exported.attempts) == ("dynamo", ())
    found = run_onnx(exported.onnx, {"x": x.numpy()})["output"]
    wide = net.double()
    wide.dtype = torch.float64
    expected = wide.body(x.double()).mean((2, 3)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_format_without_kernels_is_named_with_the_way_out(tmp_path, dtype):
    net = nn.Conv2d(3, 4, 3).to(dtype).eval()
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ExportError, match=rf"It computes in {name}.*module.float\(\)"):
        climb(net, {"x": torch.randn(2, 3, 9, 9).to(dtype)}, tmp_path)


class CastInside(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.conv, self.dtype = nn.Conv2d(3, 4, 3), dtype

    def forward(self, x):
        return self.conv(x).to(self.dtype).relu().to(x.dtype) + 1


def test_so_is_one_that_only_forward_casts_to(tmp_path):
    """ONNX Runtime names the node that it has no kernel for, and not in which format."""
    feeds = {"x": torch.randn(2, 3, 9, 9)}
    with pytest.raises(ExportError, match=r"It computes in bfloat16.*module.float\(\)"):
        climb(CastInside(torch.bfloat16).eval(), feeds, tmp_path)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths + 1, batch_first=True)
        return self.lstm(packed)[1][0][-1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_packed_sequences_are_named_with_the_way_out(tmp_path, capfd):
    feeds = {"x": torch.randn(2, 6, 4), "lengths": torch.tensor([5, 3])}
    with pytest.raises(ExportError, match="padded batch as it is, and pick"):
        climb(Packed().eval(), feeds, tmp_path)
    assert capfd.readouterr() == ("", "")
