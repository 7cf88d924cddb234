"""What a node of a graph is to the fusion, and what all its readers share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx

from export.fusion.algebra import LinearMap
from export.fusion.borders import Border
from export.fusion.constants import Constants
from export.fusion.draft import Draft
from export.fusion.geometry import Inexact
from export.fusion.int8_weights import round_to_int8
from export.fusion.mutation import Mutations
from export.fusion.paths import has_schema

Layout = Literal["first", "last"]
"""Where the channels stand: on axis 1, as convolutions have them, or last, as linear layers do."""


@dataclass(frozen=True)
class Frame:
    """How a region is worked out.

    Attributes:
        layout: where its channels stand.
        device: of the tensors; on the meta device only shapes are known.
        int8: with the weights of every layer rounded to int8.
    """

    layout: Layout
    device: torch.device
    int8: bool = False


Apply = Callable[[Sequence[LinearMap], Frame], LinearMap]


@dataclass(frozen=True)
class Operator:
    """One node as a step of a linear, shift-invariant map.

    Attributes:
        inputs: the values that it reads; constants are not among them.
        apply: from the maps of `inputs` to its own; raises `Inexact`.
        label: for people, with a place for each input: ``bn({})``.
        layout: where it wants the channels; None: wherever they are.
        is_layer: it has a kernel: a convolution, a linear layer, a pool.
        companions: further nodes that belong to it.
        fixed_size: it is right at the captured size only.
    """

    inputs: tuple[fx.Node, ...]
    apply: Apply
    label: str
    layout: Layout | None = None
    is_layer: bool = False
    companions: tuple[fx.Node, ...] = ()
    fixed_size: bool = False


@dataclass(frozen=True)
class Survey:
    """What the readers know of a graph."""

    draft: Draft
    constants: Constants
    mutations: Mutations
    borders: dict[fx.Node, Border]


Reader = Callable[[Survey, fx.Node], Operator | str]


def tabulate(reader: Reader, *targets: Any) -> dict[Any, Reader]:
    """The same reader for several operators."""
    return dict.fromkeys(targets, reader)


def pass_on(source: fx.Node) -> Operator:
    """An operator that leaves its value as it is."""
    return Operator((source,), lambda maps, _: maps[0], "{}")


def read_channelwise(survey: Survey, constant: object, value: fx.Node, frame: Frame) -> Tensor:
    """A number or a constant as one value a channel, or as a single one, of shape ``(n,)``.

    Raises:
        Inexact: it differs by position.
    """
    if not isinstance(constant, fx.Node):
        number = float(cast(float, constant))
        return torch.tensor([number], dtype=torch.float64, device=frame.device)
    tensor = survey.constants.value(constant, frame.device)
    rank = value.meta["val"].ndim
    shape = (*[1] * (rank - tensor.ndim), *tensor.shape)
    channel = channel_axis(frame, rank)
    if any(size != 1 for axis, size in enumerate(shape) if axis != channel):
        raise Inexact("a constant that differs by position is added or multiplied")
    return tensor.reshape(-1)


def read_weight(
    survey: Survey, weight: fx.Node, frame: Frame, *, transposed: bool = False
) -> Tensor:
    """The weight of a layer, output channels first, as the frame wants it."""
    value = survey.constants.value(weight, frame.device)
    value = value.T if transposed else value
    return round_to_int8(value) if frame.int8 else value


def is_value(survey: Survey, item: object) -> bool:
    """Whether `item` is a tensor that depends on the inputs."""
    return (
        isinstance(item, fx.Node)
        and isinstance(item.meta.get("val"), Tensor)
        and item not in survey.constants
    )


def is_constant(survey: Survey, item: object) -> bool:
    """Whether `item` is a number or a tensor that does not depend on the inputs."""
    return isinstance(item, (int, float)) or item in survey.constants


def need_constants(survey: Survey, *nodes: object) -> str | None:
    """Why the weights of a layer cannot be read; None if they can."""
    for node in nodes:
        if not isinstance(node, fx.Node):
            continue
        if node not in survey.constants:
            return "a weight is computed from the data, or rounded to fewer bits on its way"
        if 0 in node.meta["val"].shape:
            return "a layer has no channels"
    return None


def need_same_shape(node: fx.Node, *values: fx.Node) -> str | None:
    """Why `values` and their result do not match element by element; None if they do."""
    shapes = {tuple(map(str, item.meta["val"].shape)) for item in (node, *values)}
    if len(shapes) == 1:
        return None
    sizes = " and ".join("x".join(map(str, v.meta["val"].shape)) for v in (*values, node))
    return f"branches of different output sizes are broadcast ({sizes})"


def channel_axis(frame: Frame, rank: int) -> int:
    """The axis of the channels in a value of this rank."""
    return 1 if frame.layout == "first" else rank - 1


def read_sizes(node: fx.Node) -> list[int | None]:
    """Spatial sizes of a value; None where they are not known."""
    return [size if isinstance(size, int) else None for size in node.meta["val"].shape[2:]]


def name_operator(node: fx.Node) -> str:
    """The operator's plain name: ``relu`` for ``aten.relu_.default``."""
    if has_schema(node):
        target: Any = node.target
        return str(target._schema.name).rpartition("::")[2].rstrip("_")
    return str(getattr(node.target, "__name__", node.target))
