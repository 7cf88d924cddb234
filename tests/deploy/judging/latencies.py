"""Times of engines that nobody ran."""

import numpy as np

from deploy.measuring.latency import EngineLatency
from deploy.measuring.luck import Luck

NO_LUCK = Luck(0.0, 5, 2)


def latency(
    seconds: float, *, spread: float = 0.005, seed: int = 0, luck: Luck = NO_LUCK
) -> EngineLatency:
    """Times of an engine against a baseline of 10 ms."""
    noise = np.random.default_rng(seed).uniform(1 - spread, 1 + spread, (2, 6, 2))
    speedup, pair = 0.01 / seconds, (seconds, seconds)
    interval = (speedup * (1 - spread), speedup * (1 + spread))
    return EngineLatency(
        samples=1000,
        first=seconds,
        p50=seconds,
        p50_ci95=pair,
        p90=seconds,
        p90_ci95=pair,
        p99=None,
        p99_ci95=None,
        speedup=speedup,
        speedup_ci95=interval,
        block_medians=seconds * noise,
        luck=luck,
    )
