"""Dockerfiles as stages of instructions, for the tests that read them and that perform them."""

import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docker"
SLIM = re.compile(
    r"ld-linux.*|lib(c|m|dl|rt|util|pthread|gcc_s|stdc\+\+|z|crypt|ffi|ssl|crypto)\.so\..*"
)
"""Shared libraries of Debian's slim images of Python; more would have to be installed."""


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it: the base image, its own name, (instruction, rest) in order."""

    base: str
    name: str
    steps: tuple[tuple[str, str], ...]

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]


def read_stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile; continued lines are joined, comments left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    stages: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name, ()))
        elif instruction:
            last = stages.pop()
            stages.append(Stage(last.base, last.name, (*last.steps, (instruction, rest.strip()))))
    return stages


def find_lacking(libraries: Iterable[Path]) -> set[str]:
    """Which libraries these need that neither they nor `SLIM` are; asks readelf."""
    paths = list(libraries)
    done = subprocess.run(
        ["readelf", "--dynamic", "--wide", *paths], capture_output=True, text=True, check=False
    )
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout))
    assert "libc.so.6" in needed
    own = {path.name for path in paths}
    return {name for name in needed - own if not SLIM.fullmatch(name)}


def read_command(text: str) -> list[str]:
    """The exec form of CMD, ENTRYPOINT and HEALTHCHECK: ``["a", "b"]``, after any flags."""
    return [str(word) for word in json.loads(text[text.index("[") :])]
