"""Plain values as YAML, for manifests that people read and edit.

Block style throughout. Text is quoted the way JSON does it, which YAML reads alike, wherever it
could be taken for something else: ``"8080"``, ``"true"``.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/._-]*(:[A-Za-z0-9/._-]+)*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}


def render_yaml(value: Mapping[str, Any]) -> str:
    """A mapping of texts, whole numbers, booleans, lists and mappings, in its order."""
    return "".join(f"{line}\n" for line in _render_mapping(value))


def _render_mapping(value: Mapping[str, Any]) -> Iterator[str]:
    for key, item in value.items():
        yield from _render_item(f"{_render_scalar(key)}:", item)


def _render_item(head: str, item: Any) -> Iterator[str]:
    """One entry of a mapping: on its line, or indented below."""
    if isinstance(item, Mapping) and item:
        yield head
        yield from (f"  {line}" for line in _render_mapping(item))
    elif isinstance(item, list) and item:
        yield head
        yield from (f"  {line}" for line in _render_list(item))
    else:
        yield f"{head} {_render_scalar(item)}"


def _render_list(items: list[Any]) -> Iterator[str]:
    for item in items:
        if not isinstance(item, Mapping) or not item:
            yield f"- {_render_scalar(item)}"
            continue
        first, *rest = _render_mapping(item)
        yield f"- {first}"
        yield from (f"  {line}" for line in rest)


def _render_scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
