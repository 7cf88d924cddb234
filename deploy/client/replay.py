"""Parity through the wire: what `deploy verify` does, with a running server in place of an engine.

What is compared is what a caller gets: after the server has parsed, batched and cast. Recorded
answers come first, with the tolerance of the engine that the server runs; then, where data is
given, the gates of the build.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from deploy.bundle.folder import FALLBACK, Bundle
from deploy.bundle.golden import Golden, find_mismatch
from deploy.client.wire import Server, open_server
from deploy.commands.evaluation import FloatReference, open_evaluation, plan_check
from deploy.commands.verification import Verification, judge_engine
from deploy.config import BuildConfig
from deploy.engines.base import Feeds
from deploy.engines.process import EngineProcess
from deploy.judging.checking import CheckPlan, compare_candidates, sample_axes
from deploy.judging.rows import Outputs, join_rows, run_alone
from export.errors import BundleError, ServerError
from export.progress import ProgressCallback, ignore_progress

_TOO_LARGE = (400, 413, 500)
"""What servers answer to more rows than they take; Triton says 500 or 400."""


@dataclass(frozen=True)
class ServedModel:
    """A model of a running server.

    Attributes:
        name: None: the only one that the server has.
        engine: which engine of the bundle it runs; None: the one that the server names, else the
            winner.
        token: that the server asks for, where it does.
    """

    url: str
    name: str | None = None
    engine: str | None = None
    token: str | None = field(default=None, repr=False)


def verify_server(
    bundle: Bundle,
    served: ServedModel,
    *,
    config: BuildConfig | None = None,
    progress: ProgressCallback = ignore_progress,
) -> tuple[Verification, ...]:
    """Hold a running server to the recorded answers of `bundle`, and to the data of `config`.

    Args:
        bundle: its hashes were checked when it was read.
        served: the server, and which of its models.
        config: data, gates, image options, sample counts, threads of the reference.
        progress: told what goes on.

    Raises:
        ServerError: the server cannot be reached.
        InputError: the bundle or the data cannot be used.
    """
    config = config or BuildConfig()
    with open_server(served.url, token=served.token) as server:
        name = server.find_model(served.name)
        engine = served.engine or find_engine(server, name, bundle)
        bundle.spec(engine)  # says which there are
        golden = bundle.golden()
        remote = _Remote(server, name)
        check = _Check(remote, bundle, engine, _probe(remote, golden, bundle))
        result = _replay(check, golden)
        if config.data is not None:
            result = _judge(check, result, config, progress)
    return (replace(result, name=f"{engine} @ {server.address.authority}"),)


def find_engine(server: Server, model: str, bundle: Bundle) -> str:
    """The engine of `bundle` that the server names in the model's metadata; else the winner.

    An exported model of Triton has the name among the tags of its metrics.
    """
    tags = server.config(model).get("metric_tags")
    said = set(_texts([server.metadata(model), tags if isinstance(tags, dict) else {}]))
    return next((name for name in bundle.manifest.engines if name in said), bundle.winner)


def _texts(value: Any) -> Iterator[str]:
    """Every text in plain values, however deep."""
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, (dict, list)):
            left += found.values() if isinstance(found, dict) else found


class _Remote:
    """The model behind the wire, called like an engine."""

    def __init__(self, server: Server, model: str) -> None:
        self._server, self._model = server, model

    def __call__(self, feeds: Feeds) -> Outputs:
        return self._server.infer(self._model, feeds)


@dataclass(frozen=True)
class _Check:
    """What is held to what: a remote model to an engine of a bundle, and in which batches."""

    remote: _Remote
    bundle: Bundle
    engine: str
    plan: CheckPlan


def _probe(remote: _Remote, golden: Golden, bundle: Bundle) -> CheckPlan:
    """How many rows the server takes at once: those of the golden inputs, or one."""
    first = bundle.manifest.inputs[0].shape[0]
    if isinstance(first, int):
        return CheckPlan(static_batch=first)
    rows = len(next(iter(golden.inputs.values())))
    try:
        remote(golden.inputs)
    except ServerError as error:
        if error.status not in _TOO_LARGE:
            raise
        return CheckPlan(largest_batch=1)
    return CheckPlan(largest_batch=rows)


def _replay(check: _Check, golden: Golden) -> Verification:
    """The golden inputs through the wire: as one request, or row by row."""
    engine, remote, manifest = check.engine, check.remote, check.bundle.manifest
    recorded = golden.outputs.get("reference" if engine == "torch" else engine)
    if recorded is None:
        return Verification(engine, "no golden answers were recorded for it")
    axes = sample_axes([s for s in manifest.outputs if s.name in recorded], check.plan)
    try:
        if check.plan.largest_batch != 1:
            answered = remote(golden.inputs)
        else:
            answered = join_rows(run_alone(remote, golden.inputs), axes, recorded)
    except ServerError as error:
        if error.status is None:
            raise
        return Verification(engine, str(error))
    tolerance = manifest.engines[engine].golden_tolerance
    return Verification(engine, find_mismatch(recorded, answered, tolerance=tolerance))


def _judge(
    check: _Check, replayed: Verification, config: BuildConfig, progress: ProgressCallback
) -> Verification:
    """The gate of the engine's precision on data, beside the bundle's own float32 engine here."""
    bundle, engine = check.bundle, check.engine
    if FALLBACK not in bundle.manifest.engines:
        raise BundleError(f"{bundle.path} holds no float32 model to compare with on other data.")
    assert config.data is not None
    dataset = open_evaluation(bundle, config.data, config)
    with EngineProcess(bundle.spec(FALLBACK, threads=config.threads)) as process:
        reference = FloatReference(process, bundle.manifest.outputs)
        plan = plan_check(bundle, reference, dataset, config)
        plan = replace(plan, largest_batch=check.plan.largest_batch)
        found = compare_candidates(reference, {engine: check.remote}, dataset, plan, progress)
    return judge_engine(replayed, found[engine], bundle, (dataset, plan), config)
