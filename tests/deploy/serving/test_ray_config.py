"""The options of a server in the words of Ray Serve, and the file that it reads."""

from pathlib import Path

import pytest
import yaml
from tiny import Cli

from deploy.bundle.folder import read_bundle
from deploy.serving.options import ServeOptions
from deploy.serving.ray_config import describe_deployment, describe_http, write_config
from export.errors import BundleError, ConfigError


def test_the_file_says_the_options_and_where_the_bundles_are(
    pristine: Path, tmp_path: Path
) -> None:
    options = ServeOptions(
        port=9000, max_batch=16, shadow=0.25, max_replicas=3, trust=("nets",), replica_cpus=2.0
    )
    path = write_config(tmp_path / "serve.yaml", [pristine], options)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["http_options"] == describe_http(options)
    assert content["http_options"]["host"] == "127.0.0.1"
    (application,) = content["applications"]
    assert application["import_path"] == "deploy.serving.ray:build_application"
    assert application["args"] == {
        "bundles": [str(pristine)],
        "identities": {"tiny/1": read_bundle(pristine).manifest.identity()},
        "max-batch": 16,
        "shadow": 0.25,
        "threads": 2,  # as many as a replica has cores
        "trust": ["nets"],
    }
    (deployment,) = application["deployments"]
    assert deployment.pop("name") == "BundleReplica"
    assert deployment == describe_deployment(options)


def test_limits_follow_from_those_of_one_process() -> None:
    options = ServeOptions(max_batch=4, instances=3, queue_rows=50, stop_timeout=20.0, drain=2.0)
    described = describe_deployment(options)
    assert described["max_ongoing_requests"] == 24
    assert described["max_queued_requests"] == 50
    assert described["autoscaling_config"]["target_ongoing_requests"] == 12.0
    assert described["graceful_shutdown_timeout_s"] == 22.0
    given = describe_deployment(ServeOptions(target_requests=2.5))
    assert given["autoscaling_config"]["target_ongoing_requests"] == 2.5
    assert describe_http(options)["request_timeout_s"] > options.timeout


def test_a_token_is_never_written(pristine: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path / "serve.yaml", [pristine], ServeOptions(token="hunter2"))
    assert "hunter2" not in path.read_text(encoding="utf-8")


def test_a_file_that_cannot_be_written_is_said(pristine: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--ray-config .* cannot be written: No such file"):
        write_config(tmp_path / "missing" / "serve.yaml", [pristine], ServeOptions())


def test_the_command_writes_it_and_starts_nothing(pristine: Path, tmp_path: Path, cli: Cli) -> None:
    target = tmp_path / "serve.yaml"
    code, out, _ = cli("serve", pristine, "--ray-config", target, "--max-replicas", 2)
    assert (code, out) == (0, f"Ray Serve config: {target}\n")
    assert "max_replicas: 2" in target.read_text(encoding="utf-8")


def test_what_ray_serve_has_not_is_refused(pristine: Path, tmp_path: Path, cli: Cli) -> None:
    target = tmp_path / "serve.yaml"
    with pytest.raises(ConfigError, match="--tls-cert is for one process"):
        write_config(target, [pristine], ServeOptions(tls_cert="a.pem", tls_key="b.pem"))
    for options, message in [
        (ServeOptions(workers=2), "--workers 2 is for one machine; on Ray Serve set"),
        (ServeOptions(control="s"), "--control is for one process"),
        (ServeOptions(traces="http://a"), "--traces is for one process"),
    ]:
        with pytest.raises(ConfigError, match=message):
            write_config(target, [pristine], options)
    with pytest.raises(BundleError, match="is no bundle and holds none"):
        write_config(target, [tmp_path], ServeOptions())
    code, _, err = cli("serve", pristine, "--ray", "--min-replicas", 2)
    assert (code, "--max-replicas 1: must be at least --min-replicas 2" in err) == (2, True)
    assert not target.exists()
