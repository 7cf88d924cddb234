"""Opens the engine of a bundle and lets it prove itself before a request sees it.

1. The winner of the build is opened, or the next best engine of the bundle where that cannot be;
   the server says then that it is degraded, and why. Asked to, it first builds anew an engine of
   TensorRT that does not fit this machine.
2. Every instance replays the golden inputs and must repeat the recorded answers within the
   manifest's tolerance. One that does not is never served, and no other engine takes its place: a
   machine that computes something else is not to be trusted with another file either.
3. Golden samples run alone must repeat their rows of the batch; where they do not, the model's
   answers depend on the batch, and requests are not joined.
4. Warm-up, at the batch sizes that will be used.
"""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deploy.bundle.folder import FALLBACK, Bundle
from deploy.bundle.golden import Golden, find_mismatch
from deploy.bundle.substitutes import explain_unfit, rebuild_runnable
from deploy.candidates.schemes import explain_saturation
from deploy.engines import Engine, EngineSpec, Feeds, open_engine
from deploy.engines.device import is_for_gpu, runs_on_gpu
from deploy.engines.integer_division import explain_trapping
from deploy.measuring.machine import usable_cores
from deploy.serving.batching.waiting import BatchPolicy
from deploy.serving.models.guards import find_nonfinite
from deploy.serving.models.warming import explain_copies, program_sizes, warm_sizes, warm_up
from deploy.serving.options import ServeOptions
from deploy.serving.protocol import ModelSignature, make_signature
from export.errors import BundleError, DeployError, EngineError, GateError
from export.gpu import read_gpu

_LOG = logging.getLogger("deploy.serving")


@dataclass(frozen=True)
class OpenedModel:
    """Engines that repeated their recorded answers, and how they are to be used.

    Attributes:
        name: of the engine in the bundle.
        engines: one an instance, opened; `close` ends them.
        degraded: why this is not the winner of the build; None when it is.
        sizes: see `deploy.serving.batching.running.RunPlan`.
        run_seconds: of a run by its rows, as the warm-up saw it.
        exempt: outputs whose recorded answers hold NaN or infinity.
        notes: what else to know of it.
        reference: the float32 engine for shadow samples, where they are asked for.
    """

    name: str
    engines: tuple[Engine, ...]
    signature: ModelSignature
    policy: BatchPolicy
    degraded: str | None
    sizes: tuple[int, ...]
    run_seconds: Mapping[int, float]
    exempt: frozenset[str]
    notes: tuple[str, ...]
    reference: Engine | None
    resources: contextlib.ExitStack

    def close(self) -> None:
        """Let go of all engines."""
        self.resources.close()


def open_verified(bundle: Bundle, options: ServeOptions) -> OpenedModel:
    """Open what `bundle` is served by; nothing is left open where this fails.

    Raises:
        GateError: it does not repeat its recorded answers here.
        BundleError: the bundle lacks golden answers, has a type that the protocol has not, or says
            otherwise of its inputs than its golden ones.
        EngineError, MissingExtraError: no engine of it can be opened, as where the manifest says
            otherwise of its tensors than the file.
    """
    signature = make_signature(bundle.manifest.inputs, bundle.manifest.outputs)
    golden = bundle.golden()
    with contextlib.ExitStack() as stack:
        first = _open_first(bundle, options, stack)
        name, engines = first.name, first.engines
        recorded = golden.outputs.get("reference" if name == "torch" else name)
        if recorded is None:
            raise BundleError(f"{bundle.path} records no answers of {name}. Build it again.")
        tolerance = bundle.manifest.engines[name].golden_tolerance
        for engine in engines:
            mismatch = find_mismatch(recorded, engine(golden.inputs), tolerance=tolerance)
            if mismatch is not None:
                raise GateError(
                    f"{name} does not repeat the answers recorded when it was built: {mismatch}. "
                    "This machine computes something else; build the bundle here again."
                )
        _warn_of_trapping(bundle.spec(name))
        told = (
            first.note,
            explain_saturation(bundle.spec(name)),
            _explain_no_shadow(bundle, name, options),
        )
        notes = [note for note in told if note is not None]
        difference = None
        if signature.batched:
            difference = _find_batch_dependence(engines[0], golden, recorded, tolerance)
            if difference is not None:
                notes.append(f"requests are not joined, since answers depend on it: {difference}")
        policy = _make_policy(options, batched=signature.batched and difference is None)
        sizes = program_sizes(bundle, name, policy)
        for engine in engines:
            seconds = warm_up(engine, golden.inputs, sizes or warm_sizes(bundle, name, policy))
        if sizes and runs_on_gpu(bundle.manifest.engines[name].variant):
            notes.append(explain_copies(bundle, name, sizes))
        return OpenedModel(
            name=name,
            engines=tuple(engines),
            signature=signature,
            policy=policy,
            degraded=first.degraded,
            sizes=sizes,
            run_seconds=seconds,
            exempt=find_nonfinite(golden.outputs.get("reference", recorded)),
            notes=tuple(notes),
            reference=_open_reference(bundle, name, options, stack),
            resources=stack.pop_all(),
        )


def rank_engines(bundle: Bundle) -> list[str]:
    """The engines of a bundle in the order in which they are tried.

    The winner, then the others by the time that was measured; after a winner that is eager
    torch the float32 model comes first, which `deploy.load` falls back to as well.
    """
    engines = bundle.manifest.engines
    times = bundle.times()
    others = [name for name in engines if name != bundle.winner and engines[name].not_run is None]
    others.sort(key=lambda name: times[name].p50_ms if name in times else float("inf"))
    if bundle.winner == "torch":
        others.sort(key=lambda name: name != FALLBACK)
    return [bundle.winner, *others]


@dataclass(frozen=True)
class _First:
    """The engines that were opened, why they are not the winner, and what was done for them."""

    name: str
    engines: list[Engine]
    degraded: str | None
    note: str | None


def _open_first(bundle: Bundle, options: ServeOptions, stack: contextlib.ExitStack) -> _First:
    """The first engine that can be opened, with the reason why it is not the winner."""
    names = [options.engine] if options.engine else rank_engines(bundle)
    names = names if options.fallback else names[:1]
    threads = options.threads or max(1, usable_cores() // (options.instances * options.workers))
    first: DeployError | None = None
    for name in names:
        spec, note = bundle.spec(name, threads=threads, trust=options.trust), None
        try:
            if options.rebuild and explain_unfit(bundle, name) is not None:
                rebuilt = rebuild_runnable(bundle, spec)
                spec, note = rebuilt.spec, rebuilt.note
            with contextlib.ExitStack() as opened:
                engines = [
                    opened.enter_context(open_engine(spec)) for _ in range(options.instances)
                ]
                stack.push(opened.pop_all())
        except DeployError as error:
            refusal = _name_lack(bundle, name, error)
            _LOG.warning("engine %s cannot be opened: %s", name, refusal)
            first = first or refusal
            continue
        degraded = (
            f"{names[0]} cannot be opened here ({_kind(bundle, names[0], first)}); {name} runs"
        )
        return _First(name, engines, None if first is None else degraded, note)
    raise first or EngineError(f"{bundle.path} has no engine that runs here.")


def _warn_of_trapping(spec: EngineSpec) -> None:
    """Tell whoever runs the server which requests would end its process; clients are not told."""
    trapping = explain_trapping(spec)
    if trapping is not None:
        _LOG.warning("%s", trapping)


def _find_batch_dependence(
    engine: Engine, golden: Golden, recorded: Feeds, tolerance: float
) -> str | None:
    """In words, where a golden sample alone is answered otherwise than within its batch."""
    rows = next(iter(golden.inputs.values())).shape[0]
    axes = {spec.name: spec.batch_axis or 0 for spec in engine.outputs}
    for row in range(rows if rows > 1 else 0):
        alone = engine({name: array[row : row + 1] for name, array in golden.inputs.items()})
        expected = {
            name: np.take(array, [row], axis=axes.get(name, 0)) for name, array in recorded.items()
        }
        difference = find_mismatch(expected, alone, tolerance=tolerance)
        if difference is not None:
            return difference
    return None


def _make_policy(options: ServeOptions, *, batched: bool) -> BatchPolicy:
    return BatchPolicy(
        max_batch=options.max_batch,
        max_delay_s=options.max_delay_ms / 1e3,
        queue_rows=options.queue_rows,
        queue_bytes=options.queue_mb * 2**20,
        batched=batched,
    )


def _open_reference(
    bundle: Bundle, name: str, options: ServeOptions, stack: contextlib.ExitStack
) -> Engine | None:
    """The float32 model for shadow samples; None where it is what is served, or not asked for."""
    if not options.shadow or name == FALLBACK or FALLBACK not in bundle.manifest.engines:
        return None
    spec = bundle.spec(FALLBACK, threads=1)
    _warn_of_trapping(spec)
    return stack.enter_context(open_engine(spec))


def _explain_no_shadow(bundle: Bundle, name: str, options: ServeOptions) -> str | None:
    """That shadow samples were asked for and there is nothing to compare with; else None."""
    if not options.shadow or (name != FALLBACK and FALLBACK in bundle.manifest.engines):
        return None
    why = "is what is served" if name == FALLBACK else "is not in the bundle"
    return f"no shadow samples are taken: {FALLBACK}, on which they would run, {why}"


def _name_lack(bundle: Bundle, name: str, error: DeployError) -> DeployError:
    """What this machine lacks for an engine on the GPU, which the library may tell otherwise."""
    reason = None if bundle.manifest.engines[name].record else explain_unfit(bundle, name)
    return error if reason is None else EngineError(reason)


def _kind(bundle: Bundle, name: str, error: DeployError | None) -> str:
    """Why, in the words that clients may read: they name no path."""
    if is_for_gpu(bundle.manifest.engines[name]) and read_gpu() is None:
        return "no NVIDIA GPU is seen"
    return {
        "MissingExtraError": "its package is not installed",
        "TrustError": "its model file is not trusted; see --trust",
    }.get(type(error).__name__, "its backend refuses it; see the log")
