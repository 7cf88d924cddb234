"""The README's commands exist. None is run here that would run this suite again."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from deploy.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[list[str]]:
    """The lines of every fenced block of the README in `language`."""
    blocks: list[list[str]] = []
    inside = None
    for line in README.splitlines():
        if line.startswith("```"):
            inside = line.removeprefix("```") if inside is None else None
            if inside == language:
                blocks.append([])
        elif inside == language:
            blocks[-1].append(line)
    return blocks


def _commands(program: str) -> list[list[str]]:
    """Lines of the README's code blocks that begin with `program`, as words."""
    lines = [line.strip().removeprefix("$ ") for block in _blocks("console") for line in block]
    return [re.sub(r"\s+#.*", "", line).split() for line in lines if line.startswith(f"{program} ")]


def test_make_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = {word for command in _commands("make") for word in command[1:]}
    assert {"demo", "test", "test-thorough"} <= named <= targets


def test_ci_runs_the_same_targets() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert [line for line in script.splitlines() if line.startswith("make ")] == [
        "make check",
        "make demo",
        "make test",
        "make test-thorough",
    ]


@pytest.mark.parametrize("command", _commands("deploy"), ids=" ".join)
def test_deploy_commands_parse(command: list[str]) -> None:
    flags = [word.partition("=")[0] for word in command if word.startswith("-")]
    parser = cli.commands[command[1]]
    known = {option for parameter in parser.params for option in parameter.opts}
    if isinstance(parser, click.Group):
        parser = next(parser.commands[word] for word in command[2:] if word in parser.commands)
        known |= {option for parameter in parser.params for option in parameter.opts}
    assert set(flags) <= known | {"--help"}


def test_python_blocks_compile() -> None:
    blocks = _blocks("python")
    assert blocks
    for block in blocks:
        compile("\n".join(block), "README.md", "exec")


def test_the_readme_shows_every_command() -> None:
    assert {command[1] for command in _commands("deploy")} == set(cli.commands)


def test_help_lists_every_command() -> None:
    answer = CliRunner().invoke(cli, ["--help"])
    assert answer.exit_code == 0
    assert all(f"\n  {name}" in answer.output for name in cli.commands)


def test_constraints_pin_every_requirement_of_the_two_commands() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    parts = ("build", "otel", "rtx", "serve", "dev")
    wanted = [*project["dependencies"], *(line for part in parts for line in extras[part])]
    names = {_canonical(re.split(r"[\[<>=]", line)[0]) for line in wanted} - {"deploykit"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_canonical(line.partition("==")[0]) for line in lines if "==" in line}
    assert names <= pinned
    assert "torch==2.13.0" in lines


def test_the_packages_are_listed_in_full() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for house in ("deploy", "export", "quantize")
        for path in (ROOT / house).rglob("__init__.py")
    }
    assert set(listed["tool"]["setuptools"]["packages"]) == packages


def test_the_module_can_be_started() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "deploy", "--version"], capture_output=True, text=True, check=True
    )
    assert answer.stdout.startswith("deploy, version ")


def _canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-")
