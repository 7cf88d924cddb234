"""What was exported is accepted by a real Triton, field by field, and answers through the wire."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from altered import alter, alter_report
from google.protobuf import json_format, text_format
from real_triton import VERSION, RefusedError, Triton, install_triton, put_numpy_model, run_triton
from tiny import FIRST, SECOND, Cli, answer, draw

from deploy.bundle.folder import read_bundle
from deploy.client import open_server
from deploy.exports import export_triton
from export.artifacts import TensorSpec
from export.errors import ServerError

pytestmark = pytest.mark.slow

model_config_pb2 = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed"
)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Triton:
    return install_triton(tmp_path_factory.mktemp("triton"))


@pytest.fixture
def exported(bundle_path: Path, tmp_path: Path) -> Path:
    """The tiny bundle, measured at batch 2, in a repository."""
    bundle = alter_report(
        read_bundle(bundle_path), lambda report: report["measurement"].update(batch=2)
    )
    return export_triton(bundle, tmp_path / "repo").path


@pytest.fixture
def seen(exported: Path) -> Path:
    return put_numpy_model(exported, "1", (FIRST, SECOND))


@pytest.fixture
def url(triton: Triton, exported: Path, seen: Path, tmp_path: Path) -> Iterator[str]:
    with run_triton(triton, exported.parent, tmp_path / "log.txt") as url:
        yield url


def test_it_is_loaded_as_written(url: str, exported: Path, seen: Path) -> None:
    with open_server(url) as server:
        assert server.describe()["version"] == VERSION
        model = server.find_model(None)
        assert model == "tiny"
        loaded = json_format.ParseDict(
            server.config(model), model_config_pb2.ModelConfig(), ignore_unknown_fields=True
        )
    written = text_format.Parse(
        (exported / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
    )
    for field, value in written.ListFields():
        if field.name in ("instance_group", "dynamic_batching"):
            continue  # Triton adds names and sizes of its own
        assert getattr(loaded, field.name) == value, field.name
    assert [(g.count, g.kind) for g in loaded.instance_group] == [
        (g.count, g.kind) for g in written.instance_group
    ]
    assert list(loaded.dynamic_batching.preferred_batch_size) == [2]


def test_the_warm_ups_ran_before_it_was_ready(url: str, seen: Path) -> None:
    lines = seen.read_text().splitlines()
    golden = draw(4, seed=1)
    for index, (line, rows) in enumerate(zip(lines, (1, 2, 3), strict=True)):
        expected = np.repeat(golden[index : index + 1], rows, axis=0)
        np.testing.assert_array_equal(np.array(json.loads(line), np.float32), expected)


def test_answers_are_right_in_every_batch_and_one_too_large_is_refused(url: str) -> None:
    with open_server(url) as server:
        for rows in (1, 2, 3):
            x = draw(rows, seed=rows)
            np.testing.assert_allclose(
                server.infer("tiny", {"x": x})["logits"], answer(x), rtol=1e-5, atol=1e-5
            )
        with pytest.raises(ServerError, match="batch-size must be <= 3"):
            server.infer("tiny", {"x": draw(4)})


def test_verify_and_bench_work_on_it(cli: Cli, pristine: Path, url: str) -> None:
    code, out, err = cli("verify", pristine, "--url", url)
    assert code == 0, out + err
    assert re.search(r"onnxruntime-int8 @ 127\.0\.0\.1:\d+ +same", out)
    code, out, err = cli("bench", "--url", url, "--seconds", "1", "--rate", "100")
    assert code == 0, out + err
    assert "triton 2.51.0" in " ".join(out.split())


def test_a_second_version_is_the_one_that_is_served(
    triton: Triton, pristine: Path, tmp_path: Path
) -> None:
    bundle = read_bundle(pristine)
    repository = tmp_path / "two"
    for version in (1, 2):
        path = export_triton(bundle, repository, version=version).path
    put_numpy_model(path, "2", (FIRST, 2 * SECOND))
    with run_triton(triton, repository, tmp_path / "log2.txt") as url, open_server(url) as server:
        assert server.metadata("tiny")["versions"] == ["2"]
        x = draw(1)
        np.testing.assert_allclose(
            server.infer("tiny", {"x": x})["logits"], 2 * answer(x), rtol=1e-5, atol=1e-5
        )


def test_a_model_of_a_fixed_batch_is_taken_as_it_is(
    triton: Triton, bundle_path: Path, tmp_path: Path
) -> None:
    logits = TensorSpec("logits", (4, 3), "float32")
    bundle = alter(
        read_bundle(bundle_path), inputs=(TensorSpec("x", (4, 4), "float32"),), outputs=(logits,)
    )
    path = export_triton(bundle, tmp_path / "static").path
    put_numpy_model(path, "1", (FIRST, SECOND))
    with (
        run_triton(triton, path.parent, tmp_path / "log3.txt") as url,
        open_server(url) as server,
    ):
        assert server.metadata("tiny")["inputs"][0]["shape"] == [4, 4]
        x = draw(4)
        np.testing.assert_allclose(
            server.infer("tiny", {"x": x})["logits"], answer(x), rtol=1e-5, atol=1e-5
        )


def test_triton_would_have_said_no(
    triton: Triton, exported: Path, seen: Path, tmp_path: Path
) -> None:
    config = exported / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 3", "max_batch_size: 1"))
    with (
        pytest.raises(RefusedError, match="preferred size must be <= max batch size"),
        run_triton(triton, exported.parent, tmp_path / "log.txt"),
    ):
        pass
