"""Sub-graphs from one value to another through linear, shift-invariant operators alone."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from export.fusion.algebra import LinearMap, make_identity
from export.fusion.cost import count_macs
from export.fusion.geometry import Inexact
from export.fusion.operators import Frame, Layout, Operator, Operators

SOURCE = "x"
_LABEL_LENGTH = 160


@dataclass(frozen=True)
class Region:
    """All operators on the ways from `source` to `result`.

    Attributes:
        source: the one value that the region reads, beside constants.
        result: the value that a single layer could compute; the last of `nodes`.
        nodes: in graph order, `source` not included.
        operators: what each of `nodes` is.
    """

    source: fx.Node
    result: fx.Node
    nodes: tuple[fx.Node, ...]
    operators: Mapping[fx.Node, Operator]

    @property
    def fixed_size(self) -> bool:
        """Whether it is right at the captured size only."""
        return any(self.operators[node].fixed_size for node in self.nodes)

    def costly(self) -> list[fx.Node]:
        """The nodes that calculate."""
        return [node for node in self.nodes if count_macs(node)]

    def moves(self) -> list[fx.Node]:
        """The nodes that do anything at all."""
        return [node for node in self.nodes if self.operators[node].label != "{}"]

    def layers(self) -> tuple[fx.Node, ...]:
        """The nodes with a kernel."""
        return tuple(node for node in self.nodes if self.operators[node].is_layer)

    def removable(self) -> tuple[fx.Node, ...]:
        """The nodes that nothing needs once `result` is computed otherwise, users before values.

        What somebody else reads stays, and what that one is made of.
        """
        removed: dict[fx.Node, None] = {}
        for node in reversed(self.nodes):
            companions = self.operators[node].companions
            users = {user for user in node.users if user not in companions and not is_dead(user)}
            if node is not self.result and not users <= removed.keys():
                continue
            _remove_unread(companions, removed)  # such as read the node
            removed[node] = None
            _remove_unread(companions, removed)  # and such as it reads
        return tuple(removed)

    def layout(self) -> Layout:
        """Where the channels stand.

        Raises:
            Inexact: not in the same place throughout.
        """
        layouts = {self.operators[node].layout for node in self.nodes} - {None}
        if len(layouts) > 1:
            raise Inexact("the channels change their axis")
        found: Layout = next((layout for layout in layouts if layout is not None), "first")
        return found

    def work_out(
        self,
        device: torch.device,
        *,
        int8: bool = False,
        observe: Callable[[fx.Node, LinearMap], None] = lambda node, map_: None,
    ) -> LinearMap:
        """The region as one map.

        Args:
            device: on the meta device only its shape is worked out.
            int8: with the weights of every layer rounded to int8.
            observe: is shown the map from the source to every node.

        Raises:
            Inexact: it is no such map; the message says why.
        """
        frame = Frame(self.layout(), device, int8)
        shape = self.source.meta["val"].shape
        like = torch.empty((), dtype=torch.float64, device=device)
        axis = 1 if frame.layout == "first" else len(shape) - 1
        channels = shape[axis] if len(shape) > 1 else None  # one axis may be the batch or channels
        if not isinstance(channels, int):
            raise Inexact("the channels are not known")
        spatial = shape[2:] if frame.layout == "first" else ()
        sizes = [size if isinstance(size, int) else None for size in spatial]
        maps = {self.source: make_identity(channels, sizes, like)}
        uses = Counter(i for node in self.nodes for i in set(self.operators[node].inputs))
        for node in self.nodes:
            operator = self.operators[node]
            maps[node] = operator.apply([maps[item] for item in operator.inputs], frame)
            observe(node, maps[node])
            for item in dict.fromkeys(operator.inputs):
                uses[item] -= 1
                if not uses[item]:
                    del maps[item]
        return maps[self.result]

    def describe(self) -> str:
        """The structure in one line, such as ``bn(conv3x3(x)) + bn(x)``."""
        text = {self.source: SOURCE}
        for node in self.nodes:
            operator = self.operators[node]
            parts = operator.label.split("{}")
            words = [text[item] for item in operator.inputs]
            for index, word in enumerate(words):
                if parts[index].endswith(("-", "- ")) and _is_sum(word):
                    words[index] = f"({word})"
            text[node] = operator.label.format(*words)
            if len(text[node]) > 4 * _LABEL_LENGTH:
                text[node] = "..."
        label = text[self.result]
        return label if len(label) <= _LABEL_LENGTH else f"{label[: _LABEL_LENGTH - 3]}..."


def grow_regions(
    result: fx.Node, operators: Operators, position: Mapping[fx.Node, int]
) -> tuple[list[Region], str]:
    """Every region that ends in `result`, the smallest first, and what stopped it from growing.

    From `result` backwards, always the latest value that is still read from outside is taken in.
    Whenever one value is left, it is the source of a region.
    """
    members: dict[fx.Node, Operator] = {}
    frontier = {result}
    regions = []
    while True:
        if len(frontier) == 1 and members and _is_tensor(*frontier):
            (source,) = frontier
            regions.append(_make_region(source, result, members, position))
        latest = max(frontier, key=lambda node: position[node])
        operator = operators.get(latest, "the branches start from different inputs")
        if isinstance(operator, str):
            return regions, operator
        frontier.remove(latest)
        members[latest] = operator
        frontier |= {item for item in operator.inputs if item not in members}
        if not frontier:
            return regions, "it reads no value"


def _remove_unread(companions: Sequence[fx.Node], removed: dict[fx.Node, None]) -> None:
    for companion in reversed(companions):
        if companion.users.keys() <= removed.keys():
            removed[companion] = None


def _make_region(
    source: fx.Node,
    result: fx.Node,
    members: Mapping[fx.Node, Operator],
    position: Mapping[fx.Node, int],
) -> Region:
    nodes = tuple(sorted(members, key=lambda node: position[node]))
    return Region(source, result, nodes, dict(members))


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def is_dead(node: fx.Node) -> bool:
    """Whether nothing would miss the node."""
    return not node.users and node.op == "call_function" and not node.is_impure()


def _is_sum(label: str) -> bool:
    """Whether a sum or difference stands in `label` outside of all brackets."""
    depth = 0
    for index, letter in enumerate(label):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and label[index : index + 3] in (" + ", " - "):
            return True
    return False
