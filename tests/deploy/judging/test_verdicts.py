"""What becomes of a candidate: its file, its answers, its speed, and who wins."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from latencies import latency

from deploy.candidates.files import Candidate
from deploy.candidates.plans import Plan
from deploy.config import BuildConfig
from deploy.judging.gates import NO_CALIBRATION_DATA, DataKind, Verdict
from deploy.judging.layouts import LabelledOutput
from deploy.judging.parity import ParityAccumulator, ParityReport, SizeParity
from deploy.judging.verdicts import (
    choose,
    describe_flat,
    describe_loose,
    describe_poor,
    describe_turned,
    hold_to_float32,
    judge_candidate,
    judge_latency,
    size_of,
)
from deploy.measuring.latency import EngineLatency, LatencyReport
from deploy.results import CandidateResult

CONFIG = BuildConfig()


def compared(scale: float) -> ParityReport:
    """Of an output that a candidate answers with `scale` times what is right."""
    values = np.random.default_rng(0).standard_normal((64, 10))
    parity = ParityAccumulator(("y",))
    parity.update({"y": values}, {"y": values * scale}, rows=64)
    return parity.result()


def candidate(precision: str = "int8", **fields: object) -> Candidate:
    whole = {"status": "built", "file": Path("/stage/int8.onnx"), **fields}
    return Candidate(Plan("onnxruntime", precision, precision), **whole)  # type: ignore[arg-type]


def judge(
    each: Candidate, parity: ParityReport | str = "", kind: DataKind = "unlabelled"
) -> CandidateResult:
    return judge_candidate(each, {each.name: parity}, 3, kind, CONFIG)


def timed(speedup: float) -> EngineLatency:
    """Of an engine that is so many times as fast as the baseline, within 10%."""
    return latency(0.01 / speedup, spread=0.1, seed=int(speedup * 1e3))


def measured(failed: dict[str, str] | None = None, **speedups: float) -> LatencyReport:
    return LatencyReport(
        engines={name: timed(speedup) for name, speedup in speedups.items()},
        failed=failed or {},
        control=1.0,
        control_ci95=(0.99, 1.01),
        openings=2,
        rounds=12,
        blocks_per_round=2,
        seconds=1.0,
    )


def result(name: str = "a", precision: str = "fp32", status: str = "ok") -> CandidateResult:
    parity = compared(1.0)
    return CandidateResult(name, "onnxruntime", precision, status, parity=parity)  # type: ignore[arg-type]


def test_right_answers_pass_with_all_that_a_report_and_an_engine_need() -> None:
    source = Path("/stage/source.onnx")
    found = judge(candidate(source=source, stray_float=("conv",)), compared(1.01))
    assert (found.status, found.reason, found.ships) == ("ok", None, True)
    assert found.verdict is not None
    assert found.verdict.passed
    assert found.parity == compared(1.01)
    assert found.spec is not None
    assert (found.spec.path, found.spec.threads) == ("/stage/int8.onnx", 3)
    assert (found.source, found.stray_float) == (source, ("conv",))


def test_wrong_answers_are_rejected_with_the_gates_reason_and_still_timed() -> None:
    found = judge(candidate(), compared(2.0))
    assert found.status == "rejected"
    assert "SQNR" in str(found.reason)
    assert not found.ships
    assert found.spec is not None
    assert found.parity is not None


def test_what_cannot_be_run_failed_with_its_reason_and_has_no_verdict() -> None:
    found = judge(candidate(), "it stopped answering")
    assert (found.status, found.reason) == ("failed", "it stopped answering")
    assert (found.verdict, found.spec, found.parity, found.ships) == (None, None, None, False)


@pytest.mark.parametrize("status", ["failed", "not_run"])
def test_what_was_not_built_keeps_its_reason_whatever_answers_say(status: str) -> None:
    found = judge(candidate(status=status, reason="no compiler", file=None), compared(1.0))
    assert (found.status, found.reason, found.verdict) == (status, "no compiler", None)


@pytest.mark.parametrize("kind", ["labelled", "unlabelled", "synthetic"])
@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize("file", [None, Path("/stage/a.onnx")])
def test_an_int8_file_that_awaits_its_gpu_does_not_ship_without_calibration_data(
    kind: DataKind, precision: str, file: Path | None
) -> None:
    waiting = candidate(precision, status="not_run", reason="no GPU here", file=file)
    found = judge(waiting, kind=kind)
    if (precision, kind) == ("int8", "synthetic") and file is not None:
        assert (found.status, found.reason) == ("rejected", NO_CALIBRATION_DATA)
        assert not found.ships
    else:
        assert (found.status, found.reason) == ("not_run", "no GPU here")
        assert found.ships is (file is not None)


def test_the_size_of_a_file_is_that_of_its_weights_as_well(tmp_path: Path) -> None:
    for name, size in (("int8.onnx", 5), ("int8.onnx.data", 70), ("fp32.onnx", 900)):
        (tmp_path / name).write_bytes(bytes(size))
    assert size_of(tmp_path / "int8.onnx") == 75
    assert size_of(None) is None


@pytest.mark.parametrize(("speedup", "status"), [(1.2, "ok"), (1.0, "rejected"), (0.5, "rejected")])
def test_what_holds_its_parity_must_be_faster_than_eager_and_ships_all_the_same(
    speedup: float, status: str
) -> None:
    held = judge(candidate(), compared(1.0))
    found = judge_latency(held, measured(**{held.name: speedup}))
    assert found.status == status
    assert found.latency is not None
    assert found.latency.speedup == speedup
    assert (found.reason is None) is (status == "ok")
    assert found.ships


def test_speed_excuses_no_wrong_answer_and_does_not_hide_why() -> None:
    wrong = judge(candidate(), compared(2.0))
    for speedup in (0.5, 9.0):
        found = judge_latency(wrong, measured(**{wrong.name: speedup}))
        assert (found.status, found.reason) == ("rejected", wrong.reason)
        assert found.latency is not None


def test_what_breaks_while_it_is_timed_does_not_ship() -> None:
    held = judge(candidate(), compared(1.0))
    found = judge_latency(held, measured({held.name: "out of memory"}))
    assert (found.status, found.reason, found.ships) == ("failed", "out of memory", False)


def test_what_was_not_timed_stays_as_it_was() -> None:
    assert judge_latency(result(), measured(other=2.0)) == result()


def test_the_fastest_of_those_that_passed_wins_and_torch_where_none_did() -> None:
    quick = replace(result("quick", "int8"), latency=timed(3.0))
    slow = replace(result("slow"), latency=timed(2.0))
    rejected = replace(result("rejected", status="rejected"), latency=timed(9.0))
    assert choose((slow, rejected, quick, result("untimed")), 0) == "quick"
    assert choose((slow, replace(quick, status="failed")), 0) == "slow"
    assert choose((rejected, result("untimed")), 0) == "torch"
    assert choose((), 0) == "torch"


def test_a_garbled_sample_is_told_of_where_the_labels_hold_and_refused_without() -> None:
    rng = np.random.default_rng(0)
    scores = 4 * rng.standard_normal((1000, 10))
    labels = scores.argmax(axis=1)
    theirs = scores + 0.01 * rng.standard_normal(scores.shape)
    answers = {"sound": theirs.copy(), "garbled": theirs}
    theirs[700] = -scores[700]
    found = {}
    for name, each in answers.items():
        for kind in ("labelled", "unlabelled"):
            parity = ParityAccumulator(("y",), (LabelledOutput("y"),) if kind == "labelled" else ())
            told = {"y": labels} if kind == "labelled" else None
            parity.update({"y": scores}, {"y": each}, rows=1000, labels=told)
            found[name, kind] = judge(candidate(), parity.result(), kind)  # type: ignore[arg-type]
    assert {key: result.status for key, result in found.items()} == {
        ("sound", "labelled"): "ok",
        ("sound", "unlabelled"): "ok",
        ("garbled", "labelled"): "ok",
        ("garbled", "unlabelled"): "rejected",
    }
    assert describe_poor(found["sound", "labelled"], CONFIG) is None
    warning = str(describe_poor(found["garbled", "labelled"], CONFIG))
    assert "answers of onnxruntime-int8 are far off" in warning
    assert "output 'y' in sample 700 (-6.0 dB)" in warning
    exact = replace(found["garbled", "labelled"], precision="fp32")
    assert describe_poor(exact, CONFIG) is None


def test_a_channel_that_is_nothing_but_its_mean_is_told_of_the_winner() -> None:
    """One of twelve, so that no gate fails."""
    values = np.random.default_rng(0).standard_normal((400, 12))
    values[:, 4] *= 1e-3
    theirs = values.copy()
    theirs[:, 4] = 0
    parity = ParityAccumulator(("y",))
    parity.update({"y": values}, {"y": theirs}, rows=400)
    found = judge(candidate(), parity.result())
    assert found.status == "ok"
    assert "4 of the 12 of 'y'" in str(describe_flat(found, "unlabelled"))
    assert describe_flat(found, "synthetic") is None
    assert describe_flat(replace(found, precision="fp32"), "unlabelled") is None
    assert describe_flat(judge(candidate(), compared(1.01)), "unlabelled") is None
    assert describe_flat(judge(candidate(), "it stopped"), "unlabelled") is None


def of_heads(turned: int, *, heads: int = 2, labelled: bool = False) -> CandidateResult:
    """int8 of a model with heads of ten classes, the first of which answers `turned` of 1,000 rows
    with the runner-up by a hair; what its answers are held to is the second head's labels."""
    rng = np.random.default_rng(0)
    names = tuple(f"head_{number}" for number in range(heads))
    labels = rng.integers(0, 10, 1000)
    scores = {name: rng.standard_normal((1000, 10)) + 8 * np.eye(10)[labels] for name in names}
    first = scores[names[0]]
    rows = np.arange(turned)
    first[rows, (labels[:turned] + 1) % 10] = first[rows].max(axis=1) - 1e-3
    answers = {name: values * 1.001 for name, values in scores.items()}
    answers[names[0]][rows, (labels[:turned] + 1) % 10] += 0.1
    parity = ParityAccumulator(names, (LabelledOutput(names[-1]),) if labelled else ())
    parity.update(scores, answers, rows=1000, labels={names[-1]: labels})
    kind: DataKind = "labelled" if labelled else "unlabelled"
    return judge(candidate(), parity.result(), kind)


@pytest.mark.parametrize("labelled", [False, True])
def test_one_head_of_several_that_answers_otherwise_is_told_of(labelled: bool) -> None:
    found = of_heads(30, labelled=labelled)
    assert found.status == "ok"  # by its SQNR, and by the labels of the other head
    said = str(describe_turned(found, "unlabelled", CONFIG))
    start = "onnxruntime-int8 has another largest value than eager in 3.0% of the 1000 rows"
    assert said.startswith(f"{start} of output 'head_0'. Where these are scores of classes")
    assert describe_turned(found, "synthetic", CONFIG) is None
    assert describe_turned(replace(found, precision="fp32"), "unlabelled", CONFIG) is None
    assert describe_turned(found, "unlabelled", replace(CONFIG, min_agreement=0.9)) is None


def test_heads_that_answer_alike_are_not_told_of() -> None:
    assert describe_turned(of_heads(3), "unlabelled", CONFIG) is None
    assert describe_turned(judge(candidate(), "it stopped"), "unlabelled", CONFIG) is None


def test_a_lone_head_is_held_to_its_answers() -> None:
    alone = of_heads(30, heads=1)
    assert alone.status == "rejected"
    assert "top-1 agrees on 97.0% of 1000 samples" in str(alone.reason)
    assert describe_turned(alone, "unlabelled", CONFIG) is None
    held = of_heads(30, heads=1, labelled=True)
    assert describe_turned(held, "labelled", CONFIG) is None


def of_chaos(noise: float) -> CandidateResult:
    """A float32 engine and eager, each as far from float64 as the other."""
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((64, 10))
    eager, found = (exact + noise * rng.standard_normal(exact.shape) for _ in range(2))
    parity = ParityAccumulator(("y",))
    parity.update({"y": eager}, {"y": found}, rows=64, floor=({"y": exact}, {"y": eager}))
    return judge(candidate("fp32"), parity.result())


def test_a_float32_engine_that_passes_by_eagers_own_noise_is_told_of() -> None:
    assert of_chaos(0.5).parity_holds
    said = str(describe_loose(of_chaos(0.5)))
    assert said.startswith("onnxruntime-fp32 is far from eager in output 'y' (")
    assert "eager in float32 is as far from itself in float64" in said
    assert said.endswith("or bring labels, and look at the accuracy.")
    assert of_chaos(1e-6).parity_holds
    assert describe_loose(of_chaos(1e-6)) is None
    for each in (judge(candidate(), compared(2.0)), judge(candidate("fp32"), "it stopped")):
        assert describe_loose(each) is None


@pytest.mark.parametrize(("rows", "said"), [(200, True), (1000, False)])
def test_labels_that_were_brought_are_not_asked_for_again(rows: int, said: bool) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, rows)
    exact = rng.standard_normal((rows, 10)) + 8 * np.eye(10)[labels]
    eager, found = (exact + 0.8 * rng.standard_normal(exact.shape) for _ in range(2))
    parity = ParityAccumulator(("y",), (LabelledOutput("y"),))
    floor = ({"y": exact}, {"y": eager})
    parity.update({"y": eager}, {"y": found}, rows=rows, floor=floor, labels={"y": labels})
    each = judge(candidate("fp32"), parity.result(), "labelled")
    assert each.parity_holds
    assert (describe_loose(each) is not None) is said


def float32(name: str, scale: float, *, holds: bool) -> CandidateResult:
    """A float32 engine that answers with `scale` times what is right."""
    verdict = Verdict(holds, "noise", None if holds else "output 'y' is off")
    status = "ok" if holds else "rejected"
    of = result(name, "fp32", status)
    return replace(of, parity=compared(scale), verdict=verdict, reason=verdict.reason)


INT8 = judge(candidate(), compared(1.01))


def test_what_is_made_of_a_file_that_is_wrong_in_float32_is_rejected_though_it_holds_its_gate() -> (
    None
):
    assert INT8.parity_holds
    wrong = (float32("a", 2.0, holds=False), float32("b", 1.5, holds=False))
    *exact, found = hold_to_float32((*wrong, INT8), one_way=False)
    assert tuple(exact) == wrong
    assert (found.status, found.parity_holds, found.ships) == ("rejected", False, False)
    assert found.reason == (
        "made of an exported file whose float32 engines are wrong: output 'y' is off"
    )
    assert found.parity == INT8.parity


@pytest.mark.parametrize(
    "exact",
    [
        (),
        (float32("a", 1.0, holds=True),),
        (float32("a", 2.0, holds=False), float32("b", 1.0, holds=True)),  # a fault of one engine
        (float32("a", 2.0, holds=False), float32("b", 1.01, holds=False)),  # more than rounding
        (float32("a", 2.0, holds=False), float32("b", 1.5, holds=True)),  # as eager is from itself
    ],
)
def test_int8_is_left_to_its_own_gate_where_a_float32_engine_holds_or_is_near(
    exact: tuple[CandidateResult, ...],
) -> None:
    results = (*exact, INT8)
    assert hold_to_float32(results, one_way=False) == results


def test_where_forward_has_other_ways_the_file_is_wrong_by_less() -> None:
    near = float32("a", 1.01, holds=False)
    rounding = float32("a", 1.0 + 1e-5, holds=False)
    assert not hold_to_float32((near, INT8), one_way=True)[1].parity_holds
    assert hold_to_float32((rounding, INT8), one_way=True) == (rounding, INT8)


def test_a_file_that_is_wrong_at_other_sizes_alone_is_wrong() -> None:
    """Int8, farther off everywhere, may lie no more than 10 dB farther off there and pass."""
    sizes = {"t": 7}
    twelve = SizeParity(sizes, 12.0)
    report = replace(compared(1.0 + 1e-7), sizes_checked=(twelve,))
    found = judge(candidate("fp32"), report, "labelled")
    coarse = replace(compared(1.09), sizes_checked=(SizeParity(sizes, 11.0),))
    int8 = judge(candidate(), coarse, "labelled")
    assert not found.parity_holds
    assert int8.parity_holds
    held = hold_to_float32((found, int8), one_way=False)
    assert held[0] == found
    assert held[1].status == "rejected"
    assert held[1].reason is not None
    assert "at t=7 the SQNR is 12.0 dB" in held[1].reason
    near = replace(report, sizes_checked=(replace(twelve, sqnr_db=25.0),))
    other = judge(candidate("fp32"), near, "labelled")
    assert hold_to_float32((found, other, int8), one_way=False) == (found, other, int8)


def test_what_was_rejected_or_waits_keeps_its_own_reason() -> None:
    others = (
        judge(candidate(), compared(2.0)),
        judge(candidate("fp16", status="not_run", reason="no NVIDIA GPU")),
    )
    wrong = float32("a", 2.0, holds=False)
    assert hold_to_float32((wrong, *others), one_way=False) == (wrong, *others)


@pytest.mark.parametrize(
    ("held", "samples", "advice"),
    [("y", 400, None), ("y", 200, "comes before, or go by the accuracy."), ("z", 400, "before.")],
)
def test_whoever_brought_labels_is_not_told_to_bring_some(
    held: str, samples: int, advice: str | None
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=samples)
    exact = 10 * np.eye(10)[labels]
    eager, found = (exact + 3 * rng.standard_normal(exact.shape) for _ in range(2))
    loose = {"y": eager, "z": exact}, {"y": found, "z": exact}
    parity = ParityAccumulator(("y", "z"), (LabelledOutput(held),))
    floor = {"y": exact, "z": exact}, {"y": eager, "z": exact}
    parity.update(*loose, rows=samples, floor=floor, labels={held: labels})
    said = describe_loose(judge(candidate("fp32"), parity.result(), "labelled"))
    if advice is None:  # by its labels it is as right as eager
        assert said is None
        return
    assert said is not None
    assert said.startswith("onnxruntime-fp32 is far from eager in output 'y' (")
    assert "bring labels" not in said
    assert said.endswith(advice)
