"""Plain values as the text form of a protobuf message, which is what ``config.pbtxt`` is.

Field names are keys; a mapping is a message, a list a repeated field, a `Word` a value of an enum.
A map field is a list of messages with ``key`` and ``value``.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any


class Word(str):
    """A value that is written without quotes: ``TYPE_FP32``."""


def render_message(fields: Mapping[str, Any]) -> str:
    """The fields in their order, one to a line, messages indented."""
    return "".join(f"{line}\n" for line in _render_fields(fields, ""))


def _render_fields(fields: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield f"{indent}{name} {{"
                yield from _render_fields(item, f"{indent}  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_render_scalar(item)}"


def _render_scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Word):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
