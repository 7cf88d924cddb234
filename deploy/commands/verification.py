"""Parity again: on this machine, or on other data. Needs no torch."""

from dataclasses import dataclass, replace

from deploy.bundle.folder import FALLBACK, Bundle
from deploy.bundle.golden import Golden, find_mismatch
from deploy.bundle.preflight import read_host
from deploy.bundle.soundness import check_sound
from deploy.bundle.substitutes import Rebuilt, Substitution, explain_unfit, settle_unfit
from deploy.candidates.schemes import explain_saturation
from deploy.commands.evaluation import FloatReference, open_evaluation, plan_check
from deploy.config import BuildConfig
from deploy.engines.base import EngineSpec
from deploy.engines.device import is_for_gpu
from deploy.engines.process import EngineProcess
from deploy.inputs.dataset import Dataset
from deploy.judging.checking import CheckPlan, check_candidates
from deploy.judging.gates import DataKind, Verdict, judge_parity
from deploy.judging.label_notes import describe_undecided
from deploy.judging.parity import ParityReport
from export.errors import (
    BundleError,
    DeployError,
    MissingExtraError,
    TrustError,
)
from export.progress import ProgressCallback, ignore_progress

UNREPLACED = Substitution(fallback=False)
"""The winner itself must run."""


@dataclass(frozen=True)
class Verification:
    """What one engine of a bundle did here.

    Attributes:
        golden: None when it repeats its recorded answers, else what differs.
        missing: how to install its backend, where that is not installed and not needed: the bundle
            is then served by another engine.
        unfit: what of this machine an engine of TensorRT does not fit; where the engine is the
            winner, that is in `golden`.
        untrusted: why it was not opened, where its file needs code that is not trusted.
        parity: against the bundle's float32 model, where data was given.
        verdict: of the parity gate on that data.
        note: that it was built again for this machine, where it was, or what this CPU does to its
            int8.
        warnings: of that data and its labels.
    """

    name: str
    golden: str | None
    missing: str | None = None
    unfit: str | None = None
    untrusted: TrustError | None = None
    parity: ParityReport | None = None
    verdict: Verdict | None = None
    note: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """What was compared holds: the golden answers, and the gate where data was given."""
        return self.golden is None and (self.verdict is None or self.verdict.passed)

    @property
    def was_run(self) -> bool:
        """Whether it was opened at all."""
        return self.missing is None and self.unfit is None and self.untrusted is None


def verify(
    bundle: Bundle,
    *,
    data: str | None = None,
    config: BuildConfig | None = None,
    threads: int = 0,
    trust: tuple[str, ...] = (),
    substitution: Substitution = UNREPLACED,
    progress: ProgressCallback = ignore_progress,
) -> tuple[Verification, ...]:
    """Hold every engine of `bundle` that can be opened here to its recorded answers, and to `data`.

    Args:
        bundle: its hashes were checked when it was read.
        data: what ``--data`` takes; None: that of `config`, else golden samples only.
        config: gates, image options, sample counts.
        threads: 0: every usable core.
        trust: for a bundle whose winner is the user's torch file.
        substitution: what may take the place of an engine of TensorRT that does not run here. With
            a fallback such a winner is no failure where the bundle's float32 engine holds.
        progress: told what goes on.

    Raises:
        InputError: the bundle does not fit together, or it or the data cannot be used.
    """
    config = config or BuildConfig()
    data = config.data if data is None else data
    check_sound(bundle)
    unfit = find_unfit(bundle)
    rebuilt: dict[str, Rebuilt] = {}
    if substitution.rebuild:
        rebuilt, lost = settle_unfit(bundle, Substitution(rebuild=True), threads=threads)
        unfit = {
            name: str(lost.get(name, why)) for name, why in unfit.items() if name not in rebuilt
        }
    names = [
        name
        for name, entry in bundle.manifest.engines.items()
        if name in rebuilt or (entry.not_run is None and name not in unfit)
    ]
    specs = {
        name: rebuilt[name].spec
        if name in rebuilt
        else bundle.spec(name, threads=threads, trust=trust)
        for name in names
    }
    golden = bundle.golden()
    replayed = tuple(
        _keep_unfit(bundle, name, unfit[name], fallback=substitution.fallback)
        if name in unfit
        else _note_rebuilt(_replay(bundle, specs[name], golden), rebuilt.get(name))
        for name in bundle.manifest.engines
        if name in unfit or name in specs
    )
    if data is None:
        return replayed
    if FALLBACK not in specs:
        raise BundleError(f"{bundle.path} holds no float32 model to compare with on other data.")
    dataset = open_evaluation(bundle, data, config)
    here = {result.name: specs[result.name] for result in replayed if result.was_run}
    with EngineProcess(specs[FALLBACK]) as process:
        reference = FloatReference(process, bundle.manifest.outputs)
        plan = plan_check(bundle, reference, dataset, config)
        reports = check_candidates(reference, here, dataset, plan, progress)
    return tuple(
        judge_engine(result, reports[result.name], bundle, (dataset, plan), config)
        if result.name in here
        else result
        for result in replayed
    )


def find_unfit(bundle: Bundle) -> dict[str, str]:
    """The engines for GPUs that cannot be judged here, each with the sentence that says why."""
    host, unfit = None, {}
    for name, entry in bundle.manifest.engines.items():
        if not is_for_gpu(entry):
            continue
        host = host or read_host()
        reason = explain_unfit(bundle, name, host)
        if reason is None and entry.not_run is not None:
            reason = (
                f"{name} fits this machine and was never run. Build and judge it here with: "
                f"deploy finish {bundle.path}"
            )
        if reason is not None:
            unfit[name] = reason
    return unfit


def _keep_unfit(bundle: Bundle, name: str, reason: str, *, fallback: bool) -> Verification:
    """One that is needed, since it is what `load` opens first and nothing may replace it, fails."""
    replaced = fallback and FALLBACK in bundle.manifest.engines
    needed = name == bundle.winner and not replaced
    return Verification(name, reason if needed else None, unfit=reason)


def _note_rebuilt(result: Verification, rebuilt: Rebuilt | None) -> Verification:
    """With the note of an engine that was built again."""
    return result if rebuilt is None else replace(result, note=rebuilt.note)


def _replay(bundle: Bundle, spec: EngineSpec, golden: Golden) -> Verification:
    """Run one engine on the golden inputs."""
    recorded = golden.outputs.get("reference" if spec.name == "torch" else spec.name)
    if recorded is None:
        return Verification(spec.name, "no golden answers were recorded for it")
    try:
        with EngineProcess(spec) as process:
            answered = process(golden.inputs)
    except MissingExtraError as error:
        needed = FALLBACK if bundle.winner == "torch" else bundle.winner  # as `load` chooses
        if spec.name != needed:
            return Verification(spec.name, None, missing=str(error))
        return Verification(spec.name, str(error))
    except TrustError as error:
        return Verification(spec.name, None, untrusted=error)
    except DeployError as error:
        return Verification(spec.name, str(error))
    tolerance = bundle.manifest.engines[spec.name].golden_tolerance
    mismatch = find_mismatch(recorded, answered, tolerance=tolerance)
    return Verification(spec.name, mismatch, note=explain_saturation(spec))


def judge_engine(
    replayed: Verification,
    report: ParityReport | str,
    bundle: Bundle,
    judged_on: tuple[Dataset, CheckPlan],
    config: BuildConfig,
) -> Verification:
    """What `replayed` says, with the parity on data, the verdict of its gate, and warnings.

    Args:
        replayed: of one engine.
        report: of the same, or why it does not run on the data.
        bundle: that it is of.
        judged_on: the data, and how it was run.
        config: gates.
    """
    dataset, plan = judged_on
    if isinstance(report, str):
        verdict = Verdict(False, "runs on the data", report)
        return replace(replayed, verdict=verdict, warnings=plan.warnings)
    kind: DataKind = "labelled" if plan.labelled else "unlabelled"
    precision = bundle.manifest.engines[replayed.name].precision
    noise = recorded_noise(bundle)
    verdict = judge_parity(report, precision, kind=kind, config=config, recorded_noise=noise)
    warnings = (*plan.warnings, *describe_undecided(report, dataset, bundle.manifest.outputs))
    return replace(replayed, parity=report, verdict=verdict, warnings=warnings)


def recorded_noise(bundle: Bundle) -> dict[str, float]:
    """Eager's float32 noise by output, from the report of the build."""
    report = bundle.report()
    return {
        output["name"]: output["noise_float64"]
        for candidate in report["candidates"]
        if candidate["parity"]
        for output in candidate["parity"]["outputs"]
        if output["noise_float64"] is not None
    }
