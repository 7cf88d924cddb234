"""When requests are to be made, in seconds from the start: decided before the first one is."""

import numpy as np

from deploy.client.settings import Arrivals
from deploy.measuring.bootstrap import Floats


def draw_arrivals(arrivals: Arrivals, rate: float, seconds: float, *, seed: int) -> Floats:
    """Times in [0, `seconds`), ascending: a Poisson process of `rate` a second, or evenly spaced.

    A Poisson process is what many callers that know nothing of each other add up to. The times
    between two requests are exponential and independent, so bursts come as they do in production.
    """
    if arrivals == "fixed":
        spaced = np.arange(np.ceil(rate * seconds)) / rate
        return spaced[spaced < seconds]  # the product may be rounded up beyond a whole number
    rng = np.random.default_rng(seed)
    expected = rate * seconds
    times = np.zeros(1)
    while times[-1] < seconds:
        more = rng.exponential(1 / rate, size=int(expected / 10) + 100)
        times = np.concatenate([times, times[-1] + np.cumsum(more)])
    return times[(times > 0) & (times < seconds)]
