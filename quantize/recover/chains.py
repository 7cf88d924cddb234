"""Where two layers share channels that could be scaled: the chains of cross-layer equalization.

Scaling channel c of the first layer's output by 1/s and of the second layer's input by s changes
nothing, if what stands between is positive homogeneous, f(x / s) = f(x) / s, channel by channel,
and nobody else reads the tensors between.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import NodeProto, TensorProto, numpy_helper

from export.artifacts import Skip
from export.onnx.graph import GraphIndex, attribute, is_standard, node_label

_HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
    | {"Identity"}
)
_WEIGHTED = frozenset({"Conv", "Gemm"})


@dataclass(frozen=True)
class Link:
    """Two weighted layers, the second of which alone reads the first through a homogeneous path.

    Attributes:
        first, second: node numbers.
        clip: number of the Clip(0, ceiling) between them; None where there is none.
        ceiling: of that clip.
        spatial_rank: axes behind the channels where that clip stands.
        repeat: how many inputs of the second one output channel of the first is: above 1 behind a
            Flatten of a plane.
    """

    first: int
    second: int
    clip: int | None = None
    ceiling: float = 0.0
    spatial_rank: int = 0
    repeat: int = 1


def find_links(graph: GraphIndex, ranks: Mapping[str, int]) -> tuple[list[Link], list[Skip]]:
    """All links, in graph order, and why the other layers have none behind them.

    Args:
        graph: of the model.
        ranks: of its float tensors.
    """
    links: list[Link] = []
    skipped: list[Skip] = []
    for number, node in enumerate(graph.nodes):
        if node.op_type not in _WEIGHTED or not is_standard(node):
            continue
        found = _follow(graph, number, ranks)
        if isinstance(found, Link):
            links.append(found)
        else:
            skipped.append(Skip(node_label(node), "equalization", found))
    return links, skipped


def input_channels(node: NodeProto, shape: tuple[int, ...]) -> int:
    """Input channels (Conv) or features (Gemm) of a layer with weights of `shape`."""
    if node.op_type == "Conv":
        return int(shape[1] * attribute(node, "group", 1))
    return int(shape[1 if attribute(node, "transB", 0) else 0])


def output_channels(node: NodeProto, shape: tuple[int, ...]) -> int:
    """Output channels (Conv) or features (Gemm)."""
    return int(shape[0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1])


def _follow(graph: GraphIndex, first: int, ranks: Mapping[str, int]) -> Link | str:
    """The link behind layer `first`, or why there is none."""
    if reason := _find_obstacle(graph, first):
        return reason
    node, path = graph.nodes[first], _Path(graph, ranks)
    path.flat = node.op_type == "Gemm"
    while True:
        number = graph.only_reader(node.output[0])
        if number is None:
            return _why_not_alone(graph, node.output[0])
        reader = graph.nodes[number]
        if reader.op_type in _WEIGHTED and reader.input[0] == node.output[0]:
            break
        if reason := path.step(number):
            return reason
        node = reader
    if reason := _find_obstacle(graph, number):
        return f"the next layer, {node_label(reader)}: {reason}"
    channels = output_channels(graph.nodes[first], _shape(graph, first))
    inputs = input_channels(reader, _shape(graph, number))
    repeat, rest = divmod(inputs, channels)
    if rest or (repeat > 1 and not path.flattened):
        return f"its {channels} channels are not the {inputs} inputs of the next layer"
    return Link(first, number, path.clip, path.ceiling, path.spatial_rank, repeat)


class _Path:
    """What stands between two layers, node by node.

    Attributes:
        clip, ceiling, spatial_rank: as `Link` has them.
        flat: the tensor has no axes behind the channels.
        flattened: a Flatten may have made several features of a channel.
    """

    def __init__(self, graph: GraphIndex, ranks: Mapping[str, int]) -> None:
        self._graph, self._ranks = graph, ranks
        self.clip: int | None = None
        self.ceiling, self.spatial_rank = 0.0, 0
        self.flat = self.flattened = False

    def step(self, number: int) -> str | None:
        """Pass node `number`; a string says why scaling ends there."""
        node = self._graph.nodes[number]
        if node.op_type == "Clip":
            return self._step_clip(number)
        if node.op_type == "Flatten" and attribute(node, "axis", 1) == 1:
            self.flattened = self.flattened or not self.flat
            self.flat = True
            return None
        if node.op_type == "ReduceMean" and _is_spatial(self._graph, node, self._ranks):
            self.flat = self.flat or not attribute(node, "keepdims", 1)
            return None
        if node.op_type in _HOMOGENEOUS and not any(node.output[1:]):
            return None
        return f"its output goes to {node.op_type}, which does not pass a scale on"

    def _step_clip(self, number: int) -> str | None:
        bounds = _read_bounds(self._graph, self._graph.nodes[number])
        if bounds is None or bounds[0] != 0:
            return "its output goes to a Clip that does not start at 0"
        if bounds[1] == float("inf"):
            return None
        if self.clip is not None or self.flattened:
            return "its output is clipped twice, or behind a Flatten"
        self.clip, self.ceiling = number, bounds[1]
        rank = self._ranks.get(self._graph.nodes[number].input[0])
        if rank is None:
            return "the rank of its output is not known"
        self.spatial_rank = rank - 2
        return None


def _find_obstacle(graph: GraphIndex, number: int) -> str | None:
    """Why the weights or the bias of a layer cannot be scaled; None where they can."""
    node = graph.nodes[number]
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "Gemm with transA mixes channels and samples"
    for what, name in zip(("weights", "bias"), node.input[1:3], strict=False):
        tensor = graph.constant(name) if name else None
        if not name:
            continue
        if tensor is None or name in graph.producer or tensor.data_type != TensorProto.FLOAT:
            return f"the {what} are not a float32 tensor stored in the file"
        if len(graph.readers[name]) > 1 or name in graph.outputs or name in graph.captured:
            return f"the {what} are used elsewhere as well"
        sizes = (1, output_channels(node, _shape(graph, number)))
        if what == "bias" and math.prod(tensor.dims) not in sizes:
            return "the bias is not one value a channel"
    return None


def _why_not_alone(graph: GraphIndex, name: str) -> str:
    if name in graph.outputs:
        return "its output is an output of the model"
    count = len(graph.readers[name])
    return f"its output is read by {count} nodes" if count else "nothing reads its output"


def _shape(graph: GraphIndex, number: int) -> tuple[int, ...]:
    tensor = graph.constant(graph.nodes[number].input[1])
    assert tensor is not None  # `_find_obstacle` has looked
    return tuple(tensor.dims)


def _read_bounds(graph: GraphIndex, node: NodeProto) -> tuple[float, float] | None:
    """Lower and upper bound of a Clip; None where one is computed."""
    bounds = [float("-inf"), float("inf")]
    for position, name in enumerate(node.input[1:3]):
        if name:
            constant = graph.constant(name)
            if constant is None:
                return None
            bounds[position] = float(numpy_helper.to_array(constant).reshape(()))
    return bounds[0], bounds[1]


def _is_spatial(graph: GraphIndex, node: NodeProto, ranks: Mapping[str, int]) -> bool:
    """Whether a ReduceMean leaves samples and channels as they are."""
    rank = ranks.get(node.input[0], 0)
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1:
        constant = graph.constant(node.input[1])
        axes = None if constant is None else numpy_helper.to_array(constant).ravel().tolist()
    return bool(rank and axes) and not {axis % rank for axis in axes or ()} & {0, 1}
