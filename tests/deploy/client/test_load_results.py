"""Figures are numpy's on what was recorded; what cannot be told is left out."""

import copy
import json
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from deploy.client.connection import CLOSED, TIMEOUT
from deploy.client.generator import Trace
from deploy.client.results import LoadReport, Target, load_schema, summarize, summarize_latency
from deploy.client.settings import LoadSettings, make_settings, refuse_without_url
from deploy.measuring.machine import describe_machine
from export.errors import ConfigError

TARGET = Target("http://127.0.0.1:8000", "tiny", "deploy", "1", 120)


def make_report(
    samples: int = 2000, *, failed: int = 0, late: float = 0.0, **settings: Any
) -> LoadReport:
    rng = np.random.default_rng(3)
    intended = np.linspace(0, 9.99, samples)
    ended = intended + rng.gamma(2.0, 0.003, samples)
    outcomes = [200] * (samples - failed) + [503] * failed
    trace = Trace(intended.tolist(), (intended + late).tolist(), ended.tolist(), outcomes)
    given = {"rate": 200.0, **settings}
    return summarize(trace, TARGET, LoadSettings(**given), describe_machine())


def test_percentiles_are_numpys_on_the_recorded_values() -> None:
    latencies = np.random.default_rng(0).exponential(0.01, 5000)
    found = summarize_latency(latencies, seed=1)
    assert found.samples == 5000
    assert (found.p50, found.p90, found.p99) == tuple(np.percentile(latencies, (50, 90, 99)))
    assert (found.mean, found.largest) == (latencies.mean(), latencies.max())
    for value, interval in ((found.p50, found.p50_ci95), (found.p99, found.p99_ci95)):
        assert interval is not None
        assert interval[0] < value < interval[1]


def test_what_never_changes_has_an_interval_of_no_width() -> None:
    """In every stretch of 100 the same times, so that one drawn again is like another."""
    found = summarize_latency(np.tile(np.arange(1, 101) / 1e3, 20), seed=0)
    for value, interval in (
        (found.p50, found.p50_ci95),
        (found.p90, found.p90_ci95),
        (found.p99, found.p99_ci95),
    ):
        assert interval == pytest.approx((value, value), rel=1e-12)


@pytest.mark.thorough
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(40):
        latencies = np.random.default_rng(seed).exponential(1.0, 1000)
        low, high = summarize_latency(latencies, seed=0).p50_ci95 or (0, 0)
        hits += low < np.log(2) < high
    assert hits >= 33


@pytest.mark.parametrize(("samples", "p99", "interval"), [(1000, 1, 1), (999, 0, 1), (199, 0, 0)])
def test_p99_needs_1000_answers_and_an_interval_200(samples: int, p99: int, interval: int) -> None:
    found = summarize_latency(np.linspace(0.001, 0.002, samples), seed=0)
    assert (found.p99 is not None, found.p99_ci95 is not None) == (bool(p99), bool(p99))
    assert (found.p50_ci95 is not None) == bool(interval)


def test_a_slow_stretch_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    slow = np.concatenate([rng.exponential(0.01, 9000), rng.exponential(0.1, 1000)])
    shuffled = rng.permutation(slow)
    widths = []
    for latencies in (slow, shuffled):
        low, high = summarize_latency(latencies, seed=0).p90_ci95 or (0, 0)
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]  # neighbours share it: it is one event, not a thousand


def test_failures_are_counted_under_their_names() -> None:
    times = [0.0] * 6
    trace = Trace(times, times, [0.1] * 6, [200, 503, 503, TIMEOUT, CLOSED, 200])
    report = summarize(trace, TARGET, LoadSettings(), describe_machine())
    assert report.errors == {"connection closed": 1, "timeout": 1, "503": 2}
    assert (report.made, report.answered) == (6, 2)
    assert report.throughput == pytest.approx(20)
    assert "4 of 6 requests failed; they are not in the latencies." in report.warnings


def test_nothing_answered_is_no_latency() -> None:
    trace = Trace([0.0], [0.0], [1.0], [TIMEOUT])
    report = summarize(trace, TARGET, LoadSettings(), describe_machine())
    assert (report.latency, report.throughput) == (None, 0.0)
    empty = summarize(Trace(), TARGET, LoadSettings(rate=1e-6), describe_machine())
    assert (empty.made, empty.latency, empty.seconds) == (0, None, 0.0)
    for each in (report, empty):
        jsonschema.validate(each.as_dict(), load_schema())


def test_what_makes_the_figures_doubtful_is_said() -> None:
    assert make_report().warnings == ()
    (late,) = make_report(late=0.0035).warnings
    assert "The generator was late by up to 3.5 ms in 99% of requests" in late
    (behind,) = make_report(seconds=5.0).warnings
    assert "did not keep up with 200 requests a second" in behind
    assert "5.0 s after" in behind


@pytest.mark.parametrize("samples", [10, 2000])
def test_the_json_is_that_of_the_schema(samples: int) -> None:
    report = make_report(samples, failed=3).as_dict()
    jsonschema.Draft202012Validator.check_schema(load_schema())
    jsonschema.validate(json.loads(json.dumps(report, allow_nan=False)), load_schema())
    assert report["latency"]["p50_ms"] == pytest.approx(5, rel=0.5)
    closed = replace(make_report(samples), settings=LoadSettings(concurrency=3)).as_dict()
    jsonschema.validate(closed, load_schema())
    keys = ("loop", "rate_per_s", "arrivals", "concurrency")
    assert [report["measurement"][key] for key in keys] == ["open", 200.0, "poisson", None]
    assert [closed["measurement"][key] for key in keys] == ["closed", None, None, 3]


def test_the_json_is_in_milliseconds_and_per_second_of_what_was_recorded() -> None:
    report = make_report(late=0.0004, batch=4)
    found, latency = report.as_dict(), report.latency
    ended = np.linspace(0, 9.99, 2000) + np.random.default_rng(3).gamma(2.0, 0.003, 2000)
    waits = 1e3 * (ended - np.linspace(0, 9.99, 2000))
    p50, p90, p99 = np.percentile(waits, (50, 90, 99))
    expected = {"mean": waits.mean(), "p50": p50, "p90": p90, "p99": p99, "max": waits.max()}
    assert latency is not None
    for name, value in expected.items():
        assert found["latency"][f"{name}_ms"] == pytest.approx(value)
    for name, pair in zip(
        ("p50", "p90", "p99"), (latency.p50_ci95, latency.p90_ci95, latency.p99_ci95), strict=True
    ):
        assert found["latency"][f"{name}_ci95"] == pytest.approx([1e3 * end for end in pair or ()])
        assert found["latency"][f"{name}_ci95"][0] <= expected[name]
    assert found["measurement"]["generator_late_p99_ms"] == pytest.approx(0.4)
    assert found["measurement"]["seconds"] == pytest.approx(ended.max())
    assert found["throughput"]["requests_per_s"] == pytest.approx(2000 / ended.max())
    assert found["throughput"]["samples_per_s"] == pytest.approx(8000 / ended.max())


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(extra=1),
        lambda r: r.pop("latency"),
        lambda r: r.update(schema_version=2),
        lambda r: r["latency"].update(p95_ms=1.0),
        lambda r: r["measurement"].update(loop="half-open"),
        lambda r: r["requests"]["errors"].update({"503": 0}),
        lambda r: r["server"].pop("url"),
    ],
)
def test_the_schema_can_fail(change: Any) -> None:
    report = copy.deepcopy(make_report().as_dict())
    change(report)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, load_schema())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate": 1.0, "concurrency": 1}, "--rate and --concurrency exclude each other"),
        ({"rate": 0.0}, "--rate 0.0: must be more than 0"),
        ({"rate": float("nan")}, "--rate nan"),
        ({"concurrency": 0}, "--concurrency 0: must be 1 to 500"),
        ({"connections": 501}, "--connections 501"),
        ({"seconds": -1.0}, "--seconds -1.0"),
        ({"timeout": 0.0}, "--timeout 0.0"),
        ({"arrivals": "bursts"}, "--arrivals bursts: must be poisson or fixed"),
        ({"concurrency": 200}, "--connections 128: 200 callers need as many"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LoadSettings(**settings)


def test_flags_that_are_not_given_have_their_defaults() -> None:
    flags = {"rate": 5.0, "concurrency": None, "arrivals": None, "seconds": None}
    assert make_settings(flags, batch=2, seed=3) == LoadSettings(rate=5.0, batch=2, seed=3)
    refuse_without_url({"rate": None})
    with pytest.raises(
        ConfigError, match=r"--rate is for a running server\. Pass its address: --url"
    ):
        refuse_without_url({"rate": 1.0})
