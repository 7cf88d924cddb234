"""The command that was given, with what it lacked: errors show it whole, to be copied and run."""

import shlex
from collections.abc import Sequence

from deploy.report.wording import clean, escape
from export.errors import DeployError, LoadError


def explain_error(error: DeployError, arguments: Sequence[str]) -> str:
    """The message of `error` for a terminal; where flags would mend it, with the command to run.

    Args:
        error: its names and paths come from files, so what is not printable is spelled out.
        arguments: of the command line, without the program.
    """
    if not isinstance(error, LoadError) or error.remedy is None:
        return "\n".join(clean(line) for line in str(error).splitlines())
    lead = clean(f"{error.message} {error.remedy.lead}")
    return f"{lead}\n  {escape(complete_command(arguments, error.remedy.flags))}"


def complete_command(arguments: Sequence[str], flags: Sequence[tuple[str, ...]]) -> str:
    """``deploy`` with `arguments` and those of `flags` that they lack, quoted for a shell."""
    missing = [word for flag in flags if not _is_given(flag, arguments) for word in flag]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return shlex.join(["deploy", *arguments[:end], *missing, *arguments[end:]])


def _is_given(flag: tuple[str, ...], arguments: Sequence[str]) -> bool:
    width = len(flag)
    runs = (tuple(arguments[start : start + width]) for start in range(len(arguments)))
    return flag in runs or "=".join(flag) in arguments
