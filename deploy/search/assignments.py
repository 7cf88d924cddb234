"""Which layers in which precision on which engine: by accuracy and measured time together.

Uniform precisions are candidates already. Here int8 that fails its gate climbs the ladder of
recovery, and blocks in which int8 is slower than float, or costs too much for what it saves, leave
it. Every mix is held against the gate and against the engine's int8 in an interleaved measurement;
what is not faster is dropped, so the result is never behind the best uniform precision.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from deploy.engines.base import EngineSpec
from deploy.judging.checking import check_candidates
from deploy.judging.gates import judge_parity
from deploy.judging.verdicts import size_of
from deploy.measuring.latency import LatencySettings, measure
from deploy.results import CandidateResult
from deploy.search.effort import EFFORTS
from deploy.search.mixes import choose_mix, propose_mixes
from deploy.search.recovery import STEPS, Climb, Judged, Step, Tools, climb
from deploy.search.rungs import Rung, describe_vain
from deploy.search.sources import Sources
from deploy.search.trades import BlockFinding, Trader
from export.errors import DeployError, EngineError
from export.progress import Progress
from quantize.sensitivity.blocks import Block
from quantize.sensitivity.by_block import Quantizer
from quantize.sensitivity.fallback import orders_of_leaving

ENGINES = ("onnxruntime", "openvino")
"""Those that run int8 graphs with a float remainder on this kind of machine."""

_WORTH = 0.01
"""Share of the time of an inference that a mix must promise to be tried."""
_RIVAL_SECONDS = 5.0


@dataclass(frozen=True)
class SearchReport:
    """What the search did.

    Attributes:
        engine: whose times the blocks have; None where none were taken.
        float_precision: what int8 is compared with there.
        notes: what was cut short or could not be done, in words.
    """

    effort: str
    seconds: float
    engine: str | None = None
    float_precision: str | None = None
    blocks: tuple[BlockFinding, ...] = ()
    notes: tuple[str, ...] = ()


def search(
    results: Sequence[CandidateResult], sources: Sources
) -> tuple[tuple[CandidateResult, ...], SearchReport]:
    """Improve the int8 candidates and add mixes.

    Args:
        results: judged for parity, not yet for speed.
        sources: where they came from; its data must be real.

    Returns:
        All candidates in their order, mixes behind the int8 engine they come from, and the record.
    """
    found = {result.name: result for result in results}
    run = _Search(sources, found)
    engines = find_improvable(found)
    for number, engine in enumerate(engines, start=1):
        run.give_until(number / len(engines))
        try:
            run.improve(engine)
        except DeployError as error:
            run.notes.append(f"{engine}: {error}")
    ordered: list[CandidateResult] = []
    for result in results:
        ordered.append(found[result.name])
        mixed = found.get(f"{result.engine}-mixed")
        if mixed is not None and result.name == f"{result.engine}-int8":
            ordered.append(mixed)
    return tuple(ordered), run.report()


def find_improvable(found: Mapping[str, CandidateResult]) -> tuple[str, ...]:
    """Those of `ENGINES` whose int8 runs and was judged; the time of the search is shared by them.

    Args:
        found: candidates by name.
    """
    int8 = {engine: found.get(f"{engine}-int8") for engine in ENGINES}
    return tuple(name for name, each in int8.items() if each is not None and each.verdict)


@dataclass
class _Search:
    """One search: its clock and its steps; `found` are the candidates by name."""

    sources: Sources
    found: dict[str, CandidateResult]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._effort = EFFORTS[self.sources.config.effort]
        self._started = time.monotonic()
        self.give_until(1.0)
        self._trader = Trader(self.sources, self.notes, lambda: self._deadline - time.monotonic())

    def report(self) -> SearchReport:
        """The record; its blocks are those of the engine that is the faster in int8."""
        effort, seconds = self.sources.config.effort, time.monotonic() - self._started
        if not self._trader.findings:
            return SearchReport(effort, seconds, notes=tuple(self.notes))
        best = min(self._trader.findings, key=lambda findings: findings.seconds)
        return SearchReport(
            effort, seconds, best.engine, best.float_precision, best.blocks, tuple(self.notes)
        )

    def give_until(self, share: float) -> None:
        """What is begun from now on may last until that share of the time of the effort."""
        self._deadline = self._started + share * self._effort.seconds

    def improve(self, engine: str) -> None:
        """Recover the int8 of one engine where it fails, then look for a faster mix."""
        int8 = self.found[f"{engine}-int8"]
        quantizer = self.sources.quantizer(engine)
        if int8.status == "rejected":
            quantizer = self._recover(int8, quantizer)
        if self._effort.mixes and self.found[int8.name].status == "ok":
            self._mix_for_speed(engine, quantizer)

    def _recover(self, plain: CandidateResult, quantizer: Quantizer) -> Quantizer:
        """Climb; what passes takes the place of the plain file, or stands beside it as a mix."""
        assert plain.file is not None
        assert plain.parity is not None
        assert plain.verdict is not None
        folder = self.sources.scratch / f"recover-{plain.engine}"
        folder.mkdir(exist_ok=True)
        chosen = self.sources.config.recover
        steps: tuple[Step, ...] = tuple(s for s in STEPS if "auto" in chosen or s in chosen)
        tools = Tools(
            judge=lambda file, precision: self._judge(plain.engine, precision, file),
            batches=self.sources.calibrator.batches,
            calibrate=self.sources.calibrator,
            orders=lambda quantizer: self._orders(plain.engine, quantizer),
            folder=folder,
            steps=steps,
            tries=self._effort.tries,
            expired=lambda: self._out_of_time(f"recovery of {plain.name}"),
            progress=self.sources.progress,
        )
        climbed = climb(quantizer, Judged(plain.file, plain.parity, plain.verdict), tools)
        self._keep_climb(replace(plain, recovery=climbed.rungs), climbed)
        return climbed.quantizer

    def _keep_climb(self, int8: CandidateResult, climbed: Climb) -> None:
        if climbed.passed and climbed.kept_float:
            self._add_mix(int8.engine, climbed.quantizer, climbed.kept_float, climbed.rungs)
        elif climbed.passed:
            assert int8.file is not None
            assert climbed.best is not None
            climbed.quantizer.write(int8.file)
            better = replace(climbed.best, file=int8.file)
            self.found[int8.name] = _with_judgement(int8, better, self.sources)
            return
        else:
            effort = self.sources.config.effort
            reasons = (int8.reason, describe_vain(climbed.rungs[1:], effort))
            int8 = replace(int8, reason="; ".join(filter(None, reasons)))
        self.found[int8.name] = int8

    def _mix_for_speed(self, engine: str, quantizer: Quantizer) -> None:
        """Add the fastest mix in which blocks that int8 slows down are float, if one is faster."""
        trades = self._trader.weigh(engine, quantizer, self.found)
        slower = [trade for trade in trades if trade.saving < 0]
        gain = -sum(trade.saving for trade in slower)
        promising = gain > _WORTH * self._trader.findings[-1].seconds
        if not promising or len(slower) == len(trades):
            return
        rival = self.found[f"{engine}-int8"].spec
        numbers = itertools.count()

        def wins(nodes: frozenset[str]) -> bool:
            nonlocal rival
            if self._out_of_time("mixes for speed"):
                return False
            number = next(numbers)
            self.sources.progress(Progress("search", number, self._effort.mixes, engine))
            path = self.sources.scratch / f"{engine}-mix-{number}.onnx"
            quantizer.write(path, keep_float=nodes)
            judged = self._judge(engine, "mixed", path)
            spec = self.sources.spec(engine, "mixed", path)
            if not judged.verdict.passed or not self._is_faster(spec, rival):
                return False
            rival = replace(spec, variant="rival")
            return True

        def skip(error: DeployError) -> None:
            self.notes.append(f"{engine}: a mix was passed over: {error}")

        kept = choose_mix(propose_mixes(trades)[: self._effort.mixes], wins, skip)
        if kept:
            self._add_mix(engine, quantizer, kept, ())

    def _is_faster(self, spec: EngineSpec, rival: EngineSpec | None) -> bool:
        """Whether the 95% interval of the speed-up of a mix over its rival lies above 1."""
        assert rival is not None
        config = self.sources.config
        seconds = min(_RIVAL_SECONDS, config.measure_seconds)
        settings = LatencySettings(seconds=seconds, seed=config.seed)
        report = measure(rival, [spec], self.sources.problem.latency_feeds(), settings)
        return spec.name in report.engines and report.engines[spec.name].speedup_ci95[0] > 1

    def _orders(self, engine: str, quantizer: Quantizer) -> tuple[tuple[Block, ...], ...]:
        return orders_of_leaving(self._trader.weigh(engine, quantizer, self.found))

    def _judge(self, engine: str, precision: str, file: Path) -> Judged:
        """Open a file as the engine does and hold it against the gate.

        Raises:
            EngineError: it cannot be opened or run.
        """
        problem, config = self.sources.problem, self.sources.config
        spec = self.sources.spec(engine, precision, file)
        plan = problem.check_plan()
        reference = self.sources.reference
        checked = check_candidates(reference, {spec.name: spec}, problem.evaluation, plan)
        parity = checked[spec.name]
        if isinstance(parity, str):
            raise EngineError(parity)
        verdict = judge_parity(parity, precision, kind=problem.kind, config=config)
        return Judged(file, parity, verdict)

    def _add_mix(
        self,
        engine: str,
        quantizer: Quantizer,
        kept: frozenset[str],
        rungs: tuple[Rung, ...],
    ) -> None:
        """A mix as a candidate, its file in the bundle; judged there, as it ships."""
        path = self.sources.stage / f"{engine}-mixed" / "model.onnx"
        quantizer.write(path, keep_float=kept)
        blocks = (item.block for item in self._trader.sensitivity)
        result = CandidateResult(
            name=f"{engine}-mixed",
            engine=engine,
            precision="mixed",
            status="ok",
            recovery=rungs,
            kept_float=tuple(block.name for block in blocks if kept.issuperset(block.nodes)),
        )
        judged = self._judge(engine, "mixed", path)
        self.found[result.name] = _with_judgement(result, judged, self.sources)

    def _out_of_time(self, what: str) -> bool:
        if time.monotonic() < self._deadline:
            return False
        effort = self.sources.config.effort
        limit = f"{self._effort.seconds:.0f} s of --effort {effort}"
        note = f"{what}: not all tried within its share of the {limit}"
        if note not in self.notes:
            self.notes.append(note)
        return True


def _with_judgement(result: CandidateResult, judged: Judged, sources: Sources) -> CandidateResult:
    """The candidate with the file that was judged, and what the gate says of it."""
    return replace(
        result,
        status="ok" if judged.verdict.passed else "rejected",
        reason=judged.verdict.reason,
        spec=sources.spec(result.engine, result.precision, judged.file),
        file=judged.file,
        size_bytes=size_of(judged.file),
        parity=judged.parity,
        verdict=judged.verdict,
    )
