"""What an engine runs in which precision: layers, MACs and time, and what stayed in float.

The engine's own profiler is asked; the file only says how many MACs a layer has and to which of
the user's modules it belongs.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from deploy.engines.base import EngineSpec, Feeds
from deploy.engines.layers import ExecutedLayer, read_layers
from export.onnx.cost import model_cost, read_path
from export.onnx.files import read_model
from export.onnx.graph import name_node

PRECISIONS = ("int8", "fp16", "bf16", "fp32", "fp64", "other")
"""From few bits to many; ``other``: what computes shapes and indices."""

_BITS = {"int4": 8, "int8": 8, "fp16": 16, "bf16": 16, "mixed": 16} | {
    "fp32": 32,
    "tf32": 32,
    "fp64": 64,
}
"""What a precision computes in, at least; weights of 4 bits meet activations of 8."""
_ENGINE_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_quant)$")
_BOUNDARIES = frozenset({"QuantizeLinear", "DequantizeLinear", "Constant"})


@dataclass(frozen=True)
class PrecisionShare:
    """What runs in one precision: executed layers, their MACs and their seconds in one inference.

    Reformats are not in it.
    """

    precision: str
    layers: int
    macs: int
    seconds: float


@dataclass(frozen=True)
class Remainder:
    """A module that runs in more bits than its engine is for, or beside the GPU that it is for.

    Attributes:
        where: the user's module path, or the node's name where there is none.
        operators: the engine's operators there.
        precision: the widest one there.
        seconds: of one inference, over all of its layers.
        share: that over the time of all layers and reformats.
        on_cpu: the CPU runs some of it, between copies from the GPU and back.
    """

    where: str
    operators: tuple[str, ...]
    precision: str
    seconds: float
    share: float
    on_cpu: bool = False


@dataclass(frozen=True)
class Census:
    """What the engine's own profile says.

    Attributes:
        precisions: those that occur, in the order of `PRECISIONS`.
        reformats: executed nodes that only change layout or precision.
        reformat_seconds: their time in one inference.
        remainder: what runs in more bits than the engine is for, or beside its GPU, the slowest
            first. What computes shapes, which belongs on the CPU, is not in it.
        layer_seconds: seconds of one inference by name of the ONNX node (its first output where it
            has no name). A fused layer stands under its node with the most MACs; reformats, and
            what the engine made up by itself, are not in it.
    """

    precisions: tuple[PrecisionShare, ...]
    reformats: int
    reformat_seconds: float
    remainder: tuple[Remainder, ...]
    layer_seconds: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Time of one inference as profiled, layers and reformats together."""
        return sum(share.seconds for share in self.precisions) + self.reformat_seconds

    @property
    def macs(self) -> int:
        """MACs of all layers that could be told apart."""
        return sum(share.macs for share in self.precisions)


@dataclass(frozen=True)
class _Attributed:
    """An executed layer with what it stands for in the file."""

    layer: ExecutedLayer
    macs: int
    node: str | None
    where: str


def take_census(spec: EngineSpec, feeds: Feeds) -> Census:
    """Profile the engine of `spec` on `feeds`, in this process.

    Vendor libraries belong in a child: see `deploy.engines.process.call_in_child`.

    Raises:
        MissingExtraError: the backend is not installed.
        EngineError: the backend refuses the file or the input, or has no profile to give.
    """
    layers = read_layers(spec, feeds)
    graph = read_model(Path(spec.source or spec.path), weights=False)
    found = _attribute(layers, graph, _read_sizes(graph, feeds))
    total = sum(layer.seconds for layer in layers)
    reformats = [item.layer for item in found if item.layer.reformat]
    works = [item for item in found if not item.layer.reformat]
    return Census(
        precisions=_count(works),
        reformats=len(reformats),
        reformat_seconds=sum(layer.seconds for layer in reformats),
        remainder=_find_remainder(works, _BITS[spec.precision], total),
        layer_seconds=_sum_by_node(works),
    )


def _read_sizes(model: onnx.ModelProto, feeds: Feeds) -> dict[str, int]:
    """What the model's symbolic axes are in `feeds`."""
    return {
        dim.dim_param: int(size)
        for value in model.graph.input
        if value.name in feeds
        for dim, size in zip(
            value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=False
        )
        if dim.dim_param
    }


def _count(works: Sequence[_Attributed]) -> tuple[PrecisionShare, ...]:
    shares = []
    for precision in PRECISIONS:
        mine = [item for item in works if item.layer.precision == precision]
        if mine:
            macs, seconds = sum(i.macs for i in mine), sum(i.layer.seconds for i in mine)
            shares.append(PrecisionShare(precision, len(mine), macs, seconds))
    return tuple(shares)


def _find_remainder(works: Sequence[_Attributed], bits: int, total: float) -> tuple[Remainder, ...]:
    """By module, the slowest first."""
    places: dict[str, list[ExecutedLayer]] = defaultdict(list)
    for item in works:
        known = _BITS.get(item.layer.precision, 0)
        if known > bits or (known and item.layer.on_cpu):
            places[item.where].append(item.layer)
    remainder = []
    for where, layers in places.items():
        seconds = sum(layer.seconds for layer in layers)
        operators = tuple(dict.fromkeys(layer.op for layer in layers))
        widest = max((layer.precision for layer in layers), key=PRECISIONS.index)
        share = seconds / total if total else 0.0
        on_cpu = any(layer.on_cpu for layer in layers)
        remainder.append(Remainder(where, operators, widest, seconds, share, on_cpu))
    return tuple(sorted(remainder, key=lambda item: -item.seconds))


def _sum_by_node(works: Sequence[_Attributed]) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float)
    for item in works:
        if item.node is not None:
            seconds[item.node] += item.layer.seconds
    return dict(seconds)


def _attribute(
    layers: Sequence[ExecutedLayer], model: onnx.ModelProto, sizes: Mapping[str, int]
) -> list[_Attributed]:
    """Find for each layer its node of the file, its module path and its MACs.

    A node with MACs that no layer names was fused into a later one.
    """
    graph = _FileGraph(model)
    macs = {layer.node: layer.macs for layer in model_cost(model, axes=sizes).layers}
    named = [() if layer.reformat else graph.resolve(layer.origins) for layer in layers]
    owners: dict[int, int] = {}
    for index, numbers in enumerate(named):
        for number in numbers:
            owners.setdefault(number, index)
    held: dict[int, list[int]] = defaultdict(list)
    for number, name in enumerate(graph.names):
        if macs.get(name):
            owner = owners.get(number)
            owner = graph.find_owner(number, owners) if owner is None else owner
            if owner is not None:
                held[owner].append(number)
    found = []
    for index, layer in enumerate(layers):
        main = max(held[index], key=lambda number: macs[graph.names[number]], default=None)
        if main is None and named[index]:
            main = named[index][0]
        found.append(
            _Attributed(
                layer,
                sum(macs[graph.names[number]] for number in held[index]),
                None if main is None else graph.names[main],
                layer.name if main is None else read_path(graph.nodes[main]),
            )
        )
    return found


class _FileGraph:
    """Nodes of the file by the names that engines give their own."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.names = [name_node(node) for node in self.nodes]
        self._by_name = {
            tensor: number for number, node in enumerate(self.nodes) for tensor in node.output
        }
        self._by_name |= {name: number for number, name in enumerate(self.names)}
        self._readers: dict[str, list[int]] = defaultdict(list)
        for number, node in enumerate(self.nodes):
            for name in node.input:
                self._readers[name].append(number)

    def resolve(self, origins: Iterable[str]) -> tuple[int, ...]:
        """Numbers of the nodes that `origins` speak of.

        A QuantizeLinear stands for the node before it; DequantizeLinear and constants are none.
        """
        numbers: dict[int, None] = {}
        for origin in origins:
            number = self._find(origin)
            if number is not None and self.nodes[number].op_type == "QuantizeLinear":
                number = self._by_name.get(self.nodes[number].input[0])
            if number is not None and self.nodes[number].op_type not in _BOUNDARIES:
                numbers[number] = None
        return tuple(numbers)

    def find_owner(self, number: int, owners: Mapping[int, int]) -> int | None:
        """The layer of the nearest node behind `number` that has one."""
        front, seen = [number], {number}
        while front:
            made = [name for node in front for name in self.nodes[node].output]
            reached = dict.fromkeys(reader for name in made for reader in self._readers[name])
            for reader in reached:
                if reader in owners:
                    return owners[reader]
            front = [reader for reader in reached if reader not in seen]
            seen.update(front)
        return None

    def _find(self, origin: str) -> int | None:
        """By the name as it is, else without what engines add: ``/WithoutBiases``, ``_nchwc``."""
        while origin:
            if origin in self._by_name:
                return self._by_name[origin]
            shorter = _ENGINE_SUFFIX.sub("", origin)
            origin = shorter if shorter != origin else origin.rpartition("/")[0]
        return None
