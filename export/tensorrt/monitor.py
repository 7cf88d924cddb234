"""TensorRT's own progress, nested phases of so many steps each, as one share of the whole."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from export.progress import Progress, ProgressCallback

TOTAL = 100
"""Units in which the share is reported: percent."""


@dataclass
class _Phase:
    name: str
    steps: int
    done: int = 0


@dataclass
class PhaseStack:
    """The phases that are open, outermost first; each step of one is filled by those inside it.

    The share never falls: TensorRT begins phases whose number it does not tell beforehand.
    """

    _phases: list[_Phase] = field(default_factory=list)
    _share: float = 0.0

    def start(self, name: str, steps: int) -> None:
        """A phase of `steps` steps begins."""
        self._phases.append(_Phase(name, max(steps, 1)))

    def complete(self, name: str, step: int) -> None:
        """Step `step`, counted from 0, of the phase `name` is done."""
        phase = self._find(name)
        if phase is not None:
            phase.done = min(step + 1, phase.steps)

    def finish(self, name: str) -> None:
        """The phase `name` ends, with all that it holds, whether its steps were told or not."""
        phase = self._find(name)
        if phase is not None:
            del self._phases[self._phases.index(phase) :]

    @property
    def innermost(self) -> str:
        """Name of what is being done."""
        return self._phases[-1].name if self._phases else ""

    def share(self) -> float:
        """How much of the outermost phase is done, 0 to 1."""
        inside = 0.0
        for phase in reversed(self._phases):
            inside = min(1.0, (phase.done + inside) / phase.steps)
        self._share = max(self._share, inside)
        return self._share

    def _find(self, name: str) -> _Phase | None:
        return next((phase for phase in reversed(self._phases) if phase.name == name), None)


class BuildMonitor:
    """Reports a build to a callback, and cancels it when the callback raises.

    An exception cannot pass through TensorRT. So what the callback raises, Ctrl-C among it, ends
    the build at the next step, and `raise_what_was_raised` raises it again behind it.

    Args:
        trt: the module of the product.
        stage: as the reports call it.
        progress: the callback.

    Attributes:
        native: what the builder takes as its ``progress_monitor``.
    """

    def __init__(self, trt: Any, stage: str, progress: ProgressCallback) -> None:
        self._phases = PhaseStack()
        self._stage = stage
        self._progress = progress
        self._raised: BaseException | None = None
        self._heard: list[int] = []
        self.native = _make_native(trt, self)

    def start(self, name: str, steps: int) -> None:
        """See `PhaseStack.start`."""
        self._phases.start(name, steps)
        self._report()

    def complete(self, name: str, step: int) -> bool:
        """See `PhaseStack.complete`; False asks TensorRT to stop."""
        self._phases.complete(name, step)
        self._report()
        return self._raised is None and not self._heard

    def finish(self, name: str) -> None:
        """See `PhaseStack.finish`."""
        self._phases.finish(name)

    @contextlib.contextmanager
    def hold_signals(self) -> Iterator[None]:
        """Ctrl-C cancels the build that is the block, and is heard behind it.

        A handler in Python may raise at the first line of any function, and so where TensorRT has
        called one: it takes that for a failure of its own, or goes on as if nothing had been.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        held = {number: handler for number, handler in handlers.items() if callable(handler)}

        def hear(number: int, frame: FrameType | None) -> None:
            self._heard.append(number)

        for number in held:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in held.items():
                signal.signal(number, handler)
            for heard in dict.fromkeys(self._heard):
                signal.raise_signal(heard)

    def raise_what_was_raised(self) -> None:
        """Raise what the callback raised during the build, if it did."""
        if self._raised is not None:
            raise self._raised

    def _report(self) -> None:
        if self._raised is not None:
            return
        done = int(TOTAL * self._phases.share())
        try:
            self._progress(Progress(self._stage, done, TOTAL, self._phases.innermost))
        except BaseException as error:  # noqa: BLE001  raised again by raise_what_was_raised
            self._raised = error


def _make_native(trt: Any, monitor: BuildMonitor) -> Any:
    class Native(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            monitor.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return monitor.complete(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            monitor.finish(phase_name)

    return Native()
