"""What all records of options share: values of the right type, checked, or refused in one form."""

import difflib
import tomllib
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from export.errors import ConfigError


def read_toml(path: Path, *, fix: str) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        path: the file.
        fix: what to do where it cannot be used, a sentence.

    Raises:
        ConfigError: it cannot be read or is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. {fix}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}. {fix}") from error


def refuse_unknown(key: str, known: Collection[str], where: str) -> ConfigError:
    """The error for an option that is not `known`: names as users write them, with dashes."""
    close = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return ConfigError(f"{where}: unknown option {key!r}. {hint}Known: {', '.join(known)}.")


def check_option(holds: bool, name: str, value: object, expected: str) -> None:
    """Refuse the value of an option unless `holds`; `expected` says what it must be.

    Raises:
        ConfigError: the check does not hold.
    """
    if not holds:
        raise ConfigError(f"--{name.replace('_', '-')} {value}: must be {expected}.")


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse a value that is none of a ``Literal``.

    Raises:
        ConfigError: it is another one; the message lists them.
    """
    known = typing.get_args(choices)
    check_option(value in known, name, value, " or ".join(known))


def convert_value(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`: one value becomes a tuple of it, an int a float.

    Args:
        value: of a flag, of TOML or from Python.
        hint: the type of the field, None among its types or not; a ``Literal`` is not looked at.
        where: what the value was given for, for the message.

    Raises:
        ConfigError: it is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return convert_value(value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            value = [value]
        return tuple(convert_value(item, arguments[0], where) for item in value)
    if origin is Literal:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return make_float(value, where)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {hint.__name__}, not {value!r}.")
    return value


def make_float(value: int, where: str) -> float:
    """A whole number, of which TOML may have any, as a float.

    Raises:
        ConfigError: it is beyond all floats.
    """
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigError(f"{where} must be a number below 1e308.") from error
