"""Objects by their dotted names, ``package.module:attribute``, as options of the user give them.

Imports nothing of torch, so that a command that needs only data stays light.
"""

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from export.errors import ConfigError


def import_object(reference: str, *, what: str) -> Any:
    """The object that ``package.module:attribute`` names; `what` is the flag, for messages.

    The working directory is searched last, so that it never shadows an installed package.

    Raises:
        ConfigError: malformed, no such module or attribute, or the import itself fails.
    """
    module_name, colon, attribute = reference.partition(":")
    named_a_file = module_name.endswith(".py")
    if not colon or named_a_file or not is_dotted(module_name) or not is_dotted(attribute):
        raise ConfigError(
            f"{what} {reference!r}: write package.module:attribute, such as mypkg.nets:make_net "
            "(dots, no slashes, no .py)."
        )
    search_working_directory()
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            if not hasattr(found, part):  # packages that import their parts late raise anything
                names = [name for name in dir(found) if not name.startswith("_")]
                close = difflib.get_close_matches(part, names, cutoff=0.4) or names[:5]
                raise ConfigError(
                    f"{what}: {module_name} has no {attribute!r}. "
                    f"Close: {', '.join(close) or 'none'}."
                )
            found = getattr(found, part)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and not is_within(module_name, error.name):
            raise ConfigError(f"{what}: importing {module_name!r} failed: {error}.") from error
        raise ConfigError(f"{what} {reference}: {describe_missing_module(error)}") from error
    except (Exception, SystemExit) as error:  # the user's own module: whatever it raises
        raise ConfigError(
            f"{what}: importing {module_name!r} raised {type(error).__name__}: {error}."
        ) from error
    return found


def describe_missing_module(error: ModuleNotFoundError) -> str:
    """What to do about a module that is not there.

    Packages that import their parts late raise this error for a part that exists and whose own
    imports fail; it names no module then, and its cause says which.
    """
    if error.name is None:
        cause = error.__cause__
        why = "" if cause is None else f" ({type(cause).__name__}: {cause})"
        return f"importing it failed: {str(error).rstrip('.')}{why}. Mend that import first."
    return (
        f"there is no module {error.name!r}. Run from the directory that holds it, set "
        "PYTHONPATH, or install it."
    )


def is_dotted(name: str) -> bool:
    """Whether it is identifiers joined by dots, and so cannot hold shell text or a path."""
    return all(part.isidentifier() for part in name.split("."))


def is_within(name: str, package: str) -> bool:
    """Whether the dotted `name` is `package` itself or below it."""
    return name == package or name.startswith(f"{package}.")


def name_import(source: Path) -> str:
    """What a file of source code is called where it is imported.

    Before its own name stand those of the packages that it is in, which have an ``__init__.py``;
    else, below the working directory, those of its folders.
    """
    source = source.resolve()
    folders: list[str] = []
    folder = source.parent
    while (folder / "__init__.py").is_file():
        folders.insert(0, folder.name)
        folder = folder.parent
    if not folders and folder.is_relative_to(Path.cwd()):
        folders = list(folder.relative_to(Path.cwd()).parts)
    name = ".".join([*folders, source.stem])
    return name if is_dotted(name) else source.stem


def search_working_directory() -> None:
    """Let imports find modules of the working directory, behind all others."""
    directory = str(Path.cwd())
    if directory not in sys.path and "" not in sys.path:
        sys.path.append(directory)
