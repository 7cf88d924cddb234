"""The user's own module paths of what stands in a captured graph."""

from collections.abc import Iterable

from torch import fx
from torch.export import ExportedProgram

from export.capture.image_model import MEMBER
from export.fusion.draft import Draft, read_argument

ROOT = "(root)"


def find_path(draft: Draft, node: fx.Node) -> str:
    """The user's module path of a node: by its module stack, else by the name of its weight."""
    if path := read_module_path(node):
        return path
    for name in ("weight", "running_mean"):
        target = draft.target(read_argument(node, name)) if has_schema(node) else ""
        if target.rpartition(".")[0]:
            return target.rpartition(".")[0]
    return ROOT


def read_module_path(node: fx.Node) -> str:
    """The innermost module whose forward made the node, or ``""`` for the model itself."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    path = str(stack[-1]) if stack else ""
    return path.removeprefix("L['self']").removeprefix("L__self__").strip(".").partition("@")[0]


def share_path(paths: Iterable[str]) -> str:
    """The innermost module that holds all of `paths`, or ``""`` for the model itself."""
    split = [path.split(".") if path != ROOT else [] for path in paths]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def has_schema(node: fx.Node) -> bool:
    """Whether the node calls an operator, and not a Python function or a stored attribute."""
    return hasattr(node.target, "_schema")


def name_as_user(program: ExportedProgram) -> ExportedProgram:
    """A captured `ImageModel` with modules and weights under the user's own names."""
    draft = Draft(program)
    draft.drop_scope(MEMBER)
    return draft.finish()
