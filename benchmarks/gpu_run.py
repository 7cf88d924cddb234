"""How `benchmarks/gpu.py` measures one network: everybody in a process of its own, and in turns.

What was found so far is saved after every batch, so that a run that is ended keeps it. A peer that
fails, or takes longer than it is given, is a line below the table, and the rest go on.
"""

import contextlib
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gpu_table import measure_parity, state_json, summarize

from deploy.engines.base import EngineSpec
from deploy.engines.process import ChildProcess, call_in_child
from deploy.measuring.machine import usable_cores
from export.artifacts import OnnxModel
from export.errors import DeployError
from export.gpu import GpuFacts, read_gpu_state
from export.optional import is_installed
from export.tensorrt import BuildOptions, SizeRange
from export.tensorrt.options import RTX_TARGETS
from export.tensorrt.products import PRODUCTS

SAMPLES, SEED = 32, 0
BLOCKS, BLOCK_SECONDS, MIN_CALLS = 2, 0.05, 3
CLOCKS = ("time_compute", "time_wall")
_MIN_ROUNDS = 2
_LAST_SECONDS = 5.0
"""A request is given that much even when the time is over."""
_MEASURES_ITSELF = "max-autotune"
"""A compiler that times kernels: it has the GPU for itself meanwhile."""


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        minutes: after these, no further batch and no further network is begun.
        patience: seconds that a peer is given for one answer, a compiler's work included.
    """

    networks: tuple[str, ...]
    peers: tuple[str, ...]
    batches: tuple[int, ...]
    rounds: int = 10
    minutes: float = math.inf
    patience: float = 1800

    @property
    def profiles(self) -> tuple[SizeRange, ...]:
        """One for the smallest batch alone, one for all of them."""
        least, most = self.batches[0], self.batches[-1]
        return SizeRange(1, 1, 1), SizeRange(1, max(least, min(32, most)), max(most, SAMPLES))


@dataclass
class Run:
    """One network that is being measured: who runs, and why the others do not.

    Attributes:
        entry: what is found, as `make_entry` begins it.
        save: called whenever something was added to it.
        until: on the clock of `time.monotonic`, when the time that was given is over.
        module: whose functions the children call.
    """

    network: str
    folder: Path
    settings: Settings
    entry: dict[str, Any]
    save: Callable[[], None]
    until: float = math.inf
    module: str = "gpu_peers"
    runners: dict[str, ChildProcess] = field(default_factory=dict)

    @property
    def failed(self) -> dict[str, str]:
        """By engine or product, why it is not measured."""
        failed: dict[str, str] = self.entry["failed"]
        return failed

    @property
    def patience(self) -> float:
        """Seconds to wait for an answer."""
        return min(self.settings.patience, max(_LAST_SECONDS, self.until - time.monotonic()))

    def call(self, name: str, function: str, **kwargs: Any) -> Any:
        """Call a function of the peers in an engine's process."""
        self.send(name, function, kwargs)
        return self.receive(name)

    def send(self, name: str, function: str, kwargs: Mapping[str, Any]) -> None:
        """Ask, and go on."""
        self.runners[name].send("call", f"{self.module}:{function}", dict(kwargs))

    def receive(self, name: str) -> Any:
        """The answer to what was asked."""
        return self.runners[name].receive(timeout=self.patience)

    def call_all(
        self, function: str, arguments: Mapping[str, Mapping[str, Any]]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Call it in several engines' processes side by side.

        Args:
            arguments: by engine. A compiler that measures comes last, alone.

        Returns:
            The answers, and the reasons of those that gave none.
        """
        alone = [name for name in arguments if _MEASURES_ITSELF in name]
        together = [name for name in arguments if name not in alone]
        answers: dict[str, Any] = {}
        failures: dict[str, str] = {}
        for names in (together, *([name] for name in alone)):
            for name in names:
                try:
                    self.send(name, function, arguments[name])
                except DeployError as error:
                    failures[name] = str(error)
            for name in names:
                if name in failures:
                    continue
                try:
                    answers[name] = self.receive(name)
                except DeployError as error:
                    failures[name] = str(error)
        return answers, failures

    def give_up(self, failures: Mapping[str, str]) -> None:
        """Engines that failed are out; the rest go on."""
        for name, reason in failures.items():
            self.failed[name] = f"not run: {reason}"
            self.runners.pop(name).close()

    def note_state(self, when: str) -> None:
        """Ask the driver."""
        self.entry["states"].append(state_json(when, read_gpu_state()))

    def in_child(self, function: str, **kwargs: Any) -> Any:
        """Call a function of the peers in a process of its own, with all its memory."""
        with ChildProcess(threads=usable_cores()) as child:
            target = f"{self.module}:{function}"
            return child.request("call", target, kwargs, timeout=self.patience)

    def say(self, what: str) -> None:
        """Progress, beside what is printed in the end."""
        print(f"{self.network}: {what}", file=sys.stderr, flush=True)


def make_entry() -> dict[str, Any]:
    """A network of which nothing is known yet."""
    return {"parity": {}, "batches": {}, "clocks": {}, "failed": {}, "states": []}


def measure_network(run: Run, gpu: GpuFacts) -> None:
    """Weights and exact answers, then everybody's, then their times at every batch.

    Raises:
        DeployError: the network itself cannot be made.
    """
    run.say("making the network and its exact answers")
    arguments = {"network": run.network, "folder": str(run.folder)}
    model = run.in_child("make_network", **arguments, seed=SEED, samples=SAMPLES)
    with np.load(run.folder / "data.npz") as arrays:
        images, exact = arrays["x"], arrays["exact"]
    with open_runners(run, build_ours(run, gpu, model)):
        run.say("first answers")
        answers, failures = run.call_all("run_peer", {name: {"x": images} for name in run.runners})
        run.give_up(failures)
        run.entry["parity"] = measure_parity(exact, answers)
        run.save()
        for batch in run.settings.batches:
            if time.monotonic() > run.until:
                run.failed[f"batch {batch} and above"] = "the time that was given is over"
                break
            run.say(f"batch {batch}")
            x = np.resize(images, (batch, *images.shape[1:]))
            run.entry["batches"][str(batch)] = measure_batch(run, x)
            run.save()
    run.save()


def build_ours(run: Run, gpu: GpuFacts, model: OnnxModel) -> dict[str, EngineSpec]:
    """Every engine of both products that can be built for this GPU; the rest with the reason."""
    specs = {}
    for name, product in PRODUCTS.items():
        if not is_installed(name):
            run.failed[name] = f"not run: {name} is not installed"
        elif product.ahead_of_time and gpu.target not in RTX_TARGETS:
            run.failed[name] = f"not run: {product.title} has no target {gpu.target}"
        else:
            run.say(f"building with {name}")
            specs |= _build_with(run, name, gpu, model)
    join_failures(run.failed)
    return specs


def _build_with(run: Run, product: str, gpu: GpuFacts, model: OnnxModel) -> dict[str, EngineSpec]:
    profiles, specs = run.settings.profiles, {}
    where = {"model": model, "folder": str(run.folder)}
    try:
        graphs = run.in_child("make_graphs", **where, engine=product, batch=profiles)
    except DeployError as error:
        run.failed[product] = f"not run: {error}"
        return {}
    for precision, graph in graphs.items():
        name = f"{product} {precision}"
        try:
            if isinstance(graph, str):
                raise DeployError(graph)
            built = call_in_child(
                "export.tensorrt:build_engine",
                model=graph,
                path=run.folder / name.replace(" ", "-") / "model.engine",
                engine=product,
                options=BuildOptions(batch=profiles, targets=(gpu.target,)),
            )
        except DeployError as error:
            run.failed[name] = f"not run: {error}"
            continue
        path = str(built.path)
        specs[name] = EngineSpec(product, precision, path, usable_cores(), record=built.record)
    return specs


def join_failures(failed: dict[str, str]) -> None:
    """One line for a product that refuses the GPU in every precision alike."""
    for product in (*PRODUCTS, "onnxruntime CUDA"):
        mine = [name for name in failed if name.startswith(f"{product} ")]
        if len(mine) > 1 and len({failed[name] for name in mine}) == 1:
            reason = failed[mine[0]]
            for name in mine:
                del failed[name]
            failed[product] = reason


@contextlib.contextmanager
def open_runners(run: Run, ours: Mapping[str, EngineSpec]) -> Iterator[None]:
    """Every engine that opens, each in a process that ends with the block."""
    place = {"folder": str(run.folder), "network": run.network}
    peers = {name: {"kind": name, **place} for name in run.settings.peers}
    run.say("opening everybody")
    try:
        for name in (*peers, *ours):
            run.runners[name] = ChildProcess(threads=usable_cores())
        specs = {name: {"spec": spec} for name, spec in ours.items()}
        for function, arguments in (("open_peer", peers), ("open_ours", specs)):
            clocks, failures = run.call_all(function, arguments)
            run.entry["clocks"] |= clocks
            run.give_up(failures)
        join_failures(run.failed)
        yield
    finally:
        for process in run.runners.values():
            process.close()


def measure_batch(run: Run, x: np.ndarray) -> dict[str, Any]:
    """Block medians of everybody, in turns of random order; by both clocks.

    What has no memory at this size may have some at another, and is asked again there.
    """
    calls: dict[tuple[str, str], int] = {}
    ready, failures = run.call_all("prepare_peer", {name: {"x": x} for name in run.runners})
    run.failed.update({f"{name}, batch {len(x)}": reason for name, reason in failures.items()})
    for name in ready:
        try:
            for clock in CLOCKS:
                usual = float(np.median(run.call(name, clock, calls=MIN_CALLS)))
                calls[name, clock] = max(MIN_CALLS, math.ceil(BLOCK_SECONDS / max(usual, 1e-6)))
        except DeployError as error:
            run.failed[f"{name}, batch {len(x)}"] = str(error)
            calls = {key: count for key, count in calls.items() if key[0] != name}
    run.note_state(f"before batch {len(x)}")
    times = run_rounds(run, calls, seed=SEED + len(x))
    run.note_state(f"after batch {len(x)}")
    compute, wall = (
        {name: blocks for (name, kind), blocks in times.items() if kind == clock}
        for clock in CLOCKS
    )
    return summarize(compute, wall, batch=len(x), seed=SEED)


def run_rounds(
    run: Run, calls: Mapping[tuple[str, str], int], *, seed: int
) -> dict[tuple[str, str], np.ndarray]:
    """Medians of blocks in seconds, [rounds, blocks], by engine and clock.

    Rounds end early where the time that was given is over.
    """
    order = random.Random(seed)
    times = {key: np.empty((run.settings.rounds, BLOCKS)) for key in calls}
    done = 0
    while done < run.settings.rounds and (done < _MIN_ROUNDS or time.monotonic() < run.until):
        blocks = [(key, block) for key in times for block in range(BLOCKS)]
        order.shuffle(blocks)
        for (name, clock), block in blocks:
            if (name, clock) not in times:
                continue
            try:
                seconds = run.call(name, clock, calls=calls[name, clock])
            except DeployError as error:
                run.failed[name] = str(error)
                times = {key: found for key, found in times.items() if key[0] != name}
                continue
            times[name, clock][done, block] = np.median(seconds)
        done += 1
    return {key: found[:done] for key, found in times.items()}
