"""timm's networks, small and seeded, without weights from anywhere."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

SIZE = 64


def _load_torchvision_operators() -> list[torch.library.Library]:
    """Let torchvision be imported, which timm does, beside a torch for CPUs.

    torchvision's library needs CUDA's and is not loaded without them; importing torchvision then
    fails for want of two operators, so they are declared. Nothing here calls them.
    """
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None, "torchvision is a dependency of timm"
    try:
        for library in Path(str(spec.origin)).parent.glob("_C.*"):
            torch.ops.load_library(str(library))
            return []
    except OSError:
        pass
    declared = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return [declared]


_DECLARED = _load_torchvision_operators()
"""Kept: the operators vanish with the object."""

import timm  # noqa: E402
from timm.utils import reparameterize_model  # noqa: E402


class Portable(nn.Module):
    """Around a network of timm: whoever unpickles it gets this module first, and so timm."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def make_network(name: str, seed: int = 0) -> nn.Module:
    """A network of 10 classes in eval mode whose batch norms are far from the identity.

    Their gammas have both signs; their statistics are those of random images, so that values
    neither vanish nor explode on the way. Layer scales are no longer near zero.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = timm.create_model(name, num_classes=10)
        for child in model.modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                sign = torch.randn(child.num_features).sign()
                child.weight.copy_(sign * (0.5 + torch.rand(child.num_features)))
                child.bias.copy_(torch.randn(child.num_features))
                child.momentum = 1.0
            for parameter_name, parameter in child.named_parameters(recurse=False):
                if parameter_name == "gamma":
                    parameter.copy_(0.5 * torch.randn(parameter.shape))
        model.train()(3 * torch.randn(8, 3, SIZE, SIZE) + 2)
        for child in model.modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):  # some channels are dead
                child.running_var.clamp_(min=0.1 * float(child.running_var.mean()))
    return model.eval()


def reparameterize(model: nn.Module) -> nn.Module:
    """timm's own deploy form, of a copy."""
    return reparameterize_model(model, inplace=False).eval()


def count_convolutions(model: nn.Module, x: Tensor) -> int:
    """How many convolutions a run calls."""
    called: list[nn.Module] = []
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [
        child.register_forward_hook(lambda module, args, result: called.append(module))
        for child in model.modules()
        if isinstance(child, kinds)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return len(called)
