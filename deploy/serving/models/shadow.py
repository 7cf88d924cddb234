"""A share of the requests runs again on the float32 model of the bundle, beside what was answered.

It happens in a thread of its own, after the answer, with a backlog that is bounded: where the
machine has no time for it, samples are dropped and counted, never requests.
"""

import logging
import math
import os
import queue
import random
import threading
from collections.abc import Mapping

import numpy as np

from deploy.engines.base import Array, Feeds
from deploy.serving.batching.running import Run
from export.errors import DeployError

_LOG = logging.getLogger("deploy.serving")
BACKLOG = 16
"""Requests that may wait for the reference."""

MAX_BYTES = 32 * 2**20
"""Of a request's tensors, above which it is not taken as a sample."""

_NICENESS = 10
_SQUARED = 1e140
"""Values from which on squares, and sums of them, are beyond float64; they are left out."""


class ShadowSampler:
    """Holds what was served against the reference.

    Args:
        reference: the opened float32 engine; used by the sampler's own thread only.
        share: of the requests, 0 to 1.

    Attributes:
        compared, dropped, failed: how many samples.
        largest: largest difference of any value over the output's largest value.
    """

    def __init__(self, reference: Run, share: float) -> None:
        self.share = share
        self.compared = self.dropped = self.failed = 0
        self.largest = 0.0
        self._reference = reference
        self._signal = self._noise = 0.0
        self._backlog: queue.Queue[tuple[Feeds, Mapping[str, Array]] | None]
        self._backlog = queue.Queue(BACKLOG)
        self._random = random.Random()
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)

    def start(self) -> None:
        """Begin to compare."""
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Let go of what still waits, and end; whether the reference came back in time for that."""
        while True:
            try:
                self._backlog.get_nowait()
            except queue.Empty:
                break
        self._backlog.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def offer(self, feeds: Feeds, outputs: Mapping[str, Array]) -> None:
        """Take a request as a sample, or not; never blocks."""
        if self._random.random() >= self.share:
            return
        size = sum(array.nbytes for array in (*feeds.values(), *outputs.values()))
        try:
            if size > MAX_BYTES:
                raise queue.Full
            self._backlog.put_nowait((feeds, outputs))
        except queue.Full:
            self.dropped += 1

    @property
    def sqnr_db(self) -> float | None:
        """Signal over error of all samples so far; None: nothing compared, or no error at all."""
        if not self.compared or not self._noise or not self._signal:
            return None
        return 10 * math.log10(self._signal / self._noise)

    def _work(self) -> None:
        if hasattr(os, "setpriority"):  # requests come first, where the system can be told so
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (sample := self._backlog.get()) is not None:
            feeds, outputs = sample
            try:
                self._compare(self._reference(feeds), outputs)
            except DeployError as error:
                _LOG.warning("the reference failed on a sample: %s", error)
                self.failed += 1
            except Exception:  # noqa: BLE001  a bug below must not end the thread of later samples
                _LOG.exception("a sample could not be compared")
                self.failed += 1

    def _compare(self, reference: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        for name, answered in outputs.items():
            exact = np.asarray(reference[name], np.float64)
            difference = np.asarray(answered, np.float64) - exact
            known = (np.abs(exact) < _SQUARED) & (np.abs(difference) < _SQUARED)  # NaN is not
            exact, difference = exact[known], difference[known]
            self._signal += float(np.square(exact).sum())
            self._noise += float(np.square(difference).sum())
            scale = float(np.abs(exact).max(initial=0.0)) or 1.0
            self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)) / scale)
        self.compared += 1
