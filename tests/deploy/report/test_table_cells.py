"""Tables of the commands other than build: small times keep their digits."""

import io
from dataclasses import replace

import numpy as np
from rich.console import Console

from deploy.commands.bench import Bench
from deploy.measuring.latency import EngineLatency, LatencyReport
from deploy.measuring.luck import Luck
from deploy.report.tables import print_latency

FAST = EngineLatency(
    samples=1000,
    first=1e-3,
    p50=4.56e-6,
    p50_ci95=(4.51e-6, 4.61e-6),
    p90=5.5e-6,
    p90_ci95=(5e-6, 6e-6),
    p99=None,
    p99_ci95=None,
    speedup=3.0,
    speedup_ci95=(2.9, 3.1),
    block_medians=np.ones((2, 2, 2)),
    luck=Luck(0.0, 2, 2),
)


def test_microseconds_keep_three_digits_and_the_baseline_has_no_interval_over_itself() -> None:
    slow = replace(FAST, p50=0.0123, p50_ci95=(0.012, 0.0125), speedup=1.0, speedup_ci95=(1.0, 1.0))
    engines = {"onnxruntime-fp32": slow, "openvino-int8": FAST}
    report = LatencyReport(engines, {}, 1.0, (0.99, 1.01), 2, 10, 2, 1.0)
    stream = io.StringIO()
    print_latency(Bench("onnxruntime-fp32", report, {}), Console(file=stream, width=80))
    text = stream.getvalue()
    for shown in ("0.00456", "0.00451-0.00461", "0.00550", "3.00x", "2.90-3.10", "12.3", "1.00x"):
        assert shown in text
    assert "1.00-1.00" not in text
    assert "noisy" not in text


def test_a_noisy_control_says_of_times_what_it_says_in_the_report_of_a_build() -> None:
    slow = replace(FAST, speedup=1.0, speedup_ci95=(1.0, 1.0))
    stream = io.StringIO()
    report = LatencyReport({"a": slow}, {}, 1.096, (0.777, 1.343), 2, 12, 2, 1.0)
    print_latency(Bench("a", report, {}), Console(file=stream, width=80))
    said = " ".join(stream.getvalue().split())
    assert "A/A control: baseline against itself 1.096x (95% 0.777 to 1.343); 12 rounds" in said
    assert "The machine was too noisy to trust these times; measure again later." in said
