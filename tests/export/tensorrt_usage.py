"""What a module of ours takes from TensorRT, read from its source.

Values are followed from where they are made: `trt.Builder(...)` is a Builder, what its methods
return is what their signatures in `tensorrt_interface.py` say. A parameter that is annotated `Any`
is what `VARIABLES` says that we call by that name.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tensorrt_interface import CLASSES, ENUMS, VARIABLES

_MODULE = "trt"
_ALIASES = {"IParserError": "ParserError"}
_KNOWN = {*CLASSES, *ENUMS}


@dataclass
class _Scope:
    """A function with all that is in it: the class in TensorRT of each of its names."""

    fields: dict[str, str | None]
    names: dict[str, str | None] = field(default_factory=dict)

    def find_kind(self, node: ast.expr) -> str | None:
        """The class that a value is of, or whose name it is; of a list, that of its members."""
        match node:
            case ast.Name(id=name):
                return _MODULE if name == _MODULE else self.names.get(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return self.fields.get(name, VARIABLES.get(name.lstrip("_")))
            case ast.Attribute(value=owner, attr=name):
                return _find_type(self.find_kind(owner), name)
            case ast.Call(func=function):
                return self.find_kind(function)
            case ast.ListComp(elt=member) | ast.GeneratorExp(elt=member):
                return self.find_kind(member)
            case ast.Subscript(value=value):
                return self.find_kind(value)
        return None

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name) and (kind := self.find_kind(value)) is not None:
            self.names[target.id] = kind
        elif isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "self":
            self.fields[target.attr] = self.find_kind(value)


def find_touched(path: Path) -> Iterator[tuple[str, int]]:
    """``Class.attribute``, ``Enum.MEMBER`` or the name of a module attribute, and its line."""
    for fields, function in _functions(ast.parse(path.read_text(encoding="utf-8"))):
        scope = _Scope(fields)
        _read_parameters(scope, function)
        for _ in range(2):  # once more, for what is used above the line that binds it
            for target, value in _bindings(function):
                scope.bind(target, value)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and (kind := scope.find_kind(node.value)):
                name = node.attr if kind == _MODULE else f"{kind}.{node.attr}"
                yield name, node.lineno


def find_overrides(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The methods of classes that derive from one of TensorRT's, with the name of that one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if isinstance(base, ast.Attribute) and getattr(base.value, "id", "") == _MODULE:
                    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
                    yield from ((base.attr, method) for method in methods)


def _functions(tree: ast.Module) -> Iterator[tuple[dict[str, str | None], ast.FunctionDef]]:
    """Functions and methods, with what their class keeps; what they hold stays inside them."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield {}, node
        elif isinstance(node, ast.ClassDef):
            fields: dict[str, str | None] = {}
            yield from ((fields, item) for item in node.body if isinstance(item, ast.FunctionDef))


def _read_parameters(scope: _Scope, function: ast.FunctionDef) -> None:
    for argument in (*function.args.args, *function.args.kwonlyargs):
        ours = argument.annotation is not None and ast.unparse(argument.annotation) != "Any"
        scope.names[argument.arg] = None if ours else VARIABLES.get(argument.arg)


def _bindings(function: ast.FunctionDef) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Every name that a statement or a loop gives to a value."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                yield from zip(targets, values, strict=True)
            case ast.Assign(targets=[target], value=value):
                yield target, value
            case ast.AnnAssign(target=target, annotation=kind, value=ast.Constant() as value) if (
                ast.unparse(kind) != "Any"
            ):
                yield target, value
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                yield target, value
            case ast.NamedExpr(target=target, value=value):
                yield target, value
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                yield target, value


def _find_type(owner: str | None, name: str) -> str | None:
    """The class of an attribute of `owner`; of a method, the class that it returns."""
    if owner == _MODULE:
        return name if name in _KNOWN else None
    signature = CLASSES.get(owner or "", {}).get(name, "")
    found = re.fullmatch(r"(?:.*-> )?(?:list\[)?(\w+)\]?(?:, settable)?", signature)
    kind = _ALIASES.get(found[1], found[1]) if found else ""
    return kind if kind in _KNOWN else None
