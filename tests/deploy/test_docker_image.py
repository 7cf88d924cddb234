"""The RUN lines of docker/cpu.Dockerfile, performed here: what they install serves without torch.

No image is built. A fresh virtual environment stands for the Python of the base image, and a folder
for the paths that the lines name. `tests/test_docker_packages.py` is the quick form of it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from dockerfiles import FOLDER, ROOT, find_lacking, read_stages

from deploy.cli import cli

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Image:
    """What stands for a container: its folder, and the environment of its commands."""

    root: Path
    environment: Mapping[str, str]

    def run(self, command: str, cwd: str = "/") -> "subprocess.CompletedProcess[str]":
        """`command` by ``sh -c``, with the absolute paths that it names laid under `root`."""
        return subprocess.run(
            ["/bin/sh", "-c", self.place(command)],
            cwd=self.root / cwd.lstrip("/"),
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def place(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(opt/deploy|src|wheels)\b", rf"{self.root}/\1", text)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Every COPY and RUN of the stage `build`, in order."""
    root = tmp_path_factory.mktemp("image")
    subprocess.run([sys.executable, "-m", "venv", root / "usr"], check=True)
    (root / "opt").mkdir()
    build = next(stage for stage in read_stages(FOLDER / "cpu.Dockerfile") if stage.name == "build")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    settings = dict(pair.split("=", 1) for line in build.all("ENV") for pair in line.split())
    environment = {
        **kept,
        **settings,
        "PIP_RETRIES": "1",
        "PATH": f"{root}/usr/bin:{os.environ['PATH']}",
    }
    del environment["PIP_NO_CACHE_DIR"]  # downloads of an earlier run are the same files
    image, folder = Image(root, {**environment, "HOME": str(root)}), "/"
    for instruction, rest in build.steps:
        if instruction == "WORKDIR":
            folder = rest
            (root / folder.lstrip("/")).mkdir(parents=True)
        elif instruction == "COPY":
            *sources, target = rest.split()
            for source in sources:
                _copy(ROOT / source, root / folder.lstrip("/") / target)
        elif instruction == "RUN":
            done = image.run(rest, folder)
            if "connection broken" in done.stderr:
                pytest.skip("no package index answers")
            assert done.returncode == 0, f"{rest}\n{done.stdout}\n{done.stderr}"
    shutil.rmtree(root / "src")  # the final stage has only /opt/deploy
    return image


def test_torch_is_absent(image: Image) -> None:
    installed = _packages(image)
    assert {"deploykit", "onnxruntime", "openvino", "starlette", "uvicorn", "grpcio"} <= installed
    assert {name for name in installed if name.startswith(("torch", "nvidia"))} == set()
    assert "pip" not in installed


def test_every_version_is_pinned(image: Image) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_canonical(line.partition("==")[0]) for line in lines if "==" in line}
    assert _packages(image) - pinned == {"deploykit"}


def test_the_command_answers(image: Image) -> None:
    assert "doctor" in image.run("/opt/deploy/bin/deploy --help").stdout
    done = image.run("/opt/deploy/bin/python -c 'import deploy, sys; print(deploy.__file__)'")
    assert done.stdout.startswith(str(image.root / "opt/deploy/lib")), done.stderr


def test_the_doctor_finds_the_engines_of_a_cpu(image: Image) -> None:
    done = image.run("/opt/deploy/bin/deploy doctor")
    assert done.returncode == 0, done.stderr
    assert re.search(r"torch\b.*\n?.*not installed", done.stdout)
    assert re.search(r"openvino\s.*fp32, int8", done.stdout), done.stdout


def test_a_bundle_runs_there(image: Image, pristine: Path) -> None:
    done = image.run(f"/opt/deploy/bin/deploy verify '{pristine}'")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "openvino" in done.stdout


def test_the_server_checks_itself_there(image: Image, pristine: Path) -> None:
    serve = cli.commands.get("serve")
    if serve is None or not any("--check" in parameter.opts for parameter in serve.params):
        pytest.skip("`deploy serve --check` is not there yet")
    done = image.run(f"/opt/deploy/bin/deploy serve '{pristine}' --check")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_no_library_is_needed_that_a_slim_image_lacks(image: Image) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf, of binutils")
    # What OpenVINO would load for an Intel GPU is left alone: the container is given none.
    libraries = [path for path in (image.root / "opt").rglob("*.so*") if "_gpu_" not in path.name]
    assert find_lacking(libraries) == set()


def _packages(image: Image) -> set[str]:
    site = next(image.root.glob("opt/deploy/lib/python*/site-packages"))
    return {_canonical(path.name.split("-")[0]) for path in site.glob("*.dist-info")}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(exist_ok=True)
        shutil.copy(source, target)
