"""`build` on a really trained model: what wins, what is refused, what is in the bundle."""

from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from built_nets import QUICK, Embedding, Net, Sorter, make_data, status, train
from torch import nn

import deploy
from deploy.bundle.folder import Bundle
from deploy.bundle.golden import read_golden
from deploy.config import BuildConfig
from deploy.report import load_schema
from export.errors import TrustError

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, Path]:
    """A trained net and its data."""
    data = make_data(tmp_path_factory.mktemp("data") / "data.npz")
    return train(data), data


@pytest.fixture(scope="module")
def built(trained: tuple[Net, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The trained net, built with its labelled data."""
    net, data = trained
    target = tmp_path_factory.mktemp("built") / "net.deploy"
    return deploy.build(net, BuildConfig(data=str(data), measure_seconds=QUICK), output=target)


def test_the_engine_that_is_loaded_gives_the_eager_answer(
    built: Bundle, trained: tuple[Net, Path]
) -> None:
    net, data = trained
    with np.load(data) as arrays:
        images = arrays["x"][:5]
    expected = net(torch.from_numpy(images)).detach().numpy()
    with deploy.load(built.path, engine="onnxruntime-fp32") as engine:
        np.testing.assert_allclose(engine({"x": images})["output"], expected, rtol=0, atol=2e-5)
    with deploy.load(built.path) as engine:
        answer = engine({"x": images})["output"]
    assert (answer.argmax(1) == expected.argmax(1)).all()


def test_the_report_follows_its_schema_and_proves_the_winner(built: Bundle) -> None:
    report = built.report()
    jsonschema.validate(report, load_schema())
    assert report["winner"] == built.winner != "torch"
    row = next(row for row in report["candidates"] if row["name"] == built.winner)
    assert row["status"] == "ok"
    assert row["latency"]["speedup_ci95"][0] > 1
    assert row["parity"]["passed"]
    assert row["parity"]["accuracy"]["samples"] == 360
    assert (report["data"]["kind"], report["data"]["classes_of"]) == ("labelled", "output")
    assert report["control"] is not None
    assert ["stem", "bn1"] in [item["paths"] for item in report["model"]["fused"]]
    assert report["model"]["fusion"]["layers_before"] >= report["model"]["fusion"]["layers_after"]


def test_sizes_are_those_of_what_ships(built: Bundle) -> None:
    manifest = built.manifest.engines
    for row in built.report()["candidates"]:
        if row["name"] in manifest:
            file = built.path / manifest[row["name"]].file
            assert row["size_bytes"] == sum(f.stat().st_size for f in (file, *_external(file)))


def _external(file: Path) -> list[Path]:
    """Files beside an ONNX model that hold weights of it."""
    if file.suffix != ".onnx":
        return []
    model = onnx.load(file, load_external_data=False)
    named = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [file.parent / name for name in named]


def test_int8_is_judged_by_accuracy_and_tensorrt_waits_for_its_gpu(built: Bundle) -> None:
    rows = {row["name"]: row for row in built.report()["candidates"]}
    assert rows["openvino-int8"]["parity"]["gate"].startswith("accuracy drop at most 1.00%")
    assert rows["onnxruntime-int8"]["size_bytes"] < 0.6 * rows["onnxruntime-fp32"]["size_bytes"]
    for name in ("tensorrt_rtx-fp16", "tensorrt_rtx-int8"):
        assert rows[name]["status"] == "not_run"
        assert rows[name]["reason"] == "no NVIDIA GPU"
        assert (built.path / name / "model.engine").stat().st_size > 0


def test_golden_samples_are_synthetic_and_hold_the_eager_answers(
    built: Bundle, trained: tuple[Net, Path]
) -> None:
    golden = read_golden(built.path / "golden.npz")
    assert golden.inputs["x"].shape == (4, 3, 16, 16)
    eager = trained[0](torch.from_numpy(golden.inputs["x"])).detach().numpy()
    np.testing.assert_allclose(golden.outputs["reference"]["output"], eager, rtol=0, atol=1e-5)
    assert built.winner in golden.outputs
    assert all(result.holds for result in deploy.verify(built))


def test_no_file_of_the_bundle_names_a_path_of_the_build_machine(built: Bundle) -> None:
    paths = (str(Path(__file__).parent), str(Path(torch.__file__).parent), str(built.path.parent))
    for file in built.path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [path for path in paths if path.encode() in content], file.name
    nodes = onnx.load(built.path / "model.onnx").graph.node
    scopes = [entry.value for node in nodes for entry in node.metadata_props]
    assert any("stem" in scope for scope in scopes)


def test_the_callers_module_is_not_changed(trained: tuple[Net, Path]) -> None:
    net, _ = trained
    assert not net.training
    assert isinstance(net.bn1, nn.BatchNorm2d)


@pytest.mark.thorough
def test_without_data_int8_is_never_crowned(tmp_path: Path) -> None:
    bundle = deploy.build(
        Net().eval(),
        BuildConfig(inputs=("1x3x16x16",), measure_seconds=QUICK, batch=2),
        output=tmp_path / "net.deploy",
    )
    of_one = 16 * 16 * 9 * (3 * 24 + 24 * 24) + 24 * 4
    assert bundle.report()["model"]["macs"] == of_one  # whatever batch was measured
    for name in ("onnxruntime-int8", "openvino-int8", "tensorrt_rtx-int8"):
        what, reason = status(bundle.report(), name)
        assert what == "rejected"
        assert "no calibration data; pass --data" in str(reason)
        assert name not in bundle.manifest.engines
    assert not list(bundle.path.glob("*-int8"))
    assert not bundle.winner.endswith("int8")
    assert any("No --data was given" in warning for warning in bundle.report()["warnings"])


@pytest.mark.thorough
def test_where_nothing_beats_eager_torch_wins_and_the_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "deploy.bundle.golden.MAX_BYTES", 2**21
    )  # two samples with answers need more
    module = Sorter()
    bundle = deploy.build(
        module,
        BuildConfig(inputs=("1x100000",), threads=1, measure_seconds=QUICK),
        output=tmp_path / "sorter.deploy",
    )
    assert bundle.winner == "torch"
    assert status(bundle.report(), "onnxruntime-fp32")[0] == "rejected"
    assert "er than eager: " in str(status(bundle.report(), "onnxruntime-fp32")[1])
    for name in ("onnxruntime-int8", "openvino-int8", "tensorrt_rtx-int8"):
        what, reason = status(bundle.report(), name)
        assert what == "not_run"  # nothing went wrong: there is no layer that could be in int8
        assert "nothing to quantize" in str(reason)
        assert name not in bundle.manifest.engines
    assert len(read_golden(bundle.path / "golden.npz").inputs["x"]) == 1
    with pytest.raises(TrustError):
        deploy.load(bundle.path)
    x = np.random.default_rng(0).random((3, 100000), dtype=np.float32)
    with deploy.load(bundle.path, trust=("*",)) as engine:
        answer = engine({"x": x})["output"]
    np.testing.assert_allclose(answer, module(torch.from_numpy(x)).numpy(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_labels_that_say_nothing_of_their_output_certify_no_int8(
    trained: tuple[Net, Path], tmp_path: Path
) -> None:
    config = BuildConfig(data=str(trained[1]), classes="emb", measure_seconds=QUICK)
    module = Embedding().eval()
    bundle = deploy.build(module, config, output=tmp_path / "emb.deploy")
    report = bundle.report()
    jsonschema.validate(report, load_schema())
    assert report["data"]["classes_of"] == "emb"
    assert any("not above chance" in warning for warning in report["warnings"])
    for row in report["candidates"]:
        if row["parity"] is not None:
            assert row["parity"]["accuracy"] is None
    (int8,) = (row for row in report["candidates"] if row["name"] == "onnxruntime-int8")
    assert int8["parity"]["gate"].startswith("SQNR at least 20 dB")
    assert "the labels judge nothing" in int8["parity"]["gate"]
    assert "accuracy" not in report["verdict"]
