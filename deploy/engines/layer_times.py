"""What TensorRT's profiler reports: the time of every layer, call by call."""

from statistics import median
from typing import Any


class LayerTimes:
    """Times of layers by the engine's own names. `begin` comes before every call.

    A layer that is reported several times in one call, as in a loop, has taken all of it.
    """

    def __init__(self) -> None:
        self._calls: list[dict[str, float]] = []

    def begin(self) -> None:
        """A call begins."""
        self._calls.append({})

    def report(self, name: str, seconds: float) -> None:
        """A layer has run in the present call; what nobody has begun is kept from no call."""
        if self._calls:
            call = self._calls[-1]
            call[name] = call.get(name, 0.0) + seconds

    def medians(self, *, warmup: int) -> dict[str, float]:
        """Seconds of each layer in one call, in the order of their first report.

        Args:
            warmup: calls at the beginning that do not count.
        """
        seen: dict[str, list[float]] = {}
        for call in self._calls[warmup:]:
            for name, seconds in call.items():
                seen.setdefault(name, []).append(seconds)
        return {name: median(times) for name, times in seen.items()}


def make_profiler(trt: Any, times: LayerTimes) -> Any:
    """An object of TensorRT's that tells `times`.

    Args:
        trt: the module of the product.
    """

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.report(layer_name, float(ms) / 1e3)

    return Profiler()
