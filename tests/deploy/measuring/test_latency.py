"""Engines are ranked right, turns are interleaved and seeded, failures are listed, nothing is cut.

The clock of most tests is a fake engine with known times; one test measures real children.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from process_state import no_child_left

import deploy.engines.process
import deploy.measuring.latency
from deploy.engines import EngineSpec
from deploy.measuring.latency import LatencyReport, LatencySettings, measure
from export.errors import EngineError
from export.progress import Progress

BASE = EngineSpec("torch", "fp32", "2e-2", 1)
FEEDS = {"x": np.zeros((1, 4), np.float32)}


def fake(name: str, seconds: str, **kwargs: Any) -> EngineSpec:
    engine, precision = name.split("-")
    return EngineSpec(engine, precision, seconds, 1, **kwargs)


class FakeProcess:
    """An engine whose path is its seconds per call, or how it fails."""

    log: ClassVar[list[str]] = []
    opened: ClassVar[list[str]] = []
    live = 0

    def __init__(self, spec: EngineSpec, *, wait: bool) -> None:
        assert not wait
        if spec.path == "does not start":
            raise EngineError("no process")
        self.spec, self.blocks, self.calls = spec, 0, 0
        self.luck = 1.0
        self.opened.append(spec.name)
        FakeProcess.live += 1

    def wait_until_open(self) -> None:
        if self.spec.path == "does not open":
            raise EngineError("no such file")
        if self.spec.path == "opens once" and self.opened.count(self.spec.name) > 1:
            raise EngineError("no memory left")

    def prepare(self, feeds: object) -> float:
        if self.spec.path == "does not run":
            raise EngineError("wrong input")
        return 1.0

    def time(self, calls: int, *, warmup: int = 0) -> np.ndarray[Any, Any]:
        self.blocks += 1
        path = self.spec.path
        if warmup:
            self.log.append(self.spec.name)
            if path.startswith("dies") and self.blocks > 6:
                raise EngineError("signal SIGSEGV")
        path = path.removeprefix("dies ").replace("opens once", "1e-2")
        seconds = np.full(calls, float(path.removesuffix(" rarely slow")))
        if path.endswith("rarely slow") and calls > 1:
            seconds[0] = 5.0
        return seconds * (1 + 1e-3 * np.sin(np.arange(calls) + self.blocks))

    def __enter__(self) -> "FakeProcess":
        return self

    def __exit__(self, *error: object) -> None:
        FakeProcess.live -= 1


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(deploy.engines.process, "EngineProcess", FakeProcess)
    monkeypatch.setattr(deploy.measuring.latency, "_SETTLE_S", 0.0)
    monkeypatch.setattr(FakeProcess, "log", [])
    monkeypatch.setattr(FakeProcess, "opened", [])
    monkeypatch.setattr(FakeProcess, "live", 0)
    yield
    assert FakeProcess.live == 0


def run(*candidates: EngineSpec, seed: int = 0, seconds: float = 1e-6) -> LatencyReport:
    return measure(BASE, candidates, FEEDS, LatencySettings(seconds=seconds, seed=seed))


@pytest.mark.usefixtures("faked")
def test_speedups_are_those_of_the_clocks() -> None:
    report = run(fake("openvino-fp32", "5e-3"), fake("onnxruntime-fp32", "4e-2"))
    assert list(report.engines) == ["torch", "openvino-fp32", "onnxruntime-fp32"]
    assert report.engines["torch"].speedup == 1.0
    assert report.engines["torch"].speedup_ci95 == (1.0, 1.0)
    for name, speedup in (("openvino-fp32", 4.0), ("onnxruntime-fp32", 0.5)):
        got = report.engines[name]
        low, high = got.speedup_ci95
        assert low <= got.speedup <= high
        assert got.speedup == pytest.approx(speedup, rel=2e-3)
        assert high - low < 0.01 * speedup
    assert report.engines["openvino-fp32"].p50 == pytest.approx(5e-3, rel=2e-3)


@pytest.mark.usefixtures("faked")
def test_the_control_is_the_baseline_against_itself() -> None:
    report = run(fake("openvino-fp32", "5e-3"))
    assert report.control == pytest.approx(1.0, abs=2e-3)
    low, high = report.control_ci95
    assert low <= 1.0 <= high
    assert "control" not in report.engines


@pytest.mark.usefixtures("faked")
def test_every_round_has_every_engine_in_an_order_that_changes() -> None:
    report = run(fake("openvino-fp32", "5e-3"), fake("onnxruntime-fp32", "4e-2"))
    turns = 4 * report.blocks_per_round
    rounds = [FakeProcess.log[i : i + turns] for i in range(0, len(FakeProcess.log), turns)]
    assert len(rounds) == report.rounds >= 12
    assert len({tuple(sorted(order)) for order in rounds}) == 1
    assert rounds[0].count("openvino-fp32") == report.blocks_per_round
    assert rounds[0].count("torch") == 2 * report.blocks_per_round  # with the control
    assert len({tuple(order) for order in rounds}) > 5


@pytest.mark.usefixtures("faked")
def test_the_order_is_the_same_for_a_seed_and_another_for_another() -> None:
    orders = []
    for seed in (3, 3, 4):
        FakeProcess.log.clear()
        run(fake("openvino-fp32", "5e-3"), seed=seed)
        orders.append(FakeProcess.log[:60])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("does not start", "no process"),
        ("does not open", "no such file"),
        ("does not run", "wrong input"),
        ("dies 1e-2", "signal SIGSEGV"),
        ("opens once", "no memory left"),
    ],
)
def test_a_candidate_that_fails_is_listed_and_the_rest_go_on(path: str, reason: str) -> None:
    report = run(fake("onnxruntime-int8", path), fake("openvino-fp32", "5e-3"))
    assert report.failed == {"onnxruntime-int8": reason}
    assert set(report.engines) == {"torch", "openvino-fp32"}
    assert report.engines["openvino-fp32"].speedup == pytest.approx(4.0, rel=2e-3)


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize("path", ["does not open", "does not run", "dies 1e-2", "opens once"])
def test_a_baseline_that_fails_is_an_error(path: str) -> None:
    with pytest.raises(EngineError):
        measure(
            fake("torch-fp32", path), [fake("openvino-fp32", "5e-3")], FEEDS, LatencySettings(1e-6)
        )


@pytest.fixture
def clocked(faked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes while an engine runs, and never else."""
    elapsed = [0.0]

    class ClockedProcess(FakeProcess):
        def time(self, calls: int, *, warmup: int = 0) -> np.ndarray[Any, Any]:
            seconds = super().time(calls, warmup=warmup)
            elapsed[0] += seconds.sum() + warmup * seconds.mean()
            return seconds

    monkeypatch.setattr(deploy.engines.process, "EngineProcess", ClockedProcess)
    monkeypatch.setattr(deploy.measuring.latency.time, "perf_counter", lambda: elapsed[0])


@pytest.mark.usefixtures("clocked")
@pytest.mark.parametrize("others", [1, 3])
@pytest.mark.parametrize("seconds", [20.0, 30.0])
def test_a_measurement_takes_as_long_as_it_is_given(seconds: float, others: int) -> None:
    engines = [fake(f"onnxruntime-{n}", "5e-3") for n in ("fp32", "int8", "mixed")[:others]]
    report = run(*engines, seconds=seconds)
    assert report.seconds == pytest.approx(seconds, rel=0.1)
    assert report.rounds % report.openings == 0


@pytest.mark.usefixtures("clocked")
def test_a_short_one_has_12_rounds_and_a_long_one_60() -> None:
    assert run(fake("openvino-fp32", "5e-3"), seconds=1e-6).rounds == 12
    assert run(fake("openvino-fp32", "5e-3"), seconds=1e4).rounds == 60


@pytest.mark.usefixtures("clocked")
@pytest.mark.parametrize("begin", range(1, 10))
def test_rounds_that_were_run_count_where_the_machine_grows_slow_meanwhile(
    monkeypatch: pytest.MonkeyPatch, begin: int
) -> None:
    """From some second on all takes 50 times as long: fewer rounds fit than there were already."""
    clock = deploy.measuring.latency.time.perf_counter
    monkeypatch.setattr(
        deploy.measuring.latency.time,
        "perf_counter",
        lambda: min(clock(), begin) + 50 * max(0.0, clock() - begin),
    )
    report = run(fake("openvino-fp32", "5e-3"), seconds=30.0)
    assert report.rounds >= 12
    blocks = report.rounds * report.blocks_per_round
    assert FakeProcess.log.count("openvino-fp32") == blocks
    assert report.engines["openvino-fp32"].block_medians.size == blocks


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize(("others", "openings"), [(1, 3), (2, 3), (3, 2)])
def test_few_engines_are_opened_three_times_and_more_twice(others: int, openings: int) -> None:
    names = [f"onnxruntime-{n}" for n in ("fp32", "int8", "mixed")[:others]]
    report = run(*(fake(name, "5e-3") for name in names))
    assert report.openings == openings
    assert [FakeProcess.opened.count(name) for name in names] == [openings] * others
    assert FakeProcess.opened.count("torch") == 2 * openings
    assert report.engines[names[0]].block_medians.shape == (openings, 12 // openings, 2)


@pytest.mark.usefixtures("faked")
def test_a_block_has_as_many_calls_as_fill_10_ms_once_an_engine_is_warm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class SettlingProcess(FakeProcess):
        def time(self, calls: int, *, warmup: int = 0) -> np.ndarray[Any, Any]:
            seconds = super().time(calls, warmup=warmup)
            return seconds * max(1.0, 10.0 / self.blocks**2)  # at its speed from the fourth on

    monkeypatch.setattr(deploy.engines.process, "EngineProcess", SettlingProcess)
    engines = (fake(f"openvino-{n}", s) for n, s in (("fp32", "7e-4"), ("int8", "6e-2")))
    report = run(
        *engines, seconds=0.01 * 12 * 2 * 4
    )  # 12 rounds of two blocks of each, torch twice
    for name, calls in (("openvino-fp32", 15), ("openvino-int8", 3)):
        assert report.engines[name].samples == report.rounds * report.blocks_per_round * calls


@pytest.fixture
def asked(faked: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Of every block its engine, its calls and those before it; none takes as long as the last."""
    found: list[tuple[str, int, int]] = []

    class RestlessProcess(FakeProcess):
        def time(self, calls: int, *, warmup: int = 0) -> np.ndarray[Any, Any]:
            found.append((self.spec.name, calls, warmup))
            return super().time(calls, warmup=warmup) * (1 + 0.1 * (len(found) % 2))

    monkeypatch.setattr(deploy.engines.process, "EngineProcess", RestlessProcess)
    return found


@pytest.mark.parametrize(
    ("seconds", "calls", "before", "warming"),
    [("5e-3", 3, 3, 11), ("0.2", 3, 3, 6), ("0.5", 1, 1, 6), ("2.0", 1, 0, 2)],
)
def test_the_longer_a_call_takes_the_fewer_there_are(
    asked: list[tuple[str, int, int]], seconds: str, calls: int, before: int, warming: int
) -> None:
    name = "openvino-fp32"
    report = run(fake(name, seconds), seconds=1e-3)
    blocks = [block for block in asked if block[0] == name]
    timed = report.rounds * report.blocks_per_round
    assert report.rounds == 12
    assert report.engines[name].samples == timed * calls
    assert blocks[-1] == (name, calls, before)
    assert len(blocks) == timed + report.openings * warming


@pytest.mark.usefixtures("faked")
def test_what_openings_differ_by_widens_every_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Student's distribution: the variance of the rest of a table of engines and openings."""
    from scipy import stats

    logs = 0.05 * np.random.default_rng(0).standard_normal((3, 3))  # of processes as they open

    class LuckyProcess(FakeProcess):
        def __init__(self, spec: EngineSpec, *, wait: bool) -> None:
            super().__init__(spec, wait=wait)
            self.luck = np.exp(logs.T.flat[len(self.opened) - 1])

        def time(self, calls: int, *, warmup: int = 0) -> np.ndarray[Any, Any]:
            return super().time(calls, warmup=warmup) * self.luck

    monkeypatch.setattr(deploy.engines.process, "EngineProcess", LuckyProcess)
    found = run(fake("openvino-fp32", "5e-3")).engines["openvino-fp32"]
    rest = logs - logs.mean(axis=0) - logs.mean(axis=1, keepdims=True) + logs.mean()
    margin = stats.t.ppf(0.975, 4) * np.sqrt((rest**2).sum() / 4 / 3)
    for value, (low, high), engines in (
        (found.p50, found.p50_ci95, 1),
        (found.p90, found.p90_ci95, 1),
        (found.speedup, found.speedup_ci95, 2),
    ):
        assert np.log(high / value) == pytest.approx(margin * np.sqrt(engines), rel=0.05)
        assert np.log(value / low) == pytest.approx(margin * np.sqrt(engines), rel=0.05)


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize("lacking", [0, 1])
def test_p99_is_told_from_just_as_many_samples(
    monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    samples = run(fake("openvino-fp32", "5e-3")).engines["openvino-fp32"].samples
    monkeypatch.setattr(deploy.measuring.latency, "_P99_SAMPLES", samples + lacking)
    found = run(fake("openvino-fp32", "5e-3")).engines["openvino-fp32"]
    assert (found.p99 is None, found.p99_ci95 is None) == (bool(lacking), bool(lacking))


@pytest.mark.usefixtures("faked")
def test_p99_needs_1000_samples() -> None:
    report = run(fake("openvino-fp32", "1e-4"), seconds=1.0)
    slow, fast = report.engines["torch"], report.engines["openvino-fp32"]
    assert slow.samples < 1000 <= fast.samples
    assert (slow.p99, slow.p99_ci95) == (None, None)
    assert fast.p99 is not None
    assert fast.p99_ci95 is not None
    assert fast.p50 <= fast.p90 <= fast.p99


@pytest.mark.usefixtures("faked")
def test_a_rare_slow_call_is_not_cut_off() -> None:
    report = run(
        fake("openvino-fp32", "1e-3"), fake("onnxruntime-fp32", "5e-4 rarely slow"), seconds=1.0
    )
    slow = report.engines["onnxruntime-fp32"]
    assert slow.p50 == pytest.approx(5e-4, rel=2e-3)
    assert slow.p90 < 1
    assert slow.speedup == pytest.approx(2e-2 / 5e-4, rel=2e-3)  # of medians, which it is not in
    assert run(fake("openvino-fp32", "5e-2 rarely slow")).engines["openvino-fp32"].p90 > 4


@pytest.mark.usefixtures("faked")
def test_the_first_call_stands_apart() -> None:
    got = run(fake("openvino-fp32", "5e-3")).engines["openvino-fp32"]
    assert got.first == 1.0
    assert got.p90 < 0.01


@pytest.mark.usefixtures("faked")
def test_progress_counts_rounds() -> None:
    seen: list[Progress] = []
    report = measure(BASE, [], FEEDS, LatencySettings(seconds=1e-6), seen.append)
    assert [each.done for each in seen] == list(range(1, report.rounds + 1))
    assert seen[-1].total == report.rounds


@pytest.mark.usefixtures("faked")
def test_two_engines_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="one name"):
        run(fake("openvino-fp32", "1e-3"), fake("openvino-fp32", "2e-3"))


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize(("seconds", "block"), [(0.5, 5e-3), (2.0, 2e-2), (1e-6, 2e-3), (1e3, 0.1)])
def test_blocks_are_as_long_as_the_time_allows_within_limits(seconds: float, block: float) -> None:
    """Of twelve rounds with two blocks of each engine and of the control; sixty at most."""
    report = run(fake("openvino-fp32", "1e-5"), fake("onnxruntime-fp32", "1e-4"), seconds=seconds)
    for name, each in (("openvino-fp32", 1e-5), ("onnxruntime-fp32", 1e-4)):
        blocks = report.rounds * report.blocks_per_round
        calls = report.engines[name].samples / blocks
        assert calls == pytest.approx(min(block / each, 1000), rel=0.06)


def write_chain(path: Path, layers: int) -> str:
    """`layers` products of 192 x 192 with a batch of 64."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(layers)]
    info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 192])
        for name in ("t0", f"t{layers}")
    ]
    weights = [
        numpy_helper.from_array(rng.standard_normal((192, 192)).astype(np.float32) / 14, f"w{i}")
        for i in range(layers)
    ]
    graph = helper.make_graph(nodes, "chain", info[:1], info[1:], weights)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return str(path)


@pytest.mark.thorough
def test_real_engines_are_ranked_right(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with no_child_left():
        report = measure(
            EngineSpec("onnxruntime", "fp32", write_chain(tmp_path / "one.onnx", 4), 1),
            [
                EngineSpec("onnxruntime", "int8", write_chain(tmp_path / "five.onnx", 20), 1),
                EngineSpec("openvino", "fp32", str(tmp_path / "broken.onnx"), 1),
            ],
            {"t0": np.ones((64, 192), np.float32)},
            LatencySettings(seconds=1.0),
        )
    assert list(report.failed) == ["openvino-fp32"]
    assert "cannot open" in report.failed["openvino-fp32"]
    slow = report.engines["onnxruntime-int8"]
    assert slow.speedup_ci95[1] < 0.5
    assert slow.p50 > 2 * report.engines["onnxruntime-fp32"].p50
    assert 0.5 < report.control < 2
    assert slow.first > 0
