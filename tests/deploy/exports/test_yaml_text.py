"""What is written is read back by a YAML parser as the same values."""

import string

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deploy.exports.yaml_text import render_yaml

_TEXT = st.text(string.printable.strip() + " äß€", max_size=12)
_SCALARS = _TEXT | st.integers() | st.booleans()
_KEYS = st.text(string.ascii_letters + "/.-", min_size=1, max_size=8)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3)
)


@pytest.mark.thorough
@given(st.dictionaries(_KEYS, _VALUES, min_size=1, max_size=4))
def test_any_values_survive(values: dict[str, object]) -> None:
    assert yaml.safe_load(render_yaml(values)) == values


@pytest.mark.parametrize(
    "text",
    ["8080", "true", "No", "on", "null", "~", "1e3", "0x10", "2026-11-25", "a: b", "- a", "#a"],
)
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    assert yaml.safe_load(render_yaml({"key": [text]})) == {"key": [text]}


def test_plain_text_is_not_quoted() -> None:
    assert render_yaml({"a": {"b": ["x/y:1", {"c": 1, "d": True}]}}) == (
        "a:\n  b:\n    - x/y:1\n    - c: 1\n      d: true\n"
    )
