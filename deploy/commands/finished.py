"""What `deploy finish` found out, written into the bundle."""

import contextlib
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.bundle.folder import GOLDEN, REPORT_HTML, REPORT_JSON, Bundle
from deploy.bundle.golden import read_golden
from deploy.bundle.manifest import BundledEngine, write_manifest
from deploy.config import BuildConfig
from deploy.engines.process import open_processes
from deploy.judging.gates import DataKind
from deploy.measuring.latency import LatencyReport
from deploy.measuring.machine import describe_machine, usable_cores
from deploy.report import render_html
from deploy.results import CandidateResult, candidate_json, control_json
from export.errors import DeployError


@dataclass(frozen=True)
class Finish:
    """What became of the engines that waited.

    Attributes:
        bundle: as it stands now.
        results: of every engine that waited, in the bundle's order.
        latency: beside the baseline; None where nothing held that could be measured.
        winner_before: that the build had chosen.
    """

    bundle: Bundle
    results: tuple[CandidateResult, ...]
    latency: LatencyReport | None
    winner_before: str


@dataclass(frozen=True)
class FinishFindings:
    """All that the finished bundle is written from.

    Attributes:
        bundle: as it was.
        stage: a copy of its folder, with the engines that were built in it.
        baseline: name of the engine that the others were measured against.
        ready: the entries of the engines that were run here.
        results: of every engine that waited.
        winner: of now.
    """

    bundle: Bundle
    stage: Path
    config: BuildConfig
    baseline: str
    ready: Mapping[str, BundledEngine]
    results: Mapping[str, CandidateResult]
    latency: LatencyReport | None
    winner: str


def write_finished(found: FinishFindings) -> None:
    """Golden answers of the engines that hold, the report, and the manifest, last of all."""
    manifest = found.bundle.manifest
    engines = dict(manifest.engines)
    holding = []
    for name, result in found.results.items():
        if name not in found.ready:
            engines[name] = replace(engines[name], not_run=result.reason)
        elif result.parity_holds:
            engines[name] = replace(found.ready[name], not_run=None)
            holding.append(result)
        else:
            engines[name] = found.ready[name]
            _drop(found.stage, engines, name)
    _record_golden(found.stage, holding)
    _write_report(found)
    write_manifest(
        found.stage,
        created=manifest.created,
        model=manifest.model,
        winner=found.winner,
        engines=engines,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        structure=manifest.structure,
        machine=describe_machine().as_dict(),
        build_key=None,
        input_ranges=manifest.input_ranges,
        images=manifest.images,
    )


def _drop(stage: Path, engines: dict[str, BundledEngine], name: str) -> None:
    """What fails its parity does not ship; files that another engine needs stay."""
    entry = engines.pop(name)
    needed = {file for other in engines.values() for file in (other.file, other.source)}
    for file in {entry.file, entry.source} - needed - {None}:
        for part in (stage / str(file)).parent.glob(f"{Path(str(file)).name}*"):
            part.unlink()
    for folder in stage.iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _record_golden(stage: Path, holding: Sequence[CandidateResult]) -> None:
    golden = read_golden(stage / GOLDEN)
    specs = [result.spec for result in holding if result.spec is not None]
    with contextlib.ExitStack() as stack:
        for spec, process in zip(specs, open_processes(specs, stack), strict=True):
            if isinstance(process, DeployError):
                raise process
            golden.outputs[spec.name] = process(golden.inputs)
    golden.save(stage / GOLDEN)


def _write_report(found: FinishFindings) -> None:
    report = found.bundle.report()
    report["finish"] = _finish_json(found)
    report["candidates"] = [_updated(row, found.results) for row in report["candidates"]]
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    (found.stage / REPORT_JSON).write_text(text, encoding="utf-8")
    (found.stage / REPORT_HTML).write_text(render_html(report), encoding="utf-8")


def _updated(row: dict[str, Any], results: Mapping[str, CandidateResult]) -> dict[str, Any]:
    """A row of the build, which names where its engine was judged since."""
    result = results.get(row["name"])
    if result is None:
        return row
    if result.status == "not_run":
        return {**row, "reason": result.reason}
    return {**row, "reason": "judged where it was finished", "size_bytes": result.size_bytes}


def _finish_json(found: FinishFindings) -> dict[str, Any]:
    config, latency = found.config, found.latency
    size = found.bundle.manifest.inputs[0].shape[0]
    batch = size if isinstance(size, int) else config.batch
    kind: DataKind = "synthetic" if config.data is None else "unlabelled"
    macs = batch * (found.bundle.report()["model"]["macs"] or 0)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": describe_machine().as_dict(),
        "baseline": found.baseline,
        "batch": batch,
        "threads": config.threads or usable_cores(),
        "control": None if latency is None else control_json(latency),
        "candidates": [
            candidate_json(result, kind=kind, macs=macs, peaks={})
            for result in found.results.values()
        ],
        "winner": found.winner,
        "winner_before": found.bundle.winner,
    }
