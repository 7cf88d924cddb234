"""Names of libraries that the product uses, and which of them the lowest versions have.

``python tests/library_names.py`` within the environment of `make test-lowest` writes `LOWEST`; a
test of the ordinary suite holds the product to it.
"""

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOWEST = Path(__file__).with_name("lowest_names.txt")
_PRODUCT = ("deploy", "export", "quantize")
_OWNERS = (
    *("torch", "numpy", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "openvino", "safetensors"),
    *("PIL", "click", "rich", "starlette", "uvicorn", "grpc", "google", "cloudpickle"),
)


def list_used() -> dict[str, str]:
    """Dotted names of libraries that stand in the product, each with a file and a line."""
    used: dict[str, str] = {}
    for folder in _PRODUCT:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            known = dict(_list_imports(tree))
            for name, line in [*_list_imported(tree), *_list_attributes(tree, known)]:
                used.setdefault(name, f"{path.relative_to(ROOT)}:{line}")
    return used


def is_there(name: str) -> bool:
    """Whether the installed library has it, as a module or in one."""
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            try:
                found = importlib.import_module(".".join(parts[:number]))
            except ImportError:
                return False
            continue
        found = getattr(found, part)
    return True


def _list_imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What names of the file stand for names of libraries."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                owner = one.name.split(".")[0]
                if owner in _OWNERS:
                    yield (one.asname, one.name) if one.asname else (owner, owner)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _OWNERS:
            for one in node.names:
                yield one.asname or one.name, f"{node.module}.{one.name}"


def _list_imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _OWNERS:
            yield from ((f"{node.module}.{one.name}", node.lineno) for one in node.names)
        elif isinstance(node, ast.Import):
            for one in node.names:
                if one.name.split(".")[0] in _OWNERS:
                    yield one.name, node.lineno


def _list_attributes(tree: ast.AST, known: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Chains of attributes that begin with one of `known`, as long as they are written."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        parts, value = [], node
        while isinstance(value, ast.Attribute):
            parts.append(value.attr)
            value = value.value
        if isinstance(value, ast.Name) and value.id in known:
            yield ".".join([known[value.id], *reversed(parts)]), node.lineno


if __name__ == "__main__":
    names = list_used()
    missing = sorted(name for name in names if not is_there(name))
    for name in missing:
        print(f"{names[name]}: there is no {name}", file=sys.stderr)
    LOWEST.write_text("".join(f"{name}\n" for name in sorted({*names} - {*missing})))
    sys.exit(bool(missing))
