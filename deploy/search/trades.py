"""What every block costs and saves in int8 on one engine: noise and measured time together."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from deploy.cache import hash_batches, hash_model, hash_parts, package_versions
from deploy.engines.base import Feeds
from deploy.engines.process import call_in_child
from deploy.measuring.census import Census
from deploy.results import CandidateResult
from deploy.search.effort import EFFORTS
from deploy.search.haste import count_samples, fit_samples, keep_samples, time_sample
from deploy.search.sources import Sources
from export.errors import EngineError
from quantize.sensitivity.blocks import Block
from quantize.sensitivity.by_block import BlockSensitivity, Quantizer, measure_sensitivity
from quantize.sensitivity.fallback import BlockTrade, weigh_blocks

_SAMPLES = 16
_SHARE = 0.5
"""Of the time that is left, for the noise of the blocks; mixes are tried in the rest."""


@dataclass(frozen=True)
class BlockFinding:
    """One block in the report.

    Attributes:
        sqnr_db: of the outputs with this block alone in int8; None: they do not change.
        int8_seconds, float_seconds: of its layers in one inference; None: not known.
    """

    name: str
    layers: int
    sqnr_db: float | None
    int8_seconds: float | None
    float_seconds: float | None


@dataclass(frozen=True)
class EngineFindings:
    """The blocks as one engine runs them."""

    engine: str
    float_precision: str
    blocks: tuple[BlockFinding, ...]

    @property
    def seconds(self) -> float:
        """Of all blocks in int8; infinite where none is known."""
        known = [block.int8_seconds for block in self.blocks if block.int8_seconds is not None]
        return sum(known) if known else float("inf")


@dataclass
class Trader:
    """Measures noise once and time for each engine, and remembers both.

    Attributes:
        notes: what could not be measured, in words.
        seconds_left: of the search; half of it may go into the noise of the blocks.
    """

    sources: Sources
    notes: list[str]
    seconds_left: Callable[[], float] = field(default=lambda: math.inf)
    sensitivity: tuple[BlockSensitivity, ...] = ()
    findings: list[EngineFindings] = field(default_factory=list)

    def weigh(
        self, engine: str, quantizer: Quantizer, candidates: Mapping[str, CandidateResult]
    ) -> tuple[BlockTrade, ...]:
        """The trade of every block on `engine`.

        Noise is that of the first engine that was asked for: int8 is int8 wherever it runs, and
        what the tables of two engines differ in is few layers.
        """
        if not self.sensitivity:
            self.sensitivity = self._measure_sensitivity(quantizer)
        narrow, wide = candidates[f"{engine}-int8"], _best_float(engine, candidates)
        try:
            int8, floats = (self._layer_seconds(result) for result in (narrow, wide))
        except (EngineError, OSError) as error:
            self.notes.append(f"{engine}: no times of its layers: {error}")
            int8, floats = {}, {}
        blocks = tuple(_describe(item, int8, floats) for item in self.sensitivity)
        self.findings.append(EngineFindings(engine, wide.precision, blocks))
        return weigh_blocks(self.sensitivity, int8, floats)

    def _layer_seconds(self, result: CandidateResult) -> Mapping[str, float]:
        """Seconds by node name, from the engine's own profile."""
        if result.spec is None:
            raise EngineError(f"{result.name} does not run: {result.reason}")
        census: Census = call_in_child(
            "deploy.measuring.census:take_census",
            threads=self.sources.threads,
            spec=result.spec,
            feeds=self.sources.problem.latency_feeds(),
        )
        return census.layer_seconds

    def _measure_sensitivity(self, quantizer: Quantizer) -> tuple[BlockSensitivity, ...]:
        """Measured, or taken from an earlier build of the same model and data."""
        quantizer = replace(quantizer, adjustments=None)
        blocks = quantizer.blocks(EFFORTS[self.sources.config.effort].blocks)
        batches = self._choose_samples(len(blocks))
        key = hash_parts(
            hash_model(quantizer.model.path),
            hash_batches(batches),
            sorted(quantizer.ranges.for_scheme(quantizer.scheme).items()),
            asdict(replace(quantizer.scheme, keep_float=frozenset())),
            [asdict(block) for block in blocks],
            package_versions(),
        )

        def measure() -> list[float]:
            found = measure_sensitivity(
                quantizer,
                blocks,
                batches,
                self.sources.scratch,
                threads=self.sources.threads,
                progress=self.sources.progress,
            )
            return [item.noise for item in found]

        noises = self.sources.calibrator.cache.recall("sensitivity", key, measure)
        return tuple(BlockSensitivity(b, n) for b, n in zip(blocks, noises, strict=True))

    def _choose_samples(self, blocks: int) -> list[Feeds]:
        """Calibration samples to measure noise on: fewer where little time is left."""
        batches = _first_samples(self.sources.calibrator.batches(), _SAMPLES)
        budget = _SHARE * self.seconds_left()
        if budget == math.inf:
            return batches
        static, model = self.sources.problem.static_batch is not None, self.sources.model
        threads, runs = self.sources.threads, blocks + 1  # and the float model
        seconds = time_sample(model, batches[0], static=static, threads=threads)
        held, samples = count_samples(batches), fit_samples(seconds, runs, budget)
        if samples >= held:
            return batches
        few = keep_samples(batches, samples, static=static)
        self.notes.append(
            f"noise of the blocks: measured on {count_samples(few)} samples in place of {held}, "
            f"since the model is slow beside the time of --effort {self.sources.config.effort}"
        )
        return few


def _best_float(engine: str, candidates: Mapping[str, CandidateResult]) -> CandidateResult:
    """The float engine that the remainder of a mix runs as."""
    half = candidates.get(f"{engine}-bf16")
    if half is not None and half.status == "ok":
        return half
    return candidates[f"{engine}-fp32"]


def _describe(
    item: BlockSensitivity, int8: Mapping[str, float], floats: Mapping[str, float]
) -> BlockFinding:
    block = item.block
    sqnr = item.sqnr_db if item.noise > 0 else None
    return BlockFinding(
        block.name, len(block.nodes), sqnr, _total(block, int8), _total(block, floats)
    )


def _total(block: Block, seconds: Mapping[str, float]) -> float | None:
    known = [seconds[node] for node in block.nodes if node in seconds]
    return sum(known) if known else None


def _first_samples(batches: Iterator[Feeds], samples: int) -> list[Feeds]:
    taken: list[Feeds] = []
    count = 0
    for batch in batches:
        taken.append(batch)
        count += len(next(iter(batch.values())))
        if count >= samples:
            break
    return taken
