"""What the documents name is there: flags, keys, defaults, metrics, variables, files, links."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from deploy.cli import cli
from deploy.client.results import load_schema as load_client_schema
from deploy.config import BuildConfig
from deploy.report import load_schema
from deploy.serving.metrics import ServerStatistics, render_metrics
from deploy.serving.models.repository import ModelRepository
from deploy.serving.options import PREFIX, ServeOptions

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
OTHERS = {"--build-arg", "--profile", "--rm", "--user", "--model-repository"}
OTHERS |= {"--enable-optimizations"}
"""Flags of docker, tritonserver and of Python's own build that the pages show."""


def _walk(command: click.Command) -> Iterator[click.Option]:
    yield from (param for param in command.params if isinstance(param, click.Option))
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from _walk(inner)


def _flags() -> set[str]:
    return {name for o in _walk(cli) for name in (*o.opts, *o.secondary_opts)}


def _cells(text: str) -> Iterator[list[str]]:
    """The cells of every row of every table."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("|-"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _quoted(text: str) -> list[str]:
    """What stands in backticks, but for blocks of code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def _properties(schema: Any) -> set[str]:
    """The names of all keys in a schema."""
    found: set[str] = set()
    if isinstance(schema, dict):
        found |= set(schema.get("properties", {}))
        schema = list(schema.values())
    if isinstance(schema, list):
        for item in schema:
            found |= _properties(item)
    return found


@pytest.mark.parametrize("page", [*TEXTS])
def test_flags_that_a_page_names_are_there(page: str) -> None:
    peers = {
        flag
        for script in (ROOT / "benchmarks").glob("*.py")
        for flag in re.findall(r"--[a-z-]+", script.read_text(encoding="utf-8"))
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", TEXTS[page]))
    assert named <= _flags() | {"--help"} | OTHERS | peers


@pytest.mark.parametrize("page", [*TEXTS])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = ROOT / ("" if page in ("README.md", "CONTRIBUTING.md") else "docs") / (name or page)
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            plain = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in plain, target


def test_files_that_the_design_names_are_there() -> None:
    known = [str(path.relative_to(ROOT)) for path in ROOT.glob("[!.]*/**/*.py")]
    for name in set(re.findall(r"[\w/]+\.py\b", TEXTS["design.md"])):
        assert any(f"/{path}".endswith(f"/{name}") for path in known), name


def test_keys_of_the_report_are_documented_and_no_others() -> None:
    keys, text = _properties(load_schema()), TEXTS["report.md"]
    named = {part for word in _quoted(text) for part in re.split(r"[.\s]", word)}
    assert keys <= named
    table = text.partition("## Certificate")[0]
    rows = [cells for cells in _cells(table) if len(cells) == 3 and cells[1] != "type"]
    documented = {word.rpartition(".")[2] for cells in rows for word in _quoted(cells[0])}
    assert documented <= keys


def test_keys_of_a_load_report_are_documented() -> None:
    assert _properties(load_client_schema()) - {"ci95"} <= {
        *_quoted(TEXTS["clients.md"]),
        *(word for word in _properties(load_schema()) if word in TEXTS["report.md"]),
        *(f"{name}_ci95" for name in ("p50", "p90", "p99")),
    }


def test_metrics_are_documented_and_no_others() -> None:
    page = render_metrics(ModelRepository(), ServerStatistics()).decode()
    there = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    text = TEXTS["serving.md"].partition("## Metrics")[2].partition("\n## ")[0]
    text += TEXTS["serving.md"].partition("## Several workers")[2].partition("\n## ")[0]
    named: set[str] = set()
    for word in _quoted(text):
        if match := re.fullmatch(r"(\w+)\{([\w,]+)\}(\w+)", word):
            named |= {f"{match[1]}{part}{match[3]}" for part in match[2].split(",")}
        elif word.startswith("_"):  # the other end of the name before
            named.add(f"deploy_shadow{word}")
        else:
            named.add(word)
    assert there <= named
    assert {name for name in named if name.startswith(("deploy_", "nv_"))} <= there


def test_options_of_a_server_are_documented_with_their_defaults() -> None:
    fields = {f.name.replace("_", "-"): f.default for f in dataclasses.fields(ServeOptions)}
    seen: set[str] = set()
    for cells in _cells(TEXTS["serving.md"]):
        names, shown = _quoted(cells[0]), cells[1].split(", ")
        if not names or not set(names) <= set(fields):
            continue
        seen |= set(names)
        for name, text in zip(names, shown, strict=len(names) == len(shown)):
            if re.fullmatch(r"[\d.]+", text) and len(names) == len(shown):
                assert str(fields[name]).removesuffix(".0") == text, name
    assert seen == set(fields)


@pytest.mark.parametrize("command", ["build", "serve"])
def test_the_help_tells_the_defaults_that_are(command: str) -> None:
    options: Any = BuildConfig() if command == "build" else ServeOptions()
    told = 0
    for option in _walk(cli.commands[command]):
        match = re.search(r"\[([^\[\]]+)\]$", option.help or "")
        value = getattr(options, str(option.name), None)
        if match is None or value in (None, "", (), False, True):
            continue
        words = " ".join(value) if isinstance(value, tuple) else str(value).removesuffix(".0")
        if value == 0 and not match[1].isdigit():
            continue  # 0 stands for something that has words of its own
        assert match[1] == words, option.name
        told += 1
    assert told > 10


def test_variables_that_the_pages_name_are_read() -> None:
    source = "".join(
        path.read_text(encoding="utf-8")
        for house in ("deploy", "tests")
        for path in (ROOT / house).rglob("*.py")
        if path.name != Path(__file__).name
    )
    fields = {f"{PREFIX}{f.name.upper()}" for f in dataclasses.fields(ServeOptions)}
    for name in set(re.findall(r"\bDEPLOY_[A-Z_]+\b", "".join(TEXTS.values()))):
        assert name in fields or f'"{name}"' in source, name


@pytest.mark.parametrize("record", [BuildConfig, ServeOptions])
def test_every_option_is_in_the_docstring_of_its_record(record: type[Any]) -> None:
    told = re.findall(r"^ {4}([a-z_0-9, ]+):", inspect.getdoc(record) or "", re.MULTILINE)
    names = {name.strip() for line in told for name in line.split(",")}
    assert {field.name for field in dataclasses.fields(record)} == names
