"""`deploy serve` against MLServer, KServe's SDK, LitServe, BentoML and Triton's python backend.

    python benchmarks/serving.py overhead --peer mlserver=venv/bin/python --peer triton=...
    python benchmarks/serving.py network --peer ...
    python benchmarks/serving.py start

Every server has the same ONNX file in ONNX Runtime on one thread, and the same client.

- `overhead`: a model that answers with its input, so what is measured is the server: CPU time of
  its process tree for a request, and throughput.
- `grpc`: the same of ours over gRPC.
- `network`: ResNet-50 in int8, or another bundle of images. Throughput in a closed loop, then
  latencies under Poisson load at half of the engine's own rate, beside a simulated queue with the
  measured service times.
- `pinned`: ours with its engine on one core, server and client on the other, against the engine
  alone.
- `start`: seconds to ready.

A peer is a package of an environment of its own, named by its interpreter.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from serving_load import (
    Floats,
    Trace,
    draw_arrivals,
    run_calls,
    run_closed,
    run_schedule,
    simulate_queue,
)
from serving_models import IMAGE, write_identity, write_resnet50
from serving_servers import OURS, PEERS, Running, Server, free_port, running

from deploy.measuring.machine import describe_machine

HERE = Path(__file__).parent
ENGINE_CORE, SERVER_CORE = 1, 0
SEED = 7


def draw_input(*shape: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """The input that all are asked for."""
    return np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)


def list_servers(options: argparse.Namespace) -> Iterator[tuple[Server, str]]:
    """Ours, and the peers with their interpreters; says which are not given."""
    yield OURS, sys.executable
    given = dict(item.partition("=")[::2] for item in options.peer)
    for name, server in PEERS.items():
        if name in given:
            yield server, given[name]
        else:
            print(f"| {server.name} | not given |")


def show(name: str, *cells: str) -> None:
    """A row of a table."""
    print(f"| {' | '.join([name, *cells])} |", flush=True)


def measure_overhead(options: argparse.Namespace, folder: Path) -> None:
    """CPU time of each server for a request, one connection; throughput of eight."""
    shapes = {"small": (4,), "image": IMAGE}
    bundles = {name: write_identity(folder / name / "echo.deploy", s) for name, s in shapes.items()}
    show("server", "case", "CPU ms", "p50 ms", "p99 ms", "8 callers: /s", "p99 ms", "CPU ms")
    for server, python in list_servers(options):
        for case, shape in shapes.items():
            wire = "raw" if server.raw and case == "image" else "JSON"
            x = draw_input(*shape)
            try:
                with running(server, python, bundles[case], x) as at:
                    warm_up(at)
                    one = load(at, 1, options.seconds)
                    many = load(at, 8, options.seconds)
            except RuntimeError as error:
                show(server.name, case, f"failed: {str(error)[: options.words]}")
                continue
            times = (f"{one.percentile_ms(50):.2f}", f"{one.percentile_ms(99):.2f}")
            loaded = (f"{many.rate:.0f}", f"{many.percentile_ms(99):.2f}", f"{many.cpu_ms:.3f}")
            show(server.name, f"{case} {wire}", f"{one.cpu_ms:.3f}", *times, *loaded)


def measure_grpc(options: argparse.Namespace, folder: Path) -> None:
    """CPU time of ours over gRPC, asked by tritonclient; tensors travel raw."""
    show("server", "case", "CPU ms", "p50 ms", "p99 ms")
    for case, shape in {"small": (4,), "image": IMAGE}.items():
        bundle = write_identity(folder / case / "echo.deploy", shape)
        one = drive_grpc(bundle, draw_input(*shape), options.seconds)
        times = (f"{one.percentile_ms(50):.2f}", f"{one.percentile_ms(99):.2f}")
        show("deploy serve, gRPC", case, f"{one.cpu_ms:.3f}", *times)


def drive_grpc(bundle: Path, x: "np.ndarray[Any, np.dtype[np.float32]]", seconds: float) -> Trace:
    """A closed loop of one caller; its first answer is compared."""
    import tritonclient.grpc

    port = free_port()
    given = tritonclient.grpc.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    flags = ["--grpc-port", str(port)]
    with (
        running(OURS, sys.executable, bundle, x, flags=flags) as at,
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        if not np.array_equal(client.infer("echo", [given]).as_numpy("y"), x):
            raise SystemExit("gRPC: a wrong answer")
        run_calls(at.process, lambda: client.infer("echo", [given]), seconds=1.0)
        return run_calls(at.process, lambda: client.infer("echo", [given]), seconds=seconds)


def measure_network(options: argparse.Namespace, folder: Path) -> None:
    """Throughput and p99 of a network that takes one core some milliseconds."""
    bundle = options.model or write_resnet50(folder / "echo.deploy")
    x = draw_input(*IMAGE)
    service = time_engine(bundle, options.seconds)
    rate = 0.5 / float(service.mean())
    count = round(rate * options.poisson_seconds)
    arrivals = draw_arrivals(rate, count, SEED)
    simulated = 1e3 * np.percentile(simulate_queue(arrivals, service, SEED), [50, 99])
    alone = f"{1 / service.mean():.2f}"
    show("server", "4 callers: /s", "p99 ms", f"{rate:.1f}/s Poisson: p50 ms", "p99 ms")
    show("engine alone, simulated queue", alone, "-", *(f"{ms:.1f}" for ms in simulated))
    for server, python in list_servers(options):
        try:
            with running(server, python, bundle, x) as at:
                warm_up(at)
                closed = load(at, 4, options.seconds)
                loaded = run_schedule(at.process, at.port, at.request, arrivals)
        except RuntimeError as error:
            show(server.name, f"failed: {str(error)[: options.words]}")
            continue
        open_loop = (f"{loaded.percentile_ms(50):.1f}", f"{loaded.percentile_ms(99):.1f}")
        show(server.name, f"{closed.rate:.2f}", f"{closed.percentile_ms(99):.1f}", *open_loop)


def measure_pinned(options: argparse.Namespace, folder: Path) -> None:
    """Ours with its engine on one core and all else on the other, against the engine alone."""
    bundle = options.model or write_resnet50(folder / "echo.deploy")
    show("round", "engine alone /s", "through the server /s", "ratio")
    os.sched_setaffinity(0, {SERVER_CORE})
    flags = ["--max-batch", "1"]
    with running(OURS, sys.executable, bundle, draw_input(*IMAGE), flags=flags) as at:
        load(at, 2, 2.0)
        pin_engine(at.process)
        load(at, 2, 1.0)
        ratios = []
        for number in range(1, options.rounds + 1):
            alone = 1 / float(time_engine(bundle, options.seconds).mean())
            served = load(at, 4, options.seconds).rate
            ratios.append(served / alone)
            show(str(number), f"{alone:.2f}", f"{served:.2f}", f"{ratios[-1]:.3f}")
    print(f"median {np.median(ratios):.3f}")


def measure_start(options: argparse.Namespace, folder: Path) -> None:
    """Seconds from the command to ready."""
    bundle = options.model or write_identity(folder / "echo.deploy", (4,))
    times = []
    for _ in range(options.rounds):
        begun = time.perf_counter()
        command = [sys.executable, "-m", "deploy", "serve", str(bundle), "--port", "0"]
        with subprocess.Popen(
            [*command, "--grpc-port", "0", "--drain", "0"], stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stderr is not None
            ready = any(json.loads(line)["message"] == "ready" for line in child.stderr)
            times.append(time.perf_counter() - begun)
            child.terminate()
        if not ready:
            raise SystemExit("the server ended before it was ready")
    print("start to ready:", ", ".join(f"{seconds:.2f}" for seconds in times), "s")


def warm_up(at: Running) -> None:
    """A second of load."""
    load(at, 4, 1.0)


def load(at: Running, callers: int, seconds: float) -> Trace:
    """A closed loop."""
    return run_closed(at.process, at.port, at.request, callers=callers, seconds=seconds)


def time_engine(bundle: Path, seconds: float) -> Floats:
    """Seconds of each call of the engine in a loop of its own, in a process on one core."""
    command = [sys.executable, str(Path(__file__)), "engine", "--model", str(bundle)]
    done = subprocess.run(
        [*command, "--seconds", str(seconds)], capture_output=True, text=True, check=True
    )
    return np.array(json.loads(done.stdout))


def loop_engine(options: argparse.Namespace, folder: Path) -> None:
    """The child of `time_engine`."""
    from deploy.bundle.folder import load as load_engine

    os.sched_setaffinity(0, {ENGINE_CORE})
    feeds = {"x": draw_input(*IMAGE)}
    with load_engine(options.model, threads=1) as engine:
        for _ in range(5):
            engine(feeds)
        times = []
        end = time.perf_counter() + options.seconds
        while (begun := time.perf_counter()) < end:
            engine(feeds)
            times.append(time.perf_counter() - begun)
    print(json.dumps(times))


def pin_engine(process: psutil.Process) -> None:
    """Move the thread that spent most of the server's CPU time to its own core, the rest away."""
    threads = sorted(process.threads(), key=lambda thread: thread.user_time + thread.system_time)
    for thread in threads:
        os.sched_setaffinity(thread.id, {SERVER_CORE})
    os.sched_setaffinity(threads[-1].id, {ENGINE_CORE})


STAGES = {
    "overhead": measure_overhead,
    "grpc": measure_grpc,
    "network": measure_network,
    "pinned": measure_pinned,
    "start": measure_start,
    "engine": loop_engine,
    "model": lambda options, folder: print(write_resnet50(options.model)),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--model", type=Path, help="a bundle called echo.deploy; `model` writes it")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--poisson-seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--words", type=int, default=300, help="characters of a failure to show")
    options = parser.parse_args()
    if options.model is not None and options.model.name != "echo.deploy":
        parser.error("--model: every server calls its model echo, so name the bundle echo.deploy")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # end the servers too
    if options.stage != "engine":
        machine = describe_machine()
        stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        print(f"{machine.cpu}, {machine.cores} cores, load {machine.load_average}, {stamp}")
    with tempfile.TemporaryDirectory() as folder:
        STAGES[options.stage](options, Path(folder))


if __name__ == "__main__":
    main()
