"""What an error shows is the command that was given, whole, with what it lacked."""

import shlex

import pytest

from deploy.cli.given import complete_command, explain_error
from export.errors import ConfigError, Remedy, TrustError

TRUST = (("--trust", "nets"), ("--trust", "timm"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["build", "m.pt"], "build m.pt --trust nets --trust timm"),
        (["build", "--trust", "timm", "m.pt"], "build --trust timm m.pt --trust nets"),
        (["build", "m.pt", "--trust=nets", "-o", "x"], "build m.pt --trust=nets -o x --trust timm"),
        (["build", "--", "-m.pt"], "build --trust nets --trust timm -- -m.pt"),
        (["build", "nets", "--trust", "net"], "build nets --trust net --trust nets --trust timm"),
    ],
)
def test_what_is_missing_is_added_and_nothing_else(given: list[str], words: str) -> None:
    assert complete_command(given, TRUST) == f"deploy {words}"


def test_a_shell_reads_the_words_that_were_given() -> None:
    given = ["build", "my  model.pt", "--data", "$(reboot);'x'.npz", "-o", "a*b"]
    command = complete_command(given, (("--trust-all",),))
    assert shlex.split(command) == ["deploy", *given, "--trust-all"]


def test_an_error_with_a_remedy_ends_in_the_command() -> None:
    error = TrustError("x needs y.", Remedy("If so:", TRUST, 'trust=("nets", "timm")'))
    lead, command = explain_error(error, ["verify", "my  bundle"]).split("\n")
    assert lead == "x needs y. If so:"
    assert shlex.split(command) == ["deploy", "verify", "my  bundle", *sum(TRUST, ())]
    assert str(error) == 'x needs y. If so: trust=("nets", "timm")'


def test_other_errors_are_shown_as_they_are_without_escapes() -> None:
    assert explain_error(ConfigError("a  \x1b[2J\nb"), ["build"]) == "a \\x1b[2J\nb"
