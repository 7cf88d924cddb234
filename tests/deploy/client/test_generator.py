"""What callers wait for is what is reported: against servers whose delays are known.

The expected latencies are arithmetic on the schedule: the server answers one request at a time, so
each is done one service time after the later of its arrival and the end of the one before
(Lindley's recursion).
"""

import gc
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_server import run_planted

from deploy.client.arrivals import draw_arrivals
from deploy.client.connection import CLOSED, REFUSED, TIMEOUT, UNREADABLE, write_request
from deploy.client.generator import Trace, drive
from deploy.client.settings import LoadSettings
from deploy.client.tensors import encode_request
from deploy.client.wire import parse_url


def run(url: str, **settings: Any) -> Trace:
    address = parse_url(url)
    request = write_request(address, "m", encode_request({"x": np.zeros((1, 4), np.float32)}))
    return drive(address, request, LoadSettings(**settings))


def wait_in_line(arrivals: Any, services: Any) -> Any:
    """Latencies of a server that takes one request at a time, in the order in which they come."""
    done, latencies = 0.0, []
    for arrival, service in zip(arrivals, services, strict=True):
        done = max(done, arrival) + service
        latencies.append(done - arrival)
    return np.array(latencies)


def stalled(rate: float, seconds: float, at: int, stall: float) -> tuple[Any, Any]:
    """Expected latencies where request number `at` stalls: without, and with 1 ms of work each."""
    arrivals = np.arange(rate * seconds) / rate
    extra = stall * (np.arange(1, len(arrivals) + 1) == at)
    least, most = (wait_in_line(arrivals, extra + work) for work in (0.0, 1e-3))
    return least, most


def measure_delays(trace: Trace, log: Path, stall: float) -> float:
    """Seconds that the machine took from the generator, at worst, and from the server in all."""
    return float(trace.lateness.max() + np.loadtxt(log).sum() - stall)


@pytest.mark.thorough
def test_a_stall_is_in_the_latencies_of_all_who_came_meanwhile(tmp_path: Path) -> None:
    with run_planted("--stall", 1.0, "--stall-at", 100, "--log", tmp_path / "log") as url:
        trace = run(url, rate=100.0, seconds=5.0, arrivals="fixed")
    least, _ = stalled(100.0, 5.0, 100, 1.0)
    assert np.percentile(least, 99) == pytest.approx(0.95, abs=0.01)  # a fifth of all waited
    assert trace.answered.all()
    more = 0.4 + measure_delays(trace, tmp_path / "log", 1.0)
    for level in (50, 85, 90, 95, 99, 100):
        measured = np.percentile(trace.latencies, level)
        assert np.percentile(least, level) <= measured < np.percentile(least, level) + more, level


def test_a_closed_loop_would_have_left_them_out() -> None:
    with run_planted("--stall", 1.0, "--stall-at", 50, "--delay", 0.002) as url:
        trace = run(url, concurrency=1, seconds=3.0)
    assert trace.latencies.max() > 1.0
    assert (trace.latencies > 0.5).sum() == 1  # one request of a caller who waits
    assert np.percentile(trace.latencies, 95) < 0.5


def test_with_few_connections_the_wait_for_one_is_in_the_latency(tmp_path: Path) -> None:
    with run_planted("--stall", 0.5, "--stall-at", 50, "--log", tmp_path / "log") as url:
        trace = run(url, rate=100.0, seconds=1.5, arrivals="fixed", connections=2)
    least, _ = stalled(100.0, 1.5, 50, 0.5)
    more = 0.2 + measure_delays(trace, tmp_path / "log", 0.5)
    for level in (50, 75, 90, 99):
        measured = np.percentile(trace.latencies, level)
        assert np.percentile(least, level) <= measured < np.percentile(least, level) + more, level


def test_every_request_is_made_at_its_time_or_later() -> None:
    with run_planted("--delay", 0.005) as url:
        trace = run(url, rate=100.0, seconds=1.0, seed=5)
    arrivals = draw_arrivals("poisson", 100.0, 1.0, seed=5)
    np.testing.assert_allclose(trace.intended, arrivals)
    assert (trace.lateness >= 0).all()
    least = wait_in_line(arrivals, np.full(len(arrivals), 5e-3))
    assert (trace.latencies >= least - 1e-4).all()  # nobody is served before his turn


@pytest.mark.slow
def test_latencies_at_a_rate_are_those_of_a_queue_with_the_servers_own_times(
    tmp_path: Path,
) -> None:
    with run_planted("--delay", 0.005, "--log", tmp_path / "log") as url:
        trace = run(url, rate=100.0, seconds=10.0, seed=5)
    services = np.loadtxt(tmp_path / "log")
    arrivals = draw_arrivals("poisson", 100.0, 10.0, seed=5)
    assert len(services) == len(arrivals)
    # beside its own time the server reads and writes, which the queue has to wait for as well
    low, high = wait_in_line(arrivals, services), wait_in_line(arrivals, services + 6e-4)
    for level in (25, 50, 75, 90, 99):
        least, most = np.percentile(low, level), np.percentile(high, level)
        assert least < np.percentile(trace.latencies, level) < most + 2e-3, level


@pytest.mark.slow
def test_a_stall_adds_nothing_to_those_who_came_before_or_long_after() -> None:
    with run_planted("--stall", 1.0, "--stall-at", 400) as url:
        trace = run(url, rate=200.0, seconds=5.0, arrivals="fixed")
    least, most = stalled(200.0, 5.0, 400, 1.0)
    for level in (50, 85, 90, 95, 99, 100):
        low, high = (np.percentile(expected, level) for expected in (least, most))
        assert low <= np.percentile(trace.latencies, level) < high + 0.02, level


@pytest.mark.slow
def test_a_constant_server_takes_its_time_and_no_more() -> None:
    with run_planted("--delay", 0.005) as url:
        spaced = run(url, rate=20.0, seconds=2.0, arrivals="fixed")
        closed = run(url, concurrency=1, seconds=1.0)
        several = run(url, concurrency=4, seconds=1.0)
    assert 0.005 <= np.percentile(spaced.latencies, 50) < 0.009
    assert 0.005 <= np.percentile(closed.latencies, 50) < 0.009
    assert 0.020 <= np.percentile(several.latencies, 50) < 0.036  # each waits for three others
    for trace in (closed, several):
        throughput = len(trace.latencies) / max(trace.ended)
        assert 120 < throughput <= 200


@pytest.mark.slow
def test_the_rate_is_held_and_the_generator_is_in_time() -> None:
    with run_planted() as url:
        trace = run(url, rate=500.0, seconds=5.0, seed=2)
    assert len(trace.latencies) == len(draw_arrivals("poisson", 500.0, 5.0, seed=2))
    assert np.percentile(trace.lateness, 90) < 0.002
    assert max(trace.ended) < 5.2


def test_the_number_of_callers_is_kept() -> None:
    with run_planted("--delay", 0.01) as url:
        trace = run(url, concurrency=3, seconds=0.5)
    times = sorted([(t, 1) for t in trace.intended] + [(t, -1) for t in trace.ended])
    under_way = np.cumsum([step for _, step in times])
    assert under_way.max() == 3
    assert under_way[-1] == 0


def test_failures_are_counted_by_kind_and_not_in_the_latencies() -> None:
    with run_planted("--fail-every", 4) as url:
        trace = run(url, rate=100.0, seconds=1.0, arrivals="fixed")
    assert trace.outcomes.count(503) == 25
    assert len(trace.latencies) == trace.outcomes.count(200) == 75


@pytest.mark.parametrize("how", ["said", "abruptly"])
def test_a_server_that_closes_after_each_answer_loses_nothing(how: str) -> None:
    with run_planted("--close", how) as url:
        opened = run(url, rate=200.0, seconds=0.5, arrivals="fixed", connections=2)
        closed = run(url, concurrency=2, seconds=1.0, connections=2)
    assert len(opened.outcomes) == 100
    for trace in (opened, closed):
        assert set(trace.outcomes) == {200}
        assert len(trace.outcomes) > 2  # more than there are connections


def test_what_is_never_answered_is_given_up() -> None:
    with run_planted("--silent") as url:
        trace = run(url, rate=20.0, seconds=0.5, arrivals="fixed", timeout=0.4)
        few = run(url, concurrency=1, seconds=0.2, connections=1, timeout=0.3)
    assert trace.outcomes == [TIMEOUT] * 10
    waited = np.array(trace.ended) - np.array(trace.intended)
    assert (waited > 0.39).all()
    assert few.outcomes == [TIMEOUT]


def test_an_answer_without_a_length_is_not_waited_for() -> None:
    with run_planted("--chunked") as url:
        trace = run(url, concurrency=1, seconds=0.1)
    assert set(trace.outcomes) == {UNREADABLE}


def test_an_answer_in_single_bytes_is_one_answer() -> None:
    with run_planted("--dribble") as url:
        trace = run(url, concurrency=2, seconds=0.3)
    assert set(trace.outcomes) == {200}


def test_a_server_that_is_not_there_refuses_every_request() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # and does not listen, so that nobody else does
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        trace = run(url, rate=50.0, seconds=0.2, arrivals="fixed")
    assert trace.outcomes == [REFUSED] * 10
    assert len(trace.latencies) == 0


def test_a_server_that_dies_fails_the_rest() -> None:
    with run_planted("--delay", 0.3) as url:
        address = parse_url(url)
    trace = run(f"http://127.0.0.1:{address.port}", rate=50.0, seconds=0.2, arrivals="fixed")
    assert set(trace.outcomes) <= {REFUSED, CLOSED}


def test_no_request_at_all_is_no_fault() -> None:
    with run_planted() as url:
        assert run(url, rate=1e-6, seconds=0.1).outcomes == []


def test_the_garbage_collector_rests_and_comes_back() -> None:
    seen = []
    with run_planted() as url:
        gc.callbacks.append(lambda phase, info: seen.append(phase))
        try:
            run(url, concurrency=1, seconds=0.3)
        finally:
            gc.callbacks.pop()
    assert gc.isenabled()
    assert len(seen) < 10
