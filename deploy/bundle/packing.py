"""Turns the findings of a build into the files of a bundle."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from deploy.bundle import folder as bundles
from deploy.bundle.golden import TOLERANCE, Golden, choose_samples
from deploy.bundle.manifest import BundledEngine, write_manifest
from deploy.bundle.plugin_files import relate_plugins
from deploy.config import BuildConfig
from deploy.engines.base import Array, EngineSpec, Feeds
from deploy.engines.device import CUDA
from deploy.engines.process import open_processes
from deploy.findings import Findings, make_report
from deploy.inputs.dataset import Dataset
from deploy.judging.reference import Reference
from deploy.report import render_html
from deploy.results import CandidateResult
from export.errors import BundleError, DeployError
from export.tensorrt.building import hash_onnx
from export.tensorrt.options import BuildOptions
from export.tensorrt.products import PRODUCTS

_GOLDEN_SEED = 20_240_229
_RANGE_BATCH = 8


def pack_bundle(
    stage: Path,
    findings: Findings,
    reference: Reference,
    config: BuildConfig,
    stages: list[tuple[str, float]],
    *,
    build_key: str | None = None,
) -> None:
    """Keep in `stage` what may ship, and write golden samples, report and manifest.

    What fails its parity gate does not ship, nor does a file that no engine opens.
    """
    report = make_report(findings, config, stages)  # looks into files that may not ship
    shipped = [result for result in findings.results if result.ships]
    used = {file for r in shipped for file in (r.file, r.source) if file is not None}
    options = relate_plugins(findings.options)
    entries = {result.name: _entry(result, stage, options) for result in shipped}
    kept = {file.relative_to(stage).as_posix() for file in used} | _plugin_files(entries)
    if findings.winner == "torch":
        entries["torch"] = _keep_model(findings, stage)
        kept.add(entries["torch"].file)
    _remove_unused(stage, kept)
    specs = {result.name: result.spec for result in shipped if result.spec is not None}
    feeds = _golden_feeds(findings, reference, config, engines=1 + len(specs))
    record_golden(feeds, reference, specs).save(stage / bundles.GOLDEN)
    _write_report(stage, report)
    problem = findings.problem
    write_manifest(
        stage,
        created=report["created"],
        model=problem.name,
        winner=findings.winner,
        engines=entries,
        inputs=problem.signature.inputs,
        outputs=problem.signature.outputs,
        structure=problem.signature.structure,
        machine=report["machine"],
        build_key=build_key,
        input_ranges=None if problem.kind == "synthetic" else find_ranges(problem.calibration),
        images=problem.images,
    )


def find_ranges(data: Dataset) -> dict[str, tuple[float, float]]:
    """Smallest and largest finite value of each input of `data`, which a server holds inputs to."""
    ranges: dict[str, tuple[float, float]] = {}
    for batch in data.batches(_RANGE_BATCH):
        for name, array in batch.items():
            finite = array[np.isfinite(array)]
            if finite.size:
                low, high = ranges.get(name, (np.inf, -np.inf))
                ranges[name] = (min(low, float(finite.min())), max(high, float(finite.max())))
    return ranges


def write_failure(target: Path, report: dict[str, Any]) -> Path:
    """Write the report of a build that ships nothing beside where its bundle would stand.

    Raises:
        BundleError: something else stands there.
    """
    folder = target.with_name(f"{target.stem}.failed")
    if folder.exists() and not (folder / bundles.REPORT_JSON).is_file():
        raise BundleError(f"{folder} exists and holds no report; it is left alone. Move it away.")
    folder.mkdir(parents=True, exist_ok=True)
    _write_report(folder, report)
    return folder / bundles.REPORT_HTML


def forget_failure(target: Path) -> None:
    """Remove the report of an earlier build of `target` that shipped nothing; this one ships."""
    folder = target.with_name(f"{target.stem}.failed")
    reports = [folder / bundles.REPORT_JSON, folder / bundles.REPORT_HTML]
    if not folder.is_dir() or folder.is_symlink() or set(folder.iterdir()) - {*reports}:
        return  # somebody keeps something there
    for report in reports:
        report.unlink(missing_ok=True)
    folder.rmdir()


def record_golden(feeds: Feeds, reference: Reference, specs: dict[str, EngineSpec]) -> Golden:
    """Run the reference and every engine on the golden inputs."""
    outputs: dict[str, dict[str, Array]] = {"reference": reference(feeds)}
    with contextlib.ExitStack() as stack:
        for name, process in zip(specs, open_processes(specs.values(), stack), strict=True):
            if isinstance(process, DeployError):
                raise process
            outputs[name] = process(feeds)
    return Golden(dict(feeds), outputs)


def _golden_feeds(
    findings: Findings, reference: Reference, config: BuildConfig, *, engines: int
) -> Feeds:
    problem = findings.problem

    def take(samples: int) -> Feeds:
        if config.golden_from_data:
            return problem.evaluation.batch(np.arange(samples) % len(problem.evaluation))
        return problem.synthetic(samples, seed=_GOLDEN_SEED)

    if problem.static_batch is not None:
        return take(problem.static_batch)
    one = take(1)
    samples = choose_samples(one, reference(one), engines=engines)
    if any(result.engine in PRODUCTS for result in findings.results if result.ships):
        samples = min(samples, max(sizes.most for sizes in findings.options.batch))
    return take(samples)


def _entry(result: CandidateResult, stage: Path, options: BuildOptions) -> BundledEngine:
    assert result.file is not None  # what ships has a file
    source, record = result.source, result.record
    if source is not None and record is not None:  # without the traces that its parser was told of
        record = replace(record, onnx_sha256=hash_onnx(source))
    return BundledEngine(
        engine=result.engine,
        precision=result.precision,
        file=result.file.relative_to(stage).as_posix(),
        golden_tolerance=TOLERANCE[result.precision],
        not_run=result.reason if result.status == "not_run" else None,
        variant=result.variant,
        source=None if source is None else source.relative_to(stage).as_posix(),
        record=record,
        recipe=None if source is None else options,
    )


def _plugin_files(entries: dict[str, BundledEngine]) -> set[str]:
    """The plugin libraries of engines and of recipes, relative to the bundle."""
    files: set[str] = set()
    for entry in entries.values():
        folder = PurePosixPath(entry.file).parent
        beside = entry.record.plugins if entry.record is not None else {}
        needed = entry.recipe.plugins if entry.recipe is not None else ()
        files |= {(folder / name).as_posix() for name in beside}
        files |= {plugin.path for plugin in needed}
    return files


def _keep_model(findings: Findings, stage: Path) -> BundledEngine:
    """The user's own file, where nothing beats it; opening it needs the same trust again."""
    problem, variant = findings.problem, findings.baseline_spec().variant
    name = f"model{problem.file.suffix}"
    shutil.copyfile(problem.file, stage / name)
    return BundledEngine(
        engine="torch",
        precision="fp32",
        file=name,
        golden_tolerance=TOLERANCE["tf32" if variant == CUDA else "fp32"],
        variant=variant,
        factory=problem.factory,
        keyword=problem.signature.keyword,
    )


def _remove_unused(stage: Path, used: set[str]) -> None:
    for file in sorted(stage.rglob("*"), reverse=True):
        name = file.relative_to(stage).as_posix()
        if file.is_dir():
            if not any(file.iterdir()):
                file.rmdir()
        elif not any(name == kept or name == f"{kept}.data" for kept in used):
            file.unlink()


def _write_report(folder: Path, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    (folder / bundles.REPORT_JSON).write_text(text, encoding="utf-8")
    (folder / bundles.REPORT_HTML).write_text(render_html(report), encoding="utf-8")
