"""`build` on real models: what wins, what is refused, what is left behind."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from nets import randomize_norms
from onnx import numpy_helper
from torch import nn

import deploy
from deploy.bundle import Bundle
from deploy.config import BuildConfig
from deploy.golden import read_golden
from deploy.manifest import MANIFEST
from deploy.packing import forget_failure
from deploy.report import load_schema
from export.errors import BundleError, ConfigError, GateError, InputError, TrustError
from export.progress import Progress

QUICK = 0.5


class Net(nn.Module):
    """Two convolutions with batch norm, one residual, one classifier; 3 channels of 16x16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, [N, 4]."""
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(self.bn2(self.conv(x)) + x)
        return self.head(self.pool(x).flatten(1))


class Shift(nn.Module):
    """Nothing to fuse and nothing to quantize: eager is as good as it gets."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Half of every value from its neighbour, [N, L]."""
        return torch.lerp(x, x.roll(1, -1), 0.5)


class Upsampler(nn.Module):
    """Depthwise, grouped and transposed convolutions; the mean of 64x64; 8 channels of 16x16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.bn1 = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.bn2 = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 8, 4, stride=4)
        self.bn3 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)
        self.bn4 = nn.BatchNorm1d(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, [N, 10]."""
        x = torch.relu(self.bn1(self.depthwise(x)))
        x = torch.relu(self.bn2(self.grouped(x)))
        x = torch.relu(self.bn3(self.up(x)))
        return self.bn4(self.head(x.mean((2, 3))))


class TwoInputs(nn.Module):
    """Integer ids and a float mask in, a dict of nested outputs out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.linear = nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, object]:
        """Token states, [N, T, 16], and their mean, [N, 16]."""
        states = torch.tanh(self.linear(self.embedding(ids))) * mask.unsqueeze(-1)
        return {"states": states, "pooled": (states.mean(1), states.amax(1))}


def make_data(path: Path, samples: int = 360) -> Path:
    """Four classes of noisy images, told apart by the mean of their channels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, samples)
    centres = rng.standard_normal((4, 3, 1, 1)) * 1.5
    images = rng.standard_normal((samples, 3, 16, 16)) + centres[labels]
    calibration = rng.standard_normal((64, 3, 16, 16)) + centres[rng.integers(0, 4, 64)]
    np.savez(
        path,
        x=images.astype(np.float32),
        y=labels,
        calibration_x=calibration.astype(np.float32),
    )
    return path


def train(data: Path) -> Net:
    """A few steps are enough to be nearly always right."""
    torch.manual_seed(0)
    net = Net()
    with np.load(data) as arrays:
        images, labels = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval()


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


def status(bundle: Bundle, name: str) -> tuple[str, str | None]:
    """Status and reason of a candidate."""
    row = next(row for row in bundle.report()["candidates"] if row["name"] == name)
    return row["status"], row["reason"]


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


def test_without_data_int8_is_never_crowned(tmp_path: Path) -> None:
    bundle = deploy.build(
        Net().eval(),
        BuildConfig(inputs=("1x3x16x16",), measure_seconds=QUICK),
        output=tmp_path / "net.deploy",
    )
    for name in ("onnxruntime-int8", "openvino-int8", "tensorrt_rtx-int8"):
        what, reason = status(bundle, name)
        assert what == "rejected"
        assert "no calibration data; pass --data" in str(reason)
        assert name not in bundle.manifest.engines
    assert not list(bundle.path.glob("*-int8"))
    assert not bundle.winner.endswith("int8")
    assert any("No --data was given" in warning for warning in bundle.report()["warnings"])


def test_where_nothing_beats_eager_torch_wins_and_the_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.golden.MAX_BYTES", 2**21)  # two samples with answers need more
    module = Shift()
    bundle = deploy.build(
        module,
        BuildConfig(inputs=("1x100000",), measure_seconds=QUICK),
        output=tmp_path / "shift.deploy",
    )
    assert bundle.winner == "torch"
    assert status(bundle, "onnxruntime-fp32")[0] == "rejected"
    assert "er than eager: " in str(status(bundle, "onnxruntime-fp32")[1])
    for name in ("onnxruntime-int8", "openvino-int8", "tensorrt_rtx-int8"):
        what, reason = status(bundle, name)
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
def test_a_net_that_ends_in_the_mean_of_large_maps_is_not_refused(tmp_path: Path) -> None:
    module = randomize_norms(Upsampler(), seed=2).eval()
    module.bn3.bias.data += 2  # a mean far from 0: its sum is where float32 loses
    bundle = deploy.build(
        module,
        BuildConfig(inputs=("1x8x16x16",), measure_seconds=QUICK),
        output=tmp_path / "net.deploy",
    )
    rows = {row["name"]: row for row in bundle.report()["candidates"]}
    parity = rows["onnxruntime-fp32"]["parity"]
    assert parity["passed"], rows["onnxruntime-fp32"]["reason"]
    assert parity["outputs"][0]["error_float64"] < 8e-7
    assert bundle.winner in ("torch", *rows)


def test_several_inputs_and_nested_outputs_keep_their_names(tmp_path: Path) -> None:
    module = TwoInputs().eval()
    bundle = deploy.build(
        module,
        BuildConfig(inputs=("ids:1x7:int64:50", "mask:1x7"), measure_seconds=QUICK),
        output=tmp_path / "two.deploy",
    )
    assert [spec.name for spec in bundle.manifest.outputs] == ["states", "pooled.0", "pooled.1"]
    assert bundle.manifest.structure == "dict(states: tensor, pooled: tuple(tensor, tensor))"
    feeds = {
        "ids": np.arange(21, dtype=np.int64).reshape(3, 7),
        "mask": np.ones((3, 7), dtype=np.float32),
    }
    with deploy.load(bundle.path, engine="onnxruntime-fp32") as engine:
        answer = engine(feeds)
    with torch.no_grad():
        expected = module(*(torch.from_numpy(value) for value in feeds.values()))
    np.testing.assert_allclose(answer["states"], expected["states"].numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(answer["pooled.1"], expected["pooled"][1], rtol=0, atol=1e-6)


def test_a_static_batch_is_kept(tmp_path: Path) -> None:
    bundle = deploy.build(
        Net().eval(),
        BuildConfig(inputs=("5x3x16x16",), static_batch=True, measure_seconds=QUICK),
        output=tmp_path / "net.deploy",
    )
    assert bundle.manifest.inputs[0].shape == (5, 3, 16, 16)
    report = bundle.report()
    assert report["measurement"]["batch"] == 5
    assert report["candidates"][0]["parity"]["batches_checked"] == [5]


class _Fault:
    """A progress callback that does something when a stage begins."""

    def __init__(self, stage: str, action: Callable[[], None]) -> None:
        self._stage, self._action = stage, action

    def __call__(self, progress: Progress) -> None:
        if progress.stage == self._stage:
            self._action()


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "stage",
    ["load", "export", "calibrate", "build candidates", "check parity", "measure latency", "pack"],
)
def test_an_interrupt_leaves_the_old_bundle_and_nothing_else(tmp_path: Path, stage: str) -> None:
    target = tmp_path / "net.deploy"
    target.mkdir()
    (target / MANIFEST).write_text('{"manifest_sha256": "the old bundle"}')
    config = BuildConfig(inputs=("1x3x16x16",), measure_seconds=QUICK)
    with pytest.raises(KeyboardInterrupt):
        deploy.build(Net().eval(), config, output=target, progress=_Fault(stage, _interrupt))
    assert [path.name for path in tmp_path.iterdir()] == ["net.deploy"]
    assert (target / MANIFEST).read_text() == '{"manifest_sha256": "the old bundle"}'


def _spoil_weights(folder: Path) -> None:
    """Scale every float initializer of the staged float model, as a wrong exporter might."""
    path = next(folder.glob(".net.deploy.*/model.onnx"))
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def test_when_nothing_passes_its_gate_nothing_ships_and_the_report_says_why(
    tmp_path: Path,
) -> None:
    config = BuildConfig(inputs=("1x3x16x16",), min_sqnr=60.0, measure_seconds=QUICK)
    fault = _Fault("check parity", lambda: _spoil_once(tmp_path))
    with pytest.raises(GateError, match="No candidate gives the model's answers") as caught:
        deploy.build(Net().eval(), config, output=tmp_path / "net.deploy", progress=fault)
    assert caught.value.exit_code == 1
    assert not (tmp_path / "net.deploy").exists()
    report = json.loads((tmp_path / "net.failed" / "report.json").read_text())
    jsonschema.validate(report, load_schema())
    reasons = {row["name"]: row["reason"] for row in report["candidates"]}
    assert "eager itself by" in reasons["onnxruntime-fp32"]
    assert "SQNR" in reasons["openvino-bf16"] or "bf16" in reasons["openvino-bf16"]
    (tmp_path / "net.failed" / "mine.txt").touch()
    forget_failure(tmp_path / "net.deploy")
    assert (tmp_path / "net.failed" / "report.json").is_file()  # somebody keeps something there
    (tmp_path / "net.failed" / "mine.txt").unlink()
    forget_failure(tmp_path / "net.deploy")
    assert not (tmp_path / "net.failed").exists()


def _spoil_once(folder: Path) -> None:
    marker = folder / "spoilt"
    if not marker.exists():
        marker.touch()
        _spoil_weights(folder)


def test_an_engine_that_fails_is_named_and_the_rest_go_on(tmp_path: Path) -> None:
    def truncate() -> None:
        for path in tmp_path.glob(".net.deploy.*/onnxruntime-int8/model.onnx"):
            path.write_bytes(b"no model")

    bundle = deploy.build(
        Net().eval(),
        BuildConfig(inputs=("1x3x16x16",), measure_seconds=QUICK),
        output=tmp_path / "net.deploy",
        progress=_Fault("check parity", truncate),
    )
    what, reason = status(bundle, "onnxruntime-int8")
    assert what == "failed"
    assert "ONNX Runtime cannot open" in str(reason)
    assert status(bundle, "onnxruntime-fp32")[0] in ("ok", "rejected")


def test_neither_inputs_nor_data_is_an_error_that_names_both(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--input 1x3x224x224, or --data"):
        deploy.build(Net().eval(), BuildConfig(), output=tmp_path / "net.deploy")


def test_inputs_that_the_model_cannot_take_are_refused_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fails on the given inputs \(x \(1, 5, 16, 16\)\)"):
        deploy.build(
            Net().eval(), BuildConfig(inputs=("1x5x16x16",)), output=tmp_path / "net.deploy"
        )
    with pytest.raises(ConfigError, match="no parameter 'images'"):
        deploy.build(
            Net().eval(), BuildConfig(inputs=("images:1x3x16x16",)), output=tmp_path / "n.deploy"
        )


def test_a_target_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    with pytest.raises(BundleError, match="is no bundle; it is left alone"):
        deploy.build(Net().eval(), BuildConfig(inputs=("1x3x16x16",)), output=tmp_path / "thesis")
    assert list((tmp_path / "thesis").iterdir()) == []


class OnlyOne(nn.Module):
    """Works at batch 1 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[1, 3, 4] to [1, 3]."""
        return torch.relu(self.head(x.reshape(1, 12)))


class Averages(nn.Module):
    """One output for each sample, and one of size 2 for all together."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, 6] to [N, 4] and [2]."""
        return torch.relu(self.head(x)), self.head.bias[:2] * 2


def test_a_model_of_one_batch_size_is_built_for_it_with_a_warning(tmp_path: Path) -> None:
    bundle = deploy.build(
        OnlyOne(),
        BuildConfig(inputs=("1x3x4",), measure_seconds=QUICK),
        output=tmp_path / "one.deploy",
    )
    assert bundle.manifest.inputs[0].shape == (1, 3, 4)
    assert any("batches of exactly 1" in warning for warning in bundle.report()["warnings"])


@pytest.mark.slow
def test_an_output_of_the_size_of_the_traced_batch_is_not_taken_for_a_batch(
    tmp_path: Path,
) -> None:
    bundle = deploy.build(
        Averages(),
        BuildConfig(inputs=("1x6",), measure_seconds=QUICK),
        output=tmp_path / "averages.deploy",
    )
    assert [spec.shape for spec in bundle.manifest.outputs] == [("batch", 4), (2,)]


class Embedding(nn.Module):
    """An embedding before the classes that are made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """[N, 3, 16, 16] to [N, 24] and [N, 4]."""
        features = torch.relu(self.net.bn1(self.net.stem(x))).mean((2, 3))
        return {"emb": features, "logits": self.net.head(features)}


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


class Recurrent(nn.Module):
    """Every step's state, and the last ones with the batch on their second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """[N, T, 8] to [N, T, 16] and twice [1, N, 16]."""
        return self.lstm(x)


@pytest.mark.slow
def test_a_batch_that_is_not_the_first_axis_of_an_output_is_still_the_batch(
    tmp_path: Path,
) -> None:
    module = Recurrent().eval()
    bundle = deploy.build(
        module,
        BuildConfig(inputs=("1x5x8",), measure_seconds=QUICK),
        output=tmp_path / "lstm.deploy",
    )
    shapes = [("batch", 5, 16), (1, "batch", 16), (1, "batch", 16)]
    assert [spec.shape for spec in bundle.manifest.outputs] == shapes
    outputs = bundle.report()["model"]["outputs"]
    assert [tuple(output["shape"]) for output in outputs] == shapes
    assert all(result.holds for result in deploy.verify(bundle))
    x = np.random.default_rng(0).standard_normal((7, 5, 8)).astype(np.float32)
    with torch.no_grad():
        _, (expected, _) = module(torch.from_numpy(x))
    for name in ("onnxruntime-fp32", "openvino-fp32"):
        with deploy.load(bundle.path, engine=name) as engine:
            assert [spec.shape for spec in engine.outputs] == shapes
            np.testing.assert_allclose(engine({"x": x})["output_1.0"], expected, rtol=0, atol=1e-6)


def test_a_torchscript_file_is_built_without_fusion_and_says_so(tmp_path: Path) -> None:
    net = Net().eval()
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(net, torch.zeros(2, 3, 16, 16)), path)
    bundle = deploy.build(
        path, BuildConfig(inputs=("1x3x16x16",), trust=("*",), measure_seconds=QUICK)
    )
    report = bundle.report()
    assert bundle.path == tmp_path / "net.deploy"
    assert report["model"]["form"] == "torchscript"
    assert report["model"]["rung"] == "torchscript"
    assert "TorchScript" in report["model"]["skipped"][0]["reason"]
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    with deploy.load(bundle.path, engine="onnxruntime-fp32") as engine:
        answer = engine({spec.name: x for spec in engine.inputs})
    expected = net(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(next(iter(answer.values())), expected, rtol=0, atol=2e-5)


def test_an_exported_program_is_built(tmp_path: Path) -> None:
    net = Net().eval()
    path = tmp_path / "net.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    bundle = deploy.build(
        path, BuildConfig(inputs=("1x3x16x16",), trust=("*",), measure_seconds=QUICK)
    )
    report = bundle.report()
    assert report["model"]["form"] == "exported_program"
    assert report["model"]["rung"] == "dynamo"
    assert ["stem", "bn1"] in [item["paths"] for item in report["model"]["fused"]]
    assert report["model"]["fusion"]["layers_before"] >= report["model"]["fusion"]["layers_after"]


def test_a_model_that_returns_nan_is_refused_with_what_to_do(tmp_path: Path) -> None:
    net = Net().eval()
    with torch.no_grad():
        net.head.weight[1, 0] = float("nan")
    config = BuildConfig(inputs=("1x3x16x16",), measure_seconds=QUICK)
    with pytest.raises(InputError, match="the model itself returns NaN in output 'output'"):
        deploy.build(net, config, output=tmp_path / "net.deploy")
    assert list(tmp_path.iterdir()) == []


def test_data_that_the_model_fails_on_is_named(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50, (40, 7))
    ids[33, 2] = 5000
    data = tmp_path / "ids.npz"
    np.savez(data, ids=ids, mask=np.ones((40, 7), np.float32))
    config = BuildConfig(data=str(data), calibration_samples=1, measure_seconds=QUICK)
    with pytest.raises(InputError, match=r"ids\.npz.*(fails on this batch|IndexError)"):
        deploy.build(TwoInputs().eval(), config, output=tmp_path / "two.deploy")
    assert [path.name for path in tmp_path.iterdir()] == ["ids.npz"]


def test_more_threads_than_cores_and_batches_that_differ_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "net.deploy"
    with pytest.raises(ConfigError, match="usable cores"):
        deploy.build(Net().eval(), BuildConfig(inputs=("1x3x16x16",), threads=4096), output=output)
    with pytest.raises(ConfigError, match="leading sizes are 1, 2"):
        deploy.build(
            TwoInputs().eval(), BuildConfig(inputs=("ids:1x7:int64", "mask:2x7")), output=output
        )


def test_arrays_under_wrong_names_are_explained_by_the_data(tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, images=np.zeros((8, 3, 16, 16), np.float32), labels=np.zeros(8, np.int64))
    with pytest.raises(InputError, match=r"data\.npz: the names of its arrays .* y for the labels"):
        deploy.build(Net().eval(), BuildConfig(data=str(data)), output=tmp_path / "net.deploy")
