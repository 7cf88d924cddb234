"""Options come from four places with one precedence, and are checked before anything starts."""

from pathlib import Path
from typing import Any

import click
import pytest

from deploy.cli import cli
from deploy.config_reading import read_project_options
from deploy.serving.options import ServeOptions, gather_options
from export.errors import ConfigError


def gather(directory: Path, flags: dict[str, Any] | None = None, **env: str) -> ServeOptions:
    return gather_options(flags or {}, env, directory)


def test_flags_go_before_the_environment_before_the_file_before_defaults(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text("[tool.deploy.serve]\nport = 1\nmax-batch = 2\nqueue_rows = 3\n")
    found = gather(
        tmp_path, {"port": 7, "threads": None}, DEPLOY_SERVE_PORT="5", DEPLOY_SERVE_MAX_BATCH="6"
    )
    assert (found.port, found.max_batch, found.queue_rows, found.grpc_port) == (7, 6, 3, 8001)


def test_a_file_that_is_named_replaces_the_projects(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.deploy.serve]\nport = 1\n")
    named = tmp_path / "serve.toml"
    named.write_text('max-delay-ms = 2\ntrust = ["a", "b"]\n')
    found = gather(tmp_path, {"config": str(named)})
    assert (found.port, found.max_delay_ms, found.trust) == (8000, 2.0, ("a", "b"))


def test_a_table_for_serving_does_not_disturb_other_commands(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.deploy]\nbatch = 2\n[tool.deploy.serve]\nport = 1\n"
    )
    assert read_project_options(tmp_path) == {"batch": 2}


def test_lists_and_texts_from_the_environment(tmp_path: Path) -> None:
    found = gather(tmp_path, DEPLOY_SERVE_TRUST="a, b", DEPLOY_SERVE_TIMEOUT="2.5")
    assert (found.trust, found.timeout) == (("a", "b"), 2.5)


def test_truths_from_every_place(tmp_path: Path) -> None:
    assert (gather(tmp_path).rebuild, gather(tmp_path).fallback) == (False, True)
    (tmp_path / "pyproject.toml").write_text("[tool.deploy.serve]\nrebuild = true\n")
    found = gather(tmp_path, {"fallback": None}, DEPLOY_SERVE_FALLBACK="false")
    assert (found.rebuild, found.fallback) == (True, False)
    flagged = gather(tmp_path, {"rebuild": False}, DEPLOY_SERVE_FALLBACK="1")
    assert (flagged.rebuild, flagged.fallback) == (False, True)
    with pytest.raises(ConfigError, match="DEPLOY_SERVE_REBUILD must be true or false, not 'yes'"):
        gather(tmp_path, DEPLOY_SERVE_REBUILD="yes")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prot = 1", "unknown option 'prot'. Did you mean port"),
        ("port = '1'", "port must be int, not '1'"),
        ("port = true", "port must be int, not True"),
        ("trust = [1]", "must be a list of names"),
        ("port = ", "is not valid TOML"),
        (f"x = {'[' * 5000}{']' * 5000}", "is not valid TOML"),
        (f"timeout = 1{'0' * 400}", "timeout must be a number below 1e308"),
    ],
)
def test_a_wrong_file_says_where_and_what(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        gather(tmp_path, {"config": str(file)})
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 70_000),
        ("instances", 0),
        ("max_batch", 0),
        ("max_delay_ms", -1.0),
        ("max_delay_ms", float("nan")),
        ("timeout", 0.0),
        ("timeout", float("inf")),
        ("shadow", 1.5),
        ("nonfinite", "ignore"),
        ("tls_cert", "only.pem"),
        ("token", "\u00e9"),
        ("token", "secret\n"),
        ("host", ""),
        ("host", " "),
    ],
)
def test_values_that_cannot_be_used(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}"):
        ServeOptions(**{name: value})


def test_wrong_variables_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="DEPLOY_SERVE_PORT must be int, not 'x'"):
        gather(tmp_path, DEPLOY_SERVE_PORT="x")
    with pytest.raises(ConfigError, match=r"no such option\. Did you mean DEPLOY_SERVE_PORT\?"):
        gather(tmp_path, DEPLOY_SERVE_PROT="1")


def test_what_kubernetes_tells_of_a_service_of_that_name_is_no_option(tmp_path: Path) -> None:
    told = {
        "DEPLOY_SERVE_PORT": "tcp://10.96.0.7:80",
        "DEPLOY_SERVE_PORT_80_TCP": "tcp://10.96.0.7:80",
        "DEPLOY_SERVE_PORT_80_TCP_ADDR": "10.96.0.7",
        "DEPLOY_SERVE_SERVICE_HOST": "10.96.0.7",
        "DEPLOY_SERVE_SERVICE_PORT": "80",
        "DEPLOY_SERVE_SERVICE_PORT_HTTP": "80",
        "DEPLOY_SERVE_GRPC_PORT": "tcp://10.96.0.8:81",
        "DEPLOY_SERVE_GRPC_PORT_81_TCP_PROTO": "tcp",
        "DEPLOY_SERVE_CANARY_SERVICE_HOST": "10.96.0.9",
    }
    assert gather(tmp_path, **told) == ServeOptions()
    assert gather(tmp_path, **told, DEPLOY_SERVE_MAX_BATCH="4") == ServeOptions(max_batch=4)
    with pytest.raises(ConfigError, match="DEPLOY_SERVE_PORT_80: there is no such option"):
        gather(tmp_path, DEPLOY_SERVE_PORT_80="1")


def test_an_option_in_two_spellings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.deploy.serve]\nmax-batch = 2\nmax_batch = 4\n")
    with pytest.raises(ConfigError, match="max_batch is there twice, with '-' and with '_'"):
        gather(tmp_path)


def test_a_token_that_was_to_be_filled_in_is_not_taken_for_none(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"token that is given is empty.* unset DEPLOY_SERVE_TOKEN"
    ):
        gather(tmp_path, DEPLOY_SERVE_TOKEN="")
    with pytest.raises(ConfigError, match="token that is given is empty"):
        gather(tmp_path, {"token": ""}, DEPLOY_SERVE_TOKEN="secret")
    assert gather(tmp_path, {"token": "flag"}, DEPLOY_SERVE_TOKEN="").token == "flag"
    assert gather(tmp_path).token == ""


def test_the_token_is_not_shown() -> None:
    assert "hidden" not in repr(ServeOptions(token="hidden"))


def test_every_option_is_a_flag() -> None:
    command = cli.commands["serve"]
    assert isinstance(command, click.Command)
    beside = {"bundles", "check", "config", "ray", "ray_config"}
    flags = {parameter.name for parameter in command.params} - beside
    assert flags == set(ServeOptions.__dataclass_fields__)
