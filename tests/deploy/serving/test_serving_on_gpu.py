"""A bundle whose engines run on a GPU, built, served and finished there. See docs/gpu.md."""

import copy
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from built_nets import QUICK, Net, make_data, train
from servers import Server, make_environment, serving, wait_until
from tiny import hide_engines

import deploy
from deploy.bundle.folder import Bundle, read_bundle
from deploy.client.wire import open_server
from deploy.commands.finishing import finish
from deploy.config import BuildConfig
from deploy.engines.onnxruntime_cuda import has_cuda_provider
from deploy.serving.control import send_command

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from gpu_use import read_use

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_cuda_provider(), reason="this ONNX Runtime has no CUDA provider"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch has no CUDA"),
]

GRAPHS, PLAIN = "onnxruntime-fp16-cuda-graphs", "onnxruntime-fp16-cuda"
ENGINES = (GRAPHS, PLAIN, "onnxruntime-fp16-cuda-nhwc", "onnxruntime-tf32-cuda-graphs")
CLOSE = 0.03
"""Of the largest answer: float16 weights and sums of a small network."""

LIKE_ANY = ("--grpc-port", "0", "--max-batch", "8")
CALLERS, CALLS = 8, 25


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 64x64 in four classes."""
    path = make_data(tmp_path_factory.mktemp("data") / "data.npz", 160)
    with np.load(path) as small:
        arrays = dict(small)
    for name in ("x", "calibration_x"):
        arrays[name] = arrays[name].repeat(4, -1).repeat(4, -2)
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def net(data: Path) -> Net:
    return train(data)


def config(data: Path, **more: str) -> BuildConfig:
    return BuildConfig(data=str(data), measure_seconds=QUICK, effort="quick", **more)


@pytest.fixture(scope="module")
def bundle(net: Net, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        hide_engines(patch, "openvino", "tensorrt_rtx", "tensorrt")
        target = tmp_path_factory.mktemp("build") / "net.deploy"
        return deploy.build(net, config(data, device="cuda"), output=target)


class Asker:
    """Sends samples to a server, and holds its answers to those of eager on the CPU, in float64."""

    def __init__(self, server: Server, bundle: Bundle, net: Net, data: Path) -> None:
        self.url = f"http://{server.address}"
        (given,), (answered,) = bundle.manifest.inputs, bundle.manifest.outputs
        self.given, self.answered = given.name, answered.name
        with np.load(data) as arrays:
            self.x = arrays["x"]
        exact = copy.deepcopy(net).double()
        with torch.inference_mode():
            self.expected = exact(torch.from_numpy(self.x).double()).numpy()

    def ask(self, sizes: Sequence[int]) -> list[float]:
        """One request after the other, of so many rows; the seconds of each."""
        seconds = []
        with open_server(self.url, timeout=20) as server:
            for step, rows in enumerate(sizes):
                at = np.arange(step, step + rows) % len(self.x)
                start = time.perf_counter()
                got = server.infer("net", {self.given: self.x[at]})[self.answered]
                seconds.append(time.perf_counter() - start)
                error = float(np.abs(got - self.expected[at]).max())
                assert error < CLOSE * float(np.abs(self.expected).max())
        return seconds

    def ask_side_by_side(self) -> None:
        """Callers with batches of all sizes at once."""
        with ThreadPoolExecutor(CALLERS) as pool:
            mixes = [[1 + (seed + step) % 8 for step in range(CALLS)] for seed in range(CALLERS)]
            list(pool.map(self.ask, mixes))


def test_an_image_model_is_built_in_float16_on_the_gpu(bundle: Bundle) -> None:
    rows = {row["name"]: row for row in bundle.report()["candidates"]}
    for name in ENGINES:
        assert rows[name]["parity"] is not None, rows[name]["reason"]
        assert rows[name]["parity"]["passed"], rows[name]["reason"]
        assert name in bundle.manifest.engines
        assert bundle.times()[name].p50_ms > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_of_a_server_are_those_of_eager_at_all_batches_at_once(
    engine: str, bundle: Bundle, net: Net, data: Path
) -> None:
    with serving(bundle.path, "--engine", engine, *LIKE_ANY) as server:
        about = server.ask("/v2/models/net")["parameters"]
        assert (about["engine"], about["degraded"]) == (engine, None)
        asker = Asker(server, bundle, net, data)
        first = asker.ask(range(1, 9))
        again = asker.ask([*range(1, 9)] * 5)
        assert max(first) < 0.1 + 10 * statistics.median(again)  # nothing is left to be captured
        asker.ask_side_by_side()
        before = read_use().gpu_mib
        for _ in range(3):
            asker.ask_side_by_side()
        assert read_use().gpu_mib - before < 64
        failures = [k for k, v in server.metrics().items() if "request_failure" in k and v]
        assert not failures
        assert not [event for event in server.events if "the engine failed" in event["message"]]


def test_two_instances_with_graphs_and_a_shadow(bundle: Bundle, net: Net, data: Path) -> None:
    before = read_use().gpu_mib
    flags = ("--engine", GRAPHS, "--instances", "2", "--shadow", "1")
    with serving(bundle.path, *flags, *LIKE_ANY) as server:
        asker = Asker(server, bundle, net, data)
        asker.ask_side_by_side()
        labels = '{model="net",version="1"}'
        wait_until(lambda: server.metrics()[f"deploy_shadow_requests_total{labels}"] > 0)
        assert server.metrics()[f"deploy_shadow_largest_difference{labels}"] < CLOSE
        assert read_use().gpu_mib - before < 4096
        (note,) = server.ask("/v2/models/net")["parameters"]["notes"]
        assert note.startswith("CUDA graphs of batches of 1, 2, 4, 8; each instance holds")
    time.sleep(1.0)  # the driver gives back what the process had
    assert read_use().gpu_mib - before < 64


def test_a_new_version_captures_while_the_old_one_answers(
    bundle: Bundle, net: Net, data: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(bundle.path, tmp_path / "net.deploy"))
    control = tmp_path / "ctl.sock"
    flags = ("--engine", GRAPHS, "--control", control)
    with serving(bundle.path, *flags, *LIKE_ANY) as server:
        asker = Asker(server, bundle, net, data)
        asker.ask([1] * 20)
        ended, seconds = threading.Event(), []

        def keep_asking() -> None:
            while not ended.is_set():
                seconds.extend(asker.ask([1, 3, 8]))

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(keep_asking) for _ in range(4)]
            try:
                for _ in range(2):
                    command = {"command": "load", "path": str(other), "name": "net", "keep": False}
                    send_command(control, command)
            finally:
                ended.set()
            for each in asking:
                each.result(60)
        assert max(seconds) < 2.0


def test_where_the_gpu_is_hidden_another_engine_answers(
    bundle: Bundle, net: Net, data: Path
) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "deploy", "serve", str(bundle.path), "--engine", GRAPHS]
    done = subprocess.run(
        [*command, "--check"],
        env=make_environment(hidden),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode != 0
    assert "CUDA" in done.stderr
    with serving(bundle.path, *LIKE_ANY, env=hidden) as server:
        about = server.ask("/v2/models/net")["parameters"]
        assert "-cuda" not in about["engine"]
        if bundle.manifest.engines[bundle.winner].variant:
            assert "cannot be opened here" in about["degraded"]
        Asker(server, bundle, net, data).ask([1, 8, 3])


def test_what_was_planned_without_a_gpu_is_finished_on_one_and_served(
    net: Net, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        hide_engines(without, "openvino", "tensorrt_rtx", "tensorrt")
        for module in ("pipeline", "engines.availability"):
            without.setattr(f"deploy.{module}.read_gpu", lambda: None)
        plan = config(data, device="cpu", target="cuda")
        built = deploy.build(net, plan, output=tmp_path / "net.deploy")
    waiting = {n for n, e in built.manifest.engines.items() if e.not_run is not None}
    assert waiting >= set(ENGINES)
    done = finish(built.path, replace(config(data), threads=2))
    assert {each.name for each in done.results if each.parity_holds} >= set(ENGINES)
    finished = read_bundle(built.path)
    assert finished.times()[GRAPHS].p50_ms > 0
    with serving(finished.path, "--engine", GRAPHS, *LIKE_ANY) as server:
        assert server.ask("/v2/models/net")["parameters"]["degraded"] is None
        Asker(server, finished, net, data).ask([1, 2, 5, 8])
