"""What blocks give and take in int8: noise measured once, times of the engines that really run."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from built_nets import Net
from nets import randomize_norms

from deploy.cache import Cache
from deploy.candidates.calibration import Calibrator
from deploy.candidates.corrections import Corrections
from deploy.config import BuildConfig
from deploy.engines.base import EngineSpec
from deploy.judging.gates import Verdict
from deploy.results import CandidateResult
from deploy.search.assignments import find_improvable
from deploy.search.haste import count_samples, fit_samples, keep_samples, time_sample
from deploy.search.sources import Sources
from deploy.search.trades import BlockFinding, EngineFindings, Trader
from deploy.source import open_problem
from export.fusion import fuse
from export.onnx.exporter import to_onnx
from export.progress import Progress

IMAGES = np.random.default_rng(0).standard_normal((24, 3, 16, 16)).astype(np.float32)
Make = Callable[[list[Progress]], Sources]


@pytest.fixture(scope="module")
def make_sources(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Of a net on unlabelled images; every build of it has the same cache."""
    folder = tmp_path_factory.mktemp("trades")
    np.savez(folder / "data.npz", x=IMAGES[:8], calibration_x=IMAGES[8:])
    config = BuildConfig(data=str(folder / "data.npz"), observer="minmax", recover=("rounding",))
    net = randomize_norms(Net(), seed=4).eval()
    problem = open_problem(net, config, folder)
    program = fuse(net, torch.from_numpy(IMAGES[:2])).program
    model = to_onnx(program, folder / "model.onnx", input_names=["x"], output_names=["y"], opset=20)

    def make(told: list[Progress]) -> Sources:
        calibrator = Calibrator(problem, config, 1, Cache(folder / "cache"), told.append)
        ranges = calibrator(model)
        corrections = Corrections(calibrator, model, ranges)
        return Sources(model, ranges, corrections, calibrator, None, folder, folder)  # type: ignore[arg-type]

    return make


def candidates(sources: Sources, engine: str = "onnxruntime") -> dict[str, CandidateResult]:
    """int8 and float32 of one engine, each with a file that it opens."""
    quantizer = sources.quantizer(engine)
    files = {
        "int8": quantizer.write(sources.scratch / f"{engine}.onnx").path,
        "fp32": sources.model.path,
    }
    return {
        f"{engine}-{precision}": CandidateResult(
            f"{engine}-{precision}",
            engine,
            precision,
            "ok",
            spec=EngineSpec(engine, precision, str(file), 1, inputs=sources.model.inputs),
        )
        for precision, file in files.items()
    }


def test_a_block_saves_what_its_layers_take_less_time_than_in_float(make_sources: Make) -> None:
    sources = make_sources([])
    quantizer, notes = sources.quantizer("onnxruntime"), []
    trader = Trader(sources, notes)
    trades = trader.weigh("onnxruntime", quantizer, candidates(sources))
    (findings,) = trader.findings
    assert (findings.engine, findings.float_precision, notes) == ("onnxruntime", "fp32", [])
    assert [block.name for block in findings.blocks] == ["stem", "conv", "head"]
    assert [trade.block.name for trade in trades] == ["stem", "conv", "head"]
    for trade, block in zip(trades, findings.blocks, strict=True):
        assert block.layers == 1
        assert trade.noise > 0
        assert block.sqnr_db == pytest.approx(-10 * np.log10(trade.noise))
        assert block.int8_seconds is not None
        assert block.float_seconds is not None
        assert trade.saving == pytest.approx(block.float_seconds - block.int8_seconds)
    assert findings.seconds == pytest.approx(sum(b.int8_seconds or 0 for b in findings.blocks))


def test_noise_is_measured_once_for_both_engines_and_in_the_next_build_not_at_all(
    make_sources: Make,
) -> None:
    told: list[Progress] = []
    sources = make_sources(told)
    noises = []
    for trader in (Trader(sources, []), Trader(make_sources(told), [])):
        for engine in ("openvino", "onnxruntime"):
            broken = {
                name: replace(each, spec=None, reason="no such luck")
                for name, each in candidates(sources, engine).items()
            }
            trades = trader.weigh(engine, sources.quantizer(engine), broken)
            noises.append([trade.noise for trade in trades])
    assert noises == [noises[0]] * 4
    assert len([each for each in told if each.stage == "sensitivity" and each.done == 0]) <= 1


def test_where_an_engine_does_not_run_blocks_have_no_times_and_the_record_says_why(
    make_sources: Make,
) -> None:
    sources = make_sources([])
    found = candidates(sources)
    found["onnxruntime-fp32"] = replace(
        found["onnxruntime-fp32"], spec=None, reason="it cannot be opened"
    )
    notes: list[str] = []
    trader = Trader(sources, notes)
    trades = trader.weigh("onnxruntime", sources.quantizer("onnxruntime"), found)
    (note,) = notes
    assert "onnxruntime-fp32 does not run: it cannot be opened" in note
    assert {trade.saving for trade in trades} == {0}
    blocks = trader.findings[0].blocks
    assert {(block.int8_seconds, block.float_seconds) for block in blocks} == {(None, None)}
    assert trader.findings[0].seconds == float("inf")


@pytest.mark.parametrize(("status", "expected"), [("ok", "bf16"), ("rejected", "fp32")])
def test_what_is_float_in_a_mix_is_bf16_where_that_gives_the_answers(
    make_sources: Make, status: str, expected: str
) -> None:
    sources = make_sources([])
    found = {name: replace(c, spec=None) for name, c in candidates(sources, "openvino").items()}
    found["openvino-bf16"] = CandidateResult("openvino-bf16", "openvino", "bf16", status)  # type: ignore[arg-type]
    trader = Trader(sources, [])
    trader.weigh("openvino", sources.quantizer("openvino"), found)
    assert trader.findings[0].float_precision == expected


def test_seconds_of_an_engine_are_of_the_blocks_whose_time_is_known() -> None:
    blocks = tuple(BlockFinding(str(i), 1, 30.0, s, s) for i, s in enumerate((0.5, None, 0.25)))
    assert EngineFindings("openvino", "bf16", blocks).seconds == 0.75


def judged(engine: str, *, runs: bool = True) -> CandidateResult:
    verdict = Verdict(True, "SQNR at least 20 dB") if runs else None
    return CandidateResult(f"{engine}-int8", engine, "int8", "ok", verdict=verdict)


def test_engines_whose_int8_runs_share_the_time_of_the_search() -> None:
    one, other = judged("onnxruntime"), judged("openvino")
    assert find_improvable({each.name: each for each in (other, one)}) == (
        "onnxruntime",
        "openvino",
    )
    assert find_improvable({one.name: one}) == ("onnxruntime",)
    absent = judged("openvino", runs=False)
    assert find_improvable({each.name: each for each in (one, absent)}) == ("onnxruntime",)
    assert find_improvable({}) == ()


@pytest.mark.parametrize(
    ("seconds", "runs", "budget", "samples"),
    [
        (1.0, 9, 30.0, 2),
        (0.1, 9, 30.0, 32),
        (0.1, 9, 57.0, 32),
        (0.1, 9, 58.0, 64),
        (5.0, 9, 0.0, 2),
    ],
)
def test_so_many_samples_fit_into_the_time_that_is_left(
    seconds: float, runs: int, budget: float, samples: int
) -> None:
    assert fit_samples(seconds, runs, budget) == samples
    assert fit_samples(seconds, runs, -1.0) == 2  # some are needed


@pytest.mark.parametrize(
    ("samples", "static", "kept"),
    [(2, False, [2]), (16, False, [12, 4]), (100, False, [12, 12]), (2, True, [12])],
)
def test_batches_are_cut_but_for_those_that_must_be_full(
    samples: int, static: bool, kept: list[int]
) -> None:
    batches = [{"x": IMAGES[:12]}, {"x": IMAGES[12:]}]
    found = keep_samples(batches, samples, static=static)
    assert [len(batch["x"]) for batch in found] == kept
    assert count_samples(found) == sum(kept)


def test_a_search_without_time_measures_noise_on_few_samples_and_says_so(
    make_sources: Make,
) -> None:
    sources, notes = make_sources([]), []
    quantizer = sources.quantizer("onnxruntime")
    hasty = Trader(sources, notes, lambda: 0.0)
    found = hasty.weigh("onnxruntime", quantizer, candidates(sources))
    assert notes == [
        "noise of the blocks: measured on 2 samples in place of 16, since the model is slow beside "
        "the time of --effort normal"
    ]
    usual = Trader(sources, notes, lambda: 1e9)
    others = usual.weigh("onnxruntime", quantizer, candidates(sources))
    assert len(notes) == 1
    for few, all_ in zip(found, others, strict=True):
        assert few.noise != all_.noise
        assert few.noise == pytest.approx(all_.noise, rel=1.0)


@pytest.mark.parametrize(("static", "seconds"), [(True, 2.0), (False, 6.0)])
def test_a_sample_takes_its_share_of_the_batch_that_was_run(
    make_sources: Make, monkeypatch: pytest.MonkeyPatch, static: bool, seconds: float
) -> None:
    """Of three samples, or the first of them alone; by a clock that moves by six seconds."""
    model = make_sources([]).model
    monkeypatch.setattr("deploy.search.haste.time.perf_counter", iter((10.0, 16.0)).__next__)
    assert time_sample(model, {"x": IMAGES[:3]}, static=static, threads=1) == seconds
