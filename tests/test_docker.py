"""The Dockerfiles and the compose file keep what is promised of them.

What the lines of the CPU image do is tested by `deploy/test_docker_image.py`, which is slow, and
what they install by `test_docker_packages.py`; hadolint and the schema of compose files are part of
`make check`.
"""

import fnmatch
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfiles import FOLDER, ROOT, read_command, read_stages

from deploy.cli import cli

FILES = sorted(FOLDER.glob("*.Dockerfile"))
SERVING = ("cpu.Dockerfile", "gpu.Dockerfile")
HEALTH = "http://127.0.0.1:8000/v2/health/ready"

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
every_server = pytest.mark.parametrize("name", SERVING)


def test_there_are_three() -> None:
    assert [path.name for path in FILES] == [
        "builder.Dockerfile",
        "cpu.Dockerfile",
        "gpu.Dockerfile",
    ]


@every_file
def test_base_images_are_pinned_by_a_full_version(path: Path) -> None:
    bases = [stage.base for stage in read_stages(path)]
    assert bases
    assert [base for base in bases if not re.search(r":\d+\.\d+\.\d+-[a-z0-9.-]+$", base)] == []


@every_file
def test_the_final_stage_installs_nothing_and_takes_from_the_build(path: Path) -> None:
    *earlier, final = read_stages(path)
    assert earlier
    assert final.all("RUN") == []
    assert final.all("COPY") == ["--from=build /opt/deploy /opt/deploy"]
    build = next(stage for stage in earlier if stage.name == "build")
    assert build.base == final.base  # the environment links to that interpreter


@every_file
def test_nobody_is_root(path: Path) -> None:
    users = read_stages(path)[-1].all("USER")
    assert len(users) == 1
    assert all(int(number) >= 10000 for number in users[0].split(":"))


@every_server
def test_no_extra_of_a_serving_image_asks_for_torch(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    runs = " ".join(run for stage in read_stages(FOLDER / name) for run in stage.all("RUN"))
    (chosen,) = re.findall(r"\.whl\)\[([a-z,]+)\]", runs)
    wanted = [extras["optional-dependencies"][extra] for extra in chosen.split(",")]
    assert "serve" in chosen
    assert [line for lines in wanted for line in lines if line.startswith("torch")] == []


@every_file
def test_versions_come_from_the_constraints(path: Path) -> None:
    runs = [run for stage in read_stages(path) for run in stage.all("RUN")]
    for run in runs:
        for install in re.findall(r"pip (?:--python \S+ )?install [^&]*", run):
            assert "--constraint constraints.txt" in install


@every_file
def test_the_context_has_what_is_copied_and_nothing_else(path: Path) -> None:
    copied = {
        word.removeprefix("./")
        for stage in read_stages(path)
        for rest in stage.all("COPY")
        if not rest.startswith("--from")
        for word in rest.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    assert any(fnmatch.fnmatch("deploy/__pycache__", rule.replace("**/", "*/")) for rule in rules)


@every_server
def test_the_command_is_one_that_there_is(name: str) -> None:
    final = read_stages(FOLDER / name)[-1]
    program, *_ = read_command(final.all("ENTRYPOINT")[0])
    command, *arguments = read_command(final.all("CMD")[0])
    assert (program, command, arguments[0]) == ("/opt/deploy/bin/deploy", "serve", "/bundle")
    if "serve" not in cli.commands:
        pytest.skip("`deploy serve` is not there yet")
    known = {option for parameter in cli.commands["serve"].params for option in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= known


class _Answer(BaseHTTPRequestHandler):
    """Answers every GET with the status of its server, and keeps the path."""

    def do_GET(self) -> None:
        self.server.path = self.path  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False)])
def test_health_is_what_the_server_says_of_itself(
    server: HTTPServer, status: int, healthy: bool
) -> None:
    server.status = status  # type: ignore[attr-defined]
    program, *arguments = _health_check("cpu.Dockerfile")
    assert program == "/opt/deploy/bin/python"
    here = [word.replace(":8000/", f":{server.server_port}/") for word in arguments]
    done = subprocess.run([sys.executable, *here], capture_output=True, check=False)
    assert (done.returncode == 0) is healthy
    assert server.path == "/v2/health/ready"  # type: ignore[attr-defined]


def test_nobody_listening_is_not_healthy(server: HTTPServer) -> None:
    here = [
        word.replace(HEALTH, "http://127.0.0.1:1/v2/health/ready")
        for word in _health_check("gpu.Dockerfile")[1:]
    ]
    done = subprocess.run([sys.executable, *here], capture_output=True, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize("service", ["serve", "serve-gpu"])
def test_a_service_is_bound_to_this_machine_and_cannot_write(service: str) -> None:
    spec = _services()[service]
    assert spec["ports"] == ["127.0.0.1:8000:8000", "127.0.0.1:8001:8001"]
    assert [(v["target"], v["read_only"]) for v in spec["volumes"]] == [("/bundle", True)]
    assert spec["read_only"] is True
    assert spec["cap_drop"] == ["ALL"]
    assert spec["security_opt"] == ["no-new-privileges:true"]
    assert set(spec["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}


@pytest.mark.parametrize(
    ("service", "name"), [("serve", "cpu.Dockerfile"), ("serve-gpu", "gpu.Dockerfile")]
)
def test_a_service_is_built_and_watched_as_its_dockerfile_says(service: str, name: str) -> None:
    spec = _services()[service]
    context = FOLDER / spec["build"]["context"]
    assert (context / spec["build"]["dockerfile"]).resolve() == FOLDER / name
    assert spec["healthcheck"]["test"] == ["CMD", *_health_check(name)]
    flags = read_stages(FOLDER / name)[-1].all("HEALTHCHECK")[0]
    for flag in ("interval", "timeout", "start_period"):
        assert f"--{flag.replace('_', '-')}={spec['healthcheck'][flag]} " in flags


def test_the_gpu_is_asked_for_by_its_profile_alone() -> None:
    services = _services()
    assert "profiles" not in services["serve"]
    assert services["serve-gpu"]["profiles"] == ["gpu"]
    devices = services["serve-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "reservations" not in services["serve"]["deploy"]["resources"]


def _health_check(name: str) -> list[str]:
    return read_command(read_stages(FOLDER / name)[-1].all("HEALTHCHECK")[0])


def _services() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
