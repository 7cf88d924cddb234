"""Nodes of an OpenVINO model in the place of others."""

from typing import Any


def put_in_place(node: Any, made: Any) -> None:
    """Have all that reads `node` read `made`, which takes over its names."""
    made.set_friendly_name(node.get_friendly_name())
    for old, new in zip(node.outputs(), made.outputs(), strict=True):
        names = old.get_names()
        old.replace(new)
        new.set_names(names)
