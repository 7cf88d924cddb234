"""Weights that a module computes from others at every access, worked out once."""

from collections import Counter

import torch
from torch import nn
from torch.nn.utils import parametrize


def bake_parametrizations(module: nn.Module) -> tuple[str, ...]:
    """Put the values of all parametrized tensors of `module` in their place, for good.

    In eval mode they are what every call computes anew (``weight_norm``, ``spectral_norm``,
    ``orthogonal``), so the module answers as before.

    Args:
        module: in eval mode; it is changed, and what it is a deep copy of is not.

    Returns:
        What was worked out, and in how many layers: ``"weight by WeightNorm in 7 layers"``.

    Source: https://docs.pytorch.org/docs/stable/nn.html#parametrizations
    """
    found: Counter[str] = Counter()
    with torch.no_grad():
        for part in list(module.modules()):
            if parametrize.is_parametrized(part):
                found.update(_bake(part))
    return tuple(f"{what} in {n} {'layer' if n == 1 else 'layers'}" for what, n in found.items())


def _bake(part: nn.Module) -> list[str]:
    """`part` as its plain class, with the values as parameters.

    `parametrize.remove_parametrizations` would take the properties off the class, which a deep copy
    shares with its original.
    """
    held = part.parametrizations
    assert isinstance(held, nn.ModuleDict)  # what is_parametrized looks at
    kinds = {name: _describe_steps(steps) for name, steps in held.items()}
    values = {name: getattr(part, name).detach().clone() for name in held}
    trained = {name: any(True for _ in steps.parameters()) for name, steps in held.items()}
    part.__class__ = parametrize.type_before_parametrizations(part)
    del part.parametrizations
    for name, value in values.items():
        if trained[name]:
            part.register_parameter(name, nn.Parameter(value))
        else:
            part.register_buffer(name, value)
    return [f"{name} by {kind}" for name, kind in kinds.items()]


def _describe_steps(steps: nn.Module) -> str:
    assert isinstance(steps, nn.ModuleList)  # parametrize.ParametrizationList
    return " and ".join(type(step).__name__.strip("_") for step in steps)
