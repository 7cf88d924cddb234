"""What became of every candidate, and the report of a build as plain values for JSON."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from deploy.engines.base import EngineSpec
from deploy.engines.device import CPU, CUDA, runs_on_gpu
from deploy.judging.accuracy import Accuracy
from deploy.judging.gates import MIN_SQNR_DB, DataKind, Verdict
from deploy.judging.layouts import LabelledOutput
from deploy.judging.output_parity import OutputParity
from deploy.judging.parity import ParityReport
from deploy.measuring.census import Census
from deploy.measuring.latency import EngineLatency, LatencyReport
from deploy.search.rungs import Rung
from export.artifacts import TensorSpec
from export.tensorrt.products import PRODUCTS
from export.tensorrt.record import EngineRecord

Status = Literal["ok", "rejected", "failed", "not_run"]

_UNREPORTED = (
    "finite",
    "error_eager",
    "integer",
    "lost_channels",
    "compared",
    "pixels",
    "flat_channels",
    "varying_db",
    "step",
    "power_ratio",
)
"""Of an output's parity: what the gates alone need."""


@dataclass(frozen=True)
class CandidateResult:
    """One candidate, judged. `reason` is there unless the status is ``ok``.

    Attributes:
        recovery: the rungs that were tried where plain int8 failed; empty where it did not.
        kept_float: of a mix, the blocks that are not in int8.
        census: what the engine ran in which precision; a text where there is none: why.
        variant: see `deploy.engines.base.EngineSpec`.
        source, record, stray_float: see `deploy.candidates.files.Candidate`.
    """

    name: str
    engine: str
    precision: str
    status: Status
    reason: str | None = None
    spec: EngineSpec | None = None
    file: Path | None = None
    size_bytes: int | None = None
    parity: ParityReport | None = None
    verdict: Verdict | None = None
    latency: EngineLatency | None = None
    recovery: tuple[Rung, ...] = ()
    kept_float: tuple[str, ...] = ()
    census: Census | str | None = None
    variant: str = ""
    source: Path | None = None
    record: EngineRecord | None = None
    stray_float: tuple[str, ...] = ()

    @property
    def parity_holds(self) -> bool:
        """Its answers may be shipped, whatever its speed."""
        return self.verdict is not None and self.verdict.passed

    @property
    def ships(self) -> bool:
        """It goes into the bundle: its parity holds, or its file awaits hardware to judge it."""
        return self.parity_holds or (self.status == "not_run" and self.file is not None)


def int8_holds(results: Iterable[CandidateResult]) -> bool:
    """Whether int8 was judged, and every engine of it holds its gate."""
    judged = [r for r in results if r.precision in ("int8", "mixed") and r.parity is not None]
    return bool(judged) and all(result.parity_holds for result in judged)


def candidate_json(
    result: CandidateResult, *, kind: DataKind, macs: int, peaks: Mapping[str, float | None]
) -> dict[str, Any]:
    """A candidate as the report's schema has it.

    Args:
        result: the candidate.
        kind: of the data that it was judged on.
        macs: multiply-accumulates of one call at the measured batch.
        peaks: GMAC/s of the machine's CPU by precision; what runs on a GPU has none.
    """
    return {
        "name": result.name,
        "engine": result.engine,
        "device": CUDA if _on_gpu(result) else CPU,
        "precision": result.precision,
        "status": result.status,
        "reason": result.reason,
        "parity": _parity_json(result, kind),
        "latency": _latency_json(result, macs, _peak_of(result, peaks)),
        "size_bytes": result.size_bytes,
        "recovery": [_rung_json(rung) for rung in result.recovery],
        "kept_float": list(result.kept_float),
        "stray_float": list(result.stray_float),
        "census": _census_json(result),
    }


def spec_json(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    """Tensor specs as plain values; ranges where there are some."""
    return [
        {
            "name": spec.name,
            "shape": list(spec.shape),
            "dtype": spec.dtype,
            **({"ranges": {k: asdict(v) for k, v in spec.ranges.items()}} if spec.ranges else {}),
        }
        for spec in specs
    ]


def gates_json(max_drop: float, min_sqnr: float | None) -> dict[str, Any]:
    """The gates that were applied, as plain values."""
    sqnr = {name: value if min_sqnr is None else min_sqnr for name, value in MIN_SQNR_DB.items()}
    return {"max_drop": max_drop, "min_sqnr_db": sqnr}


def labelled_json(labelled: Sequence[LabelledOutput]) -> dict[str, Any]:
    """The output that labels were held against, and how; all of them where there are several."""
    first = labelled[0] if labelled else None
    found = {
        "classes_of": None if first is None else first.name,
        "classes_axis": None if first is None else first.form.axis,
    }
    if len(labelled) < 2:
        return found
    return {**found, "labelled": [{"output": e.name, "axis": e.form.axis} for e in labelled]}


def control_json(report: LatencyReport) -> dict[str, Any]:
    """The A/A control as plain values."""
    return {"ratio": report.control, "ci95": list(report.control_ci95)}


def decibels_json(value: float | None) -> float | None:
    """Identical outputs are null, as is what is not known; no signal at all is -300 dB."""
    if value is None or math.isfinite(value):
        return value
    return None if value > 0 else -300.0


def _parity_json(result: CandidateResult, kind: DataKind) -> dict[str, Any] | None:
    parity, verdict = result.parity, result.verdict
    if parity is None or verdict is None:
        return None
    main = parity.main_accuracy
    several = {name: _accuracy_json(accuracy) for name, accuracy in parity.judged.items()}
    return {
        "passed": verdict.passed,
        "gate": verdict.gate,
        "data": "synthetic" if kind == "synthetic" else "evaluation",
        "samples": parity.samples,
        "batches_checked": list(parity.batches_checked),
        "sizes_checked": [
            {"sizes": dict(seen.sizes), "sqnr_db": decibels_json(seen.sqnr_db)}
            for seen in parity.sizes_checked
        ],
        "outputs": [_output_json(output) for output in parity.outputs],
        "accuracy": None if main is None else _accuracy_json(main),
        **({"accuracies": several} if len(parity.accuracies) > 1 else {}),
    }


def _output_json(output: OutputParity) -> dict[str, Any]:
    values = asdict(output)
    for key in _UNREPORTED:
        del values[key]
    decibels = decibels_json(output.sqnr_db)
    return {
        **{key: _finite(value) for key, value in values.items()},
        "sqnr_db": decibels,
        "worst_samples": [
            {
                "sample": each.sample,
                "sqnr_db": decibels_json(each.sqnr_db),
                "times_median": _finite(each.times_median),
            }
            for each in output.worst_samples
        ],
    }


def _accuracy_json(accuracy: Accuracy) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(accuracy).items()
        if key not in ("chance", "candidate_chance", "ranks", "read_as")
    }


def _latency_json(result: CandidateResult, macs: int, peak: float | None) -> dict[str, Any] | None:
    latency = result.latency
    if latency is None:
        return None
    rate = macs / latency.p50 / 1e9
    return {
        "samples": latency.samples,
        "first_ms": latency.first * 1e3,
        "p50_ms": latency.p50 * 1e3,
        "p50_ci95": [value * 1e3 for value in latency.p50_ci95],
        "p90_ms": latency.p90 * 1e3,
        "p90_ci95": [value * 1e3 for value in latency.p90_ci95],
        "p99_ms": None if latency.p99 is None else latency.p99 * 1e3,
        "p99_ci95": (
            None if latency.p99_ci95 is None else [value * 1e3 for value in latency.p99_ci95]
        ),
        "speedup": latency.speedup,
        "speedup_ci95": list(latency.speedup_ci95),
        "gmacs_per_s": rate,
        "peak_fraction": rate / peak if peak else None,
    }


def _on_gpu(result: CandidateResult) -> bool:
    """Eager torch as well, where that ran there."""
    return result.engine in PRODUCTS or runs_on_gpu(result.variant)


def _peak_of(result: CandidateResult, peaks: Mapping[str, float | None]) -> float | None:
    return None if _on_gpu(result) else peaks.get(result.precision)


def _rung_json(rung: Rung) -> dict[str, Any]:
    values = asdict(rung)
    return {**values, "sqnr_db": decibels_json(rung.sqnr_db)}


def _census_json(result: CandidateResult) -> dict[str, Any] | None:
    """Null for a candidate that could not be built or run: its own reason says why."""
    census = result.census
    if result.status == "not_run":
        return {"status": "not_run", "reason": result.reason}
    if not isinstance(census, Census):
        return None if census is None else {"status": "failed", "reason": census}
    seconds, macs = census.seconds or 1.0, census.macs or 1
    return {
        "status": "ok",
        "reason": None,
        "precisions": [
            {
                "precision": share.precision,
                "layers": share.layers,
                "macs": share.macs,
                "share_of_macs": share.macs / macs,
                "time_ms": share.seconds * 1e3,
                "share_of_time": share.seconds / seconds,
            }
            for share in census.precisions
        ],
        "reformats": census.reformats,
        "reformat_ms": census.reformat_seconds * 1e3,
        "reformat_share_of_time": census.reformat_seconds / seconds,
        "remainder": [
            {
                "where": item.where,
                "operators": list(item.operators),
                "precision": item.precision,
                "time_ms": item.seconds * 1e3,
                "share_of_time": item.share,
                **({"on_cpu": True} if item.on_cpu else {}),
            }
            for item in census.remainder
        ],
    }


def _finite(value: Any) -> Any:
    """JSON has neither infinity nor NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
