"""Flags and the ``[tool.deploy]`` table, both plain values by name, as a `BuildConfig`."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.config import BuildConfig
from deploy.option_values import convert_value, read_toml, refuse_unknown
from export.errors import ConfigError
from export.tensorrt.options import parse_sizes

CONFIG_FIELDS = tuple(field.name for field in dataclasses.fields(BuildConfig))
_FIELDS = {"input": "inputs"}
_TRUST_ALL = "trust_all"
OPTIONS = tuple(
    sorted(
        name.replace("_", "-") for name in ({*CONFIG_FIELDS, _TRUST_ALL} - {"inputs"}) | {"input"}
    )
)
"""The names of all options as flags and ``[tool.deploy]`` have them."""


def make_config(
    values: Mapping[str, Any], *, where: str, base: BuildConfig | None = None
) -> BuildConfig:
    """A config from plain values under the names of the flags, with dashes or underscores.

    Args:
        values: by name; ``input`` and ``inputs`` are the same, ``trust-all`` is ``trust = ["*"]``.
        where: the file or the flags, for messages.
        base: what is not in `values` is taken from it; None: the defaults.

    Raises:
        ConfigError: a key that is not known (the message lists those that are) or is there twice,
            or a value of the wrong type.
    """
    hints = {**typing.get_type_hints(BuildConfig), _TRUST_ALL: bool}
    cleaned: dict[str, Any] = {}
    for key, value in _split_batch(values, where).items():
        name = _FIELDS.get(key.replace("-", "_"), key.replace("-", "_"))
        if name not in hints:
            raise refuse_unknown(key, OPTIONS, where)
        if name in cleaned:
            raise ConfigError(f"{where}: {key!r} is there twice. Keep one of them.")
        cleaned[name] = convert_value(value, hints[name], f"{where}: {key}")
    if cleaned.pop(_TRUST_ALL, False):
        cleaned["trust"] = ("*",)
    return dataclasses.replace(base or BuildConfig(), **cleaned)


def _split_batch(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``batch``, where it is text: one size, or ``least,best,most``, which says `batches` too."""
    split = dict(values)
    batch = split.get("batch")
    if not isinstance(batch, str):
        return split
    if batch.lstrip("-").isdigit():
        return {**split, "batch": int(batch)}
    try:
        sizes = parse_sizes(batch)
    except ConfigError as error:
        raise ConfigError(f"{where}: batch: {error}") from error
    split["batch"] = sizes.best
    split["batches"] = (batch, *_listed(split.get("batches", ())))
    return split


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def read_project_options(directory: Path) -> dict[str, Any]:
    """The ``[tool.deploy]`` table of the ``pyproject.toml`` in `directory`; empty without one.

    Only the working directory is asked, never the folder of the model: a file that travels with a
    model must not be able to extend the trust in it.

    Raises:
        ConfigError: the file cannot be read or is not valid TOML, or ``tool.deploy`` is not a
            table.
    """
    path = directory / "pyproject.toml"
    if not path.is_file():
        return {}
    content = read_toml(path, fix="Mend it or remove it.")
    tools = content.get("tool", {})
    table = tools.get("deploy", {}) if isinstance(tools, dict) else tools
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.deploy must be a table: write [tool.deploy].")
    return {key: value for key, value in table.items() if key != "serve"}  # `deploy serve` reads it
