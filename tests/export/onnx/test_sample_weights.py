"""Convolutions whose weights are made from the sample that they are applied to."""

import copy
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from combinations import sometimes
from torch import Tensor, nn
from torch.nn import functional as F

from export.capture.program import capture
from export.onnx.exporter import contain_noise, to_onnx
from export.onnx.preparation import prepare_program


class Conditional(nn.Module):
    """A mixture of convolutions for each sample: CondConv, dynamic convolution."""

    def __init__(self, kernel: tuple[int, ...], groups: int, **how: object) -> None:
        super().__init__()
        self.kernel, self.groups, self.how = kernel, groups, how
        self.experts = nn.Parameter(torch.randn(3, 6 * (4 // groups) * int(np.prod(kernel))))
        self.biases = nn.Parameter(torch.randn(3, 6))
        self.route = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, c, *size = x.shape
        shares = torch.sigmoid(self.route(x.flatten(2).mean(-1)))
        weight = (shares @ self.experts).view(n * 6, c // self.groups, *self.kernel)
        bias = (shares @ self.biases).view(-1)
        convolve = F.conv2d if len(size) == 2 else F.conv1d
        made = convolve(
            x.reshape(1, n * c, *size), weight, bias, groups=n * self.groups, **self.how
        )
        return made.view(n, 6, *made.shape[2:])


class Modulated(nn.Module):
    """A layer of StyleGAN: the style scales the weights, which enlarge the image."""

    def __init__(self, axes: int, **how: object) -> None:
        super().__init__()
        self.axes, self.how = axes, how
        self.weight = nn.Parameter(torch.randn(1, 4, 6, *[3, 2][:axes]))
        self.style = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, c, *size = x.shape
        ones = [1] * (self.axes + 1)
        weight = self.weight * self.style(x.flatten(2).mean(-1)).view(n, c, *ones)
        weight = weight * torch.rsqrt(weight.flatten(1).square().sum(-1) + 1e-8).view(n, 1, *ones)
        enlarge = F.conv_transpose2d if self.axes == 2 else F.conv_transpose1d
        made = enlarge(x.reshape(1, -1, *size), weight.flatten(0, 1), groups=n, **self.how)
        return made.view(n, 6, *made.shape[2:])


class Compared(nn.Module):
    """A tracker: each channel of an image is convolved with that of a template, its middle."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        template = x[:, :, 2:5, 1:4].reshape(n * c, 1, 3, 3)
        return F.conv2d(x.reshape(1, n * c, h, w), template, groups=n * c).view(n, c, h - 2, w - 2)


NETS = {
    "3x3": (lambda: Conditional((3, 3), 1, padding=1), (4, 7, 6)),
    "steps": (lambda: Conditional((3, 2), 1, padding=(0, 1), stride=2, dilation=(1, 2)), (4, 7, 6)),
    "1x1": (lambda: Conditional((1, 1), 1), (4, 7, 6)),
    "groups": (lambda: Conditional((3, 3), 2, stride=(2, 1)), (4, 7, 6)),
    "signal": (lambda: Conditional((5,), 1, padding=2, dilation=2), (4, 17)),
    "enlarged": (lambda: Modulated(2, stride=2, padding=(1, 0), output_padding=1), (4, 5, 6)),
    "enlarged signal": (lambda: Modulated(1, stride=3, dilation=2), (4, 9)),
    "compared": (Compared, (4, 7, 6)),
    "same size": (lambda: Conditional((3, 4), 2, padding="same", dilation=(2, 1)), (4, 7, 6)),
    "same size of a signal": (lambda: Conditional((2,), 1, padding="same"), (4, 9)),
    "no padding": (lambda: Conditional((3, 3), 1, padding="valid", stride=2), (4, 7, 6)),
}


OFTEN = {"steps", "groups", "signal", "enlarged", "compared", "same size"}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [name if name in OFTEN else sometimes(name) for name in NETS], ids=list(NETS)
)
def test_any_batch_has_its_own_weights(name, tmp_path):
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make().eval()
    program = capture(net, {"x": torch.randn(2, *shape)}, keyword=False, dynamic_batch=True)
    model = to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=["y"])
    kinds = Counter(node.op_type for node in onnx.load(model.path).graph.node)
    assert not {"Conv", "ConvTranspose"} & kinds.keys()
    session = onnxruntime.InferenceSession(model.path)
    for batch in (1, 3):
        x = torch.randn(batch, *shape)
        exact = copy.deepcopy(net).double()(x.double()).detach().numpy()
        (found,) = session.run(None, {"x": x.numpy()})
        assert found.shape == exact.shape
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("axes", "how"),
    [
        (1, {"stride": 1, "dilation": 2, "output_padding": 1}),
        (1, {"stride": 2, "dilation": 4, "output_padding": 3, "padding": 4}),
        (2, {"stride": (2, 1), "dilation": (3, 2), "output_padding": (2, 1), "padding": (1, 0)}),
        (2, {"stride": (3, 1), "dilation": (1, 3), "output_padding": (2, 2), "padding": (2, 1)}),
    ],
)
def test_as_much_may_be_added_at_the_end_as_the_dilation_allows(axes, how):
    """More than a step, which ONNX Runtime's own operator refuses."""
    torch.manual_seed(0)
    net = Modulated(axes, **how).eval()
    shape = (4, 7, 6)[: axes + 1]
    program = capture(net, {"x": torch.randn(2, *shape)}, keyword=False, dynamic_batch=True)
    with contain_noise():
        prepared = prepare_program(program, opset=20).module()
    for batch in (1, 3):
        x = torch.randn(batch, *shape)
        exact = copy.deepcopy(net).double()(x.double())
        torch.testing.assert_close(prepared(x).double(), exact, rtol=1e-4, atol=1e-5)


def test_a_known_number_of_groups_stays_a_convolution(tmp_path):
    net = nn.Conv2d(4, 6, 3, groups=2)
    program = capture(net, {"x": torch.randn(2, 4, 5, 5)}, keyword=False, dynamic_batch=True)
    model = to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=["y"])
    (node,) = onnx.load(model.path).graph.node
    assert node.op_type == "Conv"
