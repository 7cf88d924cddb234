"""A running server is driven from the command line, and what it came to is printed and written."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from oip_server import Served, serve
from planted_server import run_planted
from tiny import Cli, Lean, answer, draw

from deploy.bundle.folder import read_bundle
from deploy.client.bench import bench_server
from deploy.client.results import load_schema
from deploy.client.settings import LoadSettings
from export.errors import ServerError


def keep(served: list[Any]) -> Any:
    def model(feeds: dict[str, Any]) -> dict[str, Any]:
        served.append(feeds)
        return {"logits": np.zeros((len(next(iter(feeds.values()))), 3), np.float32)}

    return model


def test_a_server_is_driven_with_inputs_of_its_own_description() -> None:
    seen: list[Any] = []
    inputs = (("x", "FP32", [-1, 4]), ("ids", "INT64", [-1, -1]))
    with serve(Served(keep(seen), inputs=inputs)) as url:
        report = bench_server(url, LoadSettings(concurrency=2, seconds=0.3, batch=3, seed=1))
    assert (report.errors, report.settings.batch) == ({}, 3)
    assert len(seen) == report.made + 20  # the first ones are not counted
    for feeds in (seen[0], seen[-1]):
        assert (feeds["x"].shape, feeds["ids"].shape) == (((3, 4)), (3, 1))
    assert report.target.model == "tiny"
    assert (report.target.name, report.target.version) == ("stdlib", "3")


def test_the_golden_inputs_of_a_bundle_are_sent_where_one_is_given(pristine: Path) -> None:
    seen: list[Any] = []
    settings = LoadSettings(rate=50.0, seconds=0.2, batch=6)
    with serve(Served(keep(seen))) as url:
        bench_server(url, settings, bundle=read_bundle(pristine))
    golden = draw(4, seed=1)
    np.testing.assert_array_equal(seen[-1]["x"], golden[[0, 1, 2, 3, 0, 1]])


def test_a_static_batch_is_kept() -> None:
    seen: list[Any] = []
    with serve(Served(keep(seen), inputs=(("x", "FP32", [2, 4]),))) as url:
        report = bench_server(url, LoadSettings(seconds=0.1, batch=8))
    assert report.settings.batch == 2


@pytest.mark.parametrize("shape", [[-1, 10**12], [2**62] * 4, [1] * 100])
def test_inputs_that_no_memory_holds_are_not_made_up(shape: list[int]) -> None:
    with (
        serve(Served(keep([]), inputs=(("x", "FP32", shape),))) as url,
        pytest.raises(ServerError, match="inputs that are too large to be made up: x:"),
    ):
        bench_server(url, LoadSettings(seconds=0.1))


def test_a_server_that_refuses_the_first_request_is_not_driven() -> None:
    served = Served(keep([]), most=4)
    with serve(served) as url, pytest.raises(ServerError, match="8 rows are more than 4"):
        bench_server(url, LoadSettings(seconds=60.0, batch=8))
    assert len(served.rows) == 1


def test_the_command_line_prints_and_writes(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "load.json"
    flags = ("--rate", 200, "--arrivals", "fixed", "--seconds", 1, "-o", target)
    with run_planted("--delay", 0.001, "--fail-every", 10) as url:
        code, out, err = cli("bench", "--url", url, "--model", "planted", *flags)
    assert code == 0, out + err
    assert err == f"Driving {url} for 1 s, 200 requests a second in an open loop (fixed).\n"
    assert re.search(r"(?m)^ *planted +\d+ +[\d.]+ +[\d.]+ +- +[\d.]+", out)  # no p99 of so few
    assert "503: 20 of 200 requests" in out
    assert "--" not in out  # nor an interval
    report = json.loads(target.read_text())
    jsonschema.validate(report, load_schema())
    assert report["requests"] == {"made": 200, "answered": 180, "errors": {"503": 20}}
    assert 1.0 <= report["latency"]["p50_ms"] < 500.0


def test_the_command_line_refuses_what_does_not_fit(cli: Cli, pristine: Path) -> None:
    for arguments, words in (
        ((pristine, "--rate", "5"), "--rate is for a running server"),
        ((), "Pass a bundle, an ONNX file, or --url URL."),
        (
            ("--url", "http://127.0.0.1:1", "--rate", "1", "--concurrency", "1"),
            "exclude each other",
        ),
        (("--url", "nonsense"), "write http://HOST:PORT"),
    ):
        code, _, err = cli("bench", *arguments)
        assert code == 2, err
        assert words in err
    code, _, err = cli("bench", "--url", "http://127.0.0.1:1")
    assert code == 1
    assert "http://127.0.0.1:1 cannot be reached" in err


def test_a_file_that_cannot_be_written_is_said(cli: Cli, tmp_path: Path) -> None:
    with run_planted() as url:
        arguments = ("--url", url, "--seconds", "0.1", "-o", tmp_path / "no" / "such" / "file.json")
        code, _, err = cli("bench", *arguments)
    assert code == 2
    assert "file.json cannot be written" in err


@pytest.mark.thorough
def test_it_needs_no_torch(lean: Lean) -> None:
    with run_planted() as url:
        done = lean("-m", "deploy", "bench", "--url", url, "--seconds", "0.2")
    assert done.returncode == 0, done.stderr


def test_a_token_is_sent_with_every_request(
    cli: Cli, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def right(feeds: dict[str, Any]) -> dict[str, Any]:
        return {"logits": answer(feeds["x"]).astype(np.float32)}

    with serve(Served(right, token="abc.123")) as url:
        bench = ("bench", "--url", url, "--seconds", "0.1")
        for command in (bench, ("verify", pristine, "--url", url)):
            code, _, err = cli(*command)
            assert code == 1
            assert "401" in err
            assert cli(*command, "--token", "abc.123")[0] == 0
        monkeypatch.setenv("DEPLOY_TOKEN", "abc.123")
        code, out, _ = cli(*bench)
        assert code == 0
        assert "abc.123" not in out
    code, _, err = cli(*bench, "--token", "a\r\nHost: b")
    assert code == 2
    assert "--token: must be of printable ASCII" in err


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_tls_is_spoken_with_who_has_a_certificate_that_is_trusted(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    with run_planted("--certificate", certificate, "--key", key) as url:
        flags = ("--url", url.replace("http:", "https:"), "--seconds", "0.2", "--concurrency", "2")
        code, _, err = cli("bench", *flags)
        assert code == 1
        assert "certificate verify failed" in err
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        code, out, err = cli("bench", *flags)
        assert code == 0, err
        assert "requests failed" not in out
