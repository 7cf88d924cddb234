"""Prints, as JSON, what a TensorRT binding offers: run alone, `python tensorrt_probe.py MODULE`.

Only the standard library is imported, so that it runs beside bindings that no environment holds.
"""

import importlib
import inspect
import json
import re
import sys

_NAMES = (
    (r"\b(?:nvinfer1|nvonnxparser)::(?:\w+::)*", ""),
    (r"\btensorrt\w*\.tensorrt\w*\.", ""),
    (r"\btyping\.SupportsInt\b", "int"),
    (r"\btyping\.SupportsFloat\b", "float"),
    (r"\b(typing_extensions|collections\.abc)\.Buffer\b", "buffer"),
    (r"\b(typing_extensions|types)\.CapsuleType\b", "capsule"),
    (r"\bnvinfer1::", ""),
    (r"\bcollections\.abc\.Sequence\b|\bList\b", "list"),
)
"""One spelling for what pybind11 calls by another name from one release to the next."""


def describe(module):
    """Every enum with its values, every class with its attributes and their signatures."""
    enums, classes = {}, {}
    for name, value in inspect.getmembers(module, inspect.isclass):
        if hasattr(value, "__members__"):
            enums[name] = sorted(value.__members__)
        else:
            classes[name] = {
                **_overridable(value),
                **{
                    key: _signatures(key, inspect.getattr_static(value, key))
                    for key in dir(value)
                    if key == "__init__" or not key.startswith("_")
                },
            }
    others = [name for name in dir(module) if name not in enums and name not in classes]
    return {"version": module.__version__, "enums": enums, "classes": classes, "others": others}


def _signatures(name, attribute):
    """What the docstring of pybind11 says: one line, or several where it is overloaded."""
    if isinstance(attribute, property):
        kind = _spell((attribute.fget.__doc__ or "").rpartition("-> ")[2])
        return [f"{kind}, settable" if attribute.fset else kind]
    text = getattr(attribute, "__doc__", None) or ""
    found = re.findall(rf"^(?:\d+\. )?{name}\((?:self: [\w.]+(?:, )?)?(.*)$", text, re.MULTILINE)
    return [_spell(f"({line}") for line in found if not line.startswith("*args")]


def _overridable(cls):
    """Methods that the class only looks up on what derives from it; its docstring shows them."""
    found = re.findall(r"def (\w+)\(self(?:, )?(.*)\):", cls.__doc__ or "")
    return {name: [f"({arguments})"] for name, arguments in found if name != "__init__"}


def _spell(text):
    for pattern, name in _NAMES:
        text = re.sub(pattern, name, text)
    return text.strip()


if __name__ == "__main__":
    json.dump(describe(importlib.import_module(sys.argv[1])), sys.stdout)
