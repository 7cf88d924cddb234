import logging
import sys
import warnings

import pytest
import torch
from torch import nn

from export.capture.dynamic_axes import FixedBatchError
from export.capture.program import capture, condense_error, contain_noise
from export.errors import ExportError


def test_batch_is_symbolic_for_every_input_of_that_size():
    class Three(nn.Module):
        def forward(self, a, b, table):
            return a + b + table.sum()

    feeds = {"a": torch.randn(2, 3), "b": torch.randn(2, 3), "table": torch.randn(5)}
    program = capture(Three(), feeds, keyword=False, dynamic_batch=True)
    module = program.module()
    a, b = torch.randn(7, 3), torch.randn(7, 3)
    assert module(a, b, feeds["table"]).shape == (7, 3)


def test_static_capture_keeps_the_size():
    program = capture(nn.Linear(3, 3), {"x": torch.randn(2, 3)}, keyword=False, dynamic_batch=False)
    assert not program.range_constraints


def test_module_with_any_number_of_arguments():
    class Any(nn.Module):
        def forward(self, first, *rest):
            return first + sum(rest)

    feeds = {name: torch.randn(2, 3) for name in "abc"}
    program = capture(Any(), feeds, keyword=False, dynamic_batch=True)
    assert program.module()(*(torch.ones(5, 3) for _ in range(3))).shape == (5, 3)


@pytest.mark.parametrize("strict", [False, True])
def test_further_arguments_that_nobody_gives_are_no_inputs(strict):
    """As with the networks of ultralytics, which hand them to the loss and to options."""

    class Detector(nn.Module):
        def forward(self, x, *args, augment=False, **kwargs):
            return x.flip(0) if augment else x * 2

    program = capture(
        Detector(), {"x": torch.randn(2, 3)}, keyword=False, dynamic_batch=True, strict=strict
    )
    assert program.module()(torch.ones(5, 3)).shape == (5, 3)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("names", [("x", "gain", "bias"), ("bias", "x", "gain")])
def test_inputs_without_a_parameter_of_their_own_have_a_dynamic_batch(names, strict):
    class Wrapper(nn.Module):
        def forward(self, x, *rest, **named):
            return (x - named["bias"]) * named["gain"].sum(-1, keepdim=True)

    net, feeds = Wrapper(), {name: torch.randn(2, 3) for name in names}
    program = capture(net, feeds, keyword=True, dynamic_batch=True, strict=strict)
    assert program.graph_signature.user_inputs == names
    assert "forward" not in vars(net)
    other = {name: torch.randn(7, 3) for name in names}
    expected = (other["x"] - other["bias"]) * other["gain"].sum(-1, keepdim=True)
    torch.testing.assert_close(program.module()(**other), expected, rtol=0, atol=0)


def test_fixed_batch_is_refused_and_not_silently_static():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, -1)

    with pytest.raises(FixedBatchError, match="makes a constant, 2, of the size of the batch"):
        capture(Fixed(), {"x": torch.randn(2, 3)}, keyword=False, dynamic_batch=True)


class Halves(nn.Module):
    """Attention of tokens to their own first halves, tokens in front of samples as torch has it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 4, kdim=8, vdim=8, batch_first=True)

    def forward(self, x):
        half = x[..., :8]
        return self.attention(x, half, half)[0]


@pytest.mark.thorough
def test_a_batch_that_strides_happen_to_fit_is_no_constant():
    """Without gradients torch compares strides: 16 of a row are 8 times a batch of 2."""
    net = Halves().eval().requires_grad_(False)
    program = capture(net, {"x": torch.randn(2, 5, 16)}, keyword=False, dynamic_batch=True)
    wide = Halves().eval().double()
    for batch in (1, 2, 3, 11, 12):
        x = torch.randn(batch, 5, 16)
        found = program.module()(x)
        torch.testing.assert_close(found.double(), wide(x.double()), rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_error_names_the_users_module():
    class Inner(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Inner()))
    said = (
        r"at '1\.0' \(test_capture\.py, line \d+: return x if x\.sum\(\) > 0 else -x\): .*data-dep"
    )
    with pytest.raises(ExportError, match=said) as caught:
        capture(net, {"x": torch.randn(2, 3)}, keyword=False, dynamic_batch=True)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_torchscript_is_refused_with_the_way_out():
    script = torch.jit.script(nn.Linear(3, 3))
    with pytest.raises(ExportError, match="use the TorchScript exporter"):
        capture(script, {"x": torch.randn(2, 3)}, keyword=False, dynamic_batch=True)


def test_noise_is_contained_inside_the_block_only(capsys, caplog):
    logger = logging.getLogger("torch.onnx")
    with contain_noise():
        print("printed")
        print("printed", file=sys.stderr)
        logger.warning("logged")
        warnings.warn("warned", FutureWarning, stacklevel=1)
    assert capsys.readouterr() == ("", "")
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", UserWarning, stacklevel=1)
    print("back")
    assert capsys.readouterr().out == "back\n"


def test_loggers_come_back_after_an_error():
    logger = logging.getLogger("torch")
    before = list(logger.handlers), logger.propagate
    with pytest.raises(KeyError), contain_noise():
        raise KeyError("x")
    assert (list(logger.handlers), logger.propagate) == before


def test_condensed_error_is_one_line():
    assert condense_error(ValueError("\n\n first \n second\nthird")) == "ValueError: first second"
    assert len(condense_error(ValueError("x" * 1000))) == 300


class DecidesByValue(nn.Module):
    def forward(self, x):
        return x[:, : int(x.abs().sum())]


def test_a_frame_of_our_own_is_not_named_as_the_cause():
    with pytest.raises(ExportError) as caught:
        capture(DecidesByValue(), {"x": torch.randn(2, 3)}, keyword=False, dynamic_batch=True)
    assert "decided_sizes.py" in str(caught.value.__cause__)
    assert condense_error(ValueError("a\n" + str(caught.value.__cause__))).count("Caused by") == 0
    said = condense_error(
        ValueError("Caused by: if k:  # a.py:3 (export/x/decided_sizes.py:8 in listen)")
    )
    assert said == "ValueError: Caused by: if k:  # a.py:3"


class Cache:
    """Keys and values in an object of its own, which no pytree knows."""

    def __init__(self, keys):
        self.keys = keys


class WithCache(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, scale=2.0):
        return {
            "logits": self.head(x) * scale,
            "cache": Cache(x),
            "width": 4,
            "rest": (None, x + 1),
        }


def test_what_torch_knows_nothing_of_is_left_out_of_the_result():
    torch.manual_seed(0)
    net = WithCache().eval()
    program = capture(net, {"x": torch.randn(2, 4)}, keyword=True, dynamic_batch=True)
    assert not net._forward_hooks
    x = torch.randn(5, 4)
    found, expected = program.module()(x=x), net(x)
    assert torch.equal(found["logits"], expected["logits"])
    assert torch.equal(found["rest"][1], expected["rest"][1])
    assert (found["cache"], found["width"], found["rest"][0]) == (None, 4, None)
    assert isinstance(expected["cache"], Cache)


class SequenceToSequence(nn.Module):
    """torch's own Transformer; its decoder asks what values its mask has."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(12, 2, 1, 1, 20, batch_first=True)

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.transformer(source, target, tgt_mask=mask)


ONE_PIECE = {
    "aten._transformer_encoder_layer_fwd.default",
    "aten._native_multi_head_attention.default",
}
"""Kernels of torch that ONNX has no form of."""


@pytest.mark.thorough
@pytest.mark.parametrize("strict", [False, True])
def test_transformer_with_a_mask_is_captured(strict):
    torch.manual_seed(0)
    net = SequenceToSequence().eval()
    asked = nn.modules.transformer._detect_is_causal_mask
    feeds = {"source": torch.randn(2, 7, 12), "target": torch.randn(2, 5, 12)}
    program = capture(net, feeds, keyword=False, dynamic_batch=True, strict=strict)
    assert nn.modules.transformer._detect_is_causal_mask is asked
    assert torch.backends.mha.get_fastpath_enabled()
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called.isdisjoint(ONE_PIECE)
    others = torch.randn(3, 7, 12), torch.randn(3, 5, 12)
    torch.testing.assert_close(program.module()(*others), net(*others), rtol=0, atol=1e-5)
