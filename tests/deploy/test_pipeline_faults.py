"""`build` where something goes wrong: interrupts, engines that fail, gates, what cannot be used."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from built_nets import QUICK, Net, TwoInputs, TwoWays, status
from nets import randomize_norms
from onnx import numpy_helper
from tiny import hide_engines

import deploy
from deploy.bundle.manifest import MANIFEST
from deploy.bundle.packing import forget_failure
from deploy.config import BuildConfig
from deploy.inputs import dataset
from deploy.report import load_schema
from export.errors import BundleError, ConfigError, GateError, InputError
from export.progress import Progress

pytestmark = pytest.mark.long


class _Fault:
    """A progress callback that does something when a stage begins."""

    def __init__(self, stage: str, action: Callable[[], None]) -> None:
        self._stage, self._action = stage, action

    def __call__(self, progress: Progress) -> None:
        if progress.stage == self._stage:
            self._action()


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("onnxruntime_alone")
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


class Recorder(Net):
    """Remembers the largest batch that it was called with."""

    most = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Recorder.most = max(Recorder.most, int(x.shape[0]))
        return super().forward(x)


@pytest.mark.usefixtures("onnxruntime_alone")
def test_a_build_runs_few_samples_at_a_time_of_a_network_of_large_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "most", 0)
    monkeypatch.setattr(dataset, "VALUE_BYTES", 1000)
    config = BuildConfig(inputs=("1x3x16x16",), measure_seconds=QUICK)
    with pytest.raises(KeyboardInterrupt):
        deploy.build(
            Recorder().eval(),
            config,
            output=tmp_path / "net.deploy",
            progress=_Fault("measure latency", _interrupt),
        )
    assert Recorder.most == 3  # which every model is tried at


def test_of_two_builds_in_threads_the_second_waits_for_the_first(tmp_path: Path) -> None:
    config = BuildConfig(inputs=("1x3x16x16",), measure_seconds=QUICK)
    begun, seen = threading.Event(), []

    def first() -> None:
        begun.set()
        threading.Event().wait(0.5)  # time for the other to begin, which it must not
        seen.append("first")
        raise KeyboardInterrupt

    def second() -> None:
        seen.append("second")
        raise KeyboardInterrupt

    def run(name: str, action: Callable[[], None]) -> None:
        with pytest.raises(KeyboardInterrupt):
            deploy.build(
                Net().eval(), config, output=tmp_path / name, progress=_Fault("load", action)
            )

    threads = [threading.Thread(target=run, args=("a.deploy", first))]
    threads += [threading.Thread(target=run, args=("b.deploy", second))]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert seen == ["first", "second"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_is_forked_during_a_build_does_not_wait_for_it(tmp_path: Path) -> None:
    """The thread that builds is not in it, and would never let go."""
    config = BuildConfig(inputs=("1x3x16x16",), measure_seconds=QUICK)
    begun, ended = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        ended.wait()
        raise KeyboardInterrupt

    def run(name: str, action: Callable[[], None]) -> None:
        with pytest.raises(KeyboardInterrupt):
            deploy.build(
                Net().eval(), config, output=tmp_path / name, progress=_Fault("load", action)
            )

    thread = threading.Thread(target=run, args=("a.deploy", hold))
    thread.start()
    try:
        assert begun.wait(60)
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # ends it where it waits
            run("b.deploy", lambda: os._exit(0))
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert status == 0
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.usefixtures("onnxruntime_alone")
def test_a_path_over_a_folder_that_is_not_there_leads_to_the_bundle(tmp_path: Path) -> None:
    config = BuildConfig(inputs=("1x3x16x16",), measure_seconds=QUICK)
    output = tmp_path / "no" / ".." / "net.deploy"
    bundle = deploy.build(Net().eval(), config, output=output)
    assert bundle.path == tmp_path / "net.deploy"
    assert [path.name for path in tmp_path.iterdir()] == ["net.deploy"]


class _Switch(torch.nn.Module):
    """Doubles what it is given if the first value is negative."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x[0, 0].item() < 0 else x


@pytest.mark.slow
@pytest.mark.usefixtures("onnxruntime_alone")
def test_one_way_of_several_is_not_shipped_and_what_to_write_is_said(tmp_path: Path) -> None:
    config = BuildConfig(inputs=("1x4",), measure_seconds=QUICK)
    with pytest.raises(GateError, match=r"goes on by the value of a tensor .*torch\.where"):
        deploy.build(_Switch(), config, output=tmp_path / "net.deploy")
    report = json.loads((tmp_path / "net.failed" / "report.json").read_text())
    assert any("the way that it went" in warning for warning in report["warnings"])


def _spoil_weights(folder: Path) -> None:
    """Scale every float initializer of the staged float model, as a wrong exporter might."""
    path = next(folder.glob(".net.deploy.*/model.onnx"))
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


@pytest.mark.thorough
def test_when_nothing_passes_its_gate_nothing_ships_and_the_report_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_engines(monkeypatch, "tensorrt_rtx", "tensorrt")
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


@pytest.mark.thorough
@pytest.mark.usefixtures("onnxruntime_alone")
def test_int8_that_knows_the_classes_does_not_ship_where_the_file_goes_another_way(
    tmp_path: Path,
) -> None:
    net = TwoWays().eval()
    x = torch.randn(500, 8)
    with torch.no_grad():
        y = net.head(x).argmax(1).numpy()
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y)
    config = BuildConfig(data=str(tmp_path / "data.npz"), effort="quick", measure_seconds=QUICK)
    with pytest.raises(GateError, match=r"line \d+: .* goes on by the value of a tensor"):
        deploy.build(net, config, output=tmp_path / "net.deploy")
    report = json.loads((tmp_path / "net.failed" / "report.json").read_text())
    jsonschema.validate(report, load_schema())
    rows = {row["name"]: row for row in report["candidates"]}
    assert rows["onnxruntime-int8"]["parity"]["accuracy"]["candidate"] > 0.99
    assert "float32 engines are wrong: output" in rows["onnxruntime-int8"]["reason"]


@pytest.mark.slow
@pytest.mark.usefixtures("onnxruntime_alone")
def test_int8_ships_where_the_float_model_that_it_was_made_of_does_not(tmp_path: Path) -> None:
    """One is rejected for more than rounding, the other is as near as int8 must be."""
    x = torch.randn(120, 3, 16, 16)
    np.savez(tmp_path / "data.npz", x=x.numpy())
    config = BuildConfig(
        data=str(tmp_path / "data.npz"),
        effort="quick",
        calibration_samples=60,
        min_agreement=0.5,
        measure_seconds=QUICK,
    )
    fault = _Fault("check parity", lambda: _spoil_once(tmp_path))
    bundle = deploy.build(
        randomize_norms(Net()).eval(), config, output=tmp_path / "net.deploy", progress=fault
    )
    assert "onnxruntime-fp32" not in bundle.manifest.engines
    assert status(bundle.report(), "onnxruntime-fp32")[0] == "rejected"
    rows = {row["name"]: row for row in bundle.report()["candidates"]}
    assert rows["onnxruntime-int8"]["parity"]["passed"]
    with deploy.load(bundle.path, engine="onnxruntime-int8") as engine:
        assert engine({"x": x[:3].numpy()})["output"].shape == (3, 4)


def _spoil_once(folder: Path) -> None:
    marker = folder / "spoilt"
    if not marker.exists():
        marker.touch()
        _spoil_weights(folder)


@pytest.mark.thorough
def test_an_engine_that_fails_is_named_and_the_rest_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_engines(monkeypatch, "tensorrt_rtx", "tensorrt")

    def truncate() -> None:
        for path in tmp_path.glob(".net.deploy.*/onnxruntime-int8/model.onnx"):
            path.write_bytes(b"no model")

    bundle = deploy.build(
        Net().eval(),
        BuildConfig(inputs=("1x3x16x16",), measure_seconds=QUICK),
        output=tmp_path / "net.deploy",
        progress=_Fault("check parity", truncate),
    )
    what, reason = status(bundle.report(), "onnxruntime-int8")
    assert what == "failed"
    assert "ONNX Runtime cannot open" in str(reason)
    assert status(bundle.report(), "onnxruntime-fp32")[0] in ("ok", "rejected")


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


def test_a_model_that_returns_nan_is_refused_with_what_to_do(tmp_path: Path) -> None:
    net = Net().eval()
    with torch.no_grad():
        net.head.weight[1, 0] = float("nan")
    config = BuildConfig(inputs=("1x3x16x16",), measure_seconds=QUICK)
    with pytest.raises(InputError, match="the model itself returns NaN in output 'output'"):
        deploy.build(net, config, output=tmp_path / "net.deploy")
    assert list(tmp_path.iterdir()) == []


class _Dice(torch.nn.Module):
    """Throws where the first value of a sample is high."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(len(x), 1) * (x[:, :1] > 9)


@pytest.mark.usefixtures("onnxruntime_alone")
def test_a_model_that_is_random_for_one_sample_alone_is_refused(tmp_path: Path) -> None:
    x = np.zeros((64, 4), np.float32)
    x[60, 0] = 10
    np.savez(tmp_path / "data.npz", x=x, calibration_x=x[:32])
    config = BuildConfig(data=str(tmp_path / "data.npz"), measure_seconds=QUICK)
    with pytest.raises(
        InputError, match=r"samples 38 to 63 of .* draws random numbers with aten\.rand"
    ):
        deploy.build(_Dice(), config, output=tmp_path / "net.deploy")


@pytest.mark.usefixtures("onnxruntime_alone")
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
