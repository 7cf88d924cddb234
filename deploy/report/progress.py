"""Progress on the terminal: a bar with an ETA; plain lines where nobody watches."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column

from export.progress import Progress

_REST = Column(ratio=1, no_wrap=True, overflow="ellipsis")
"""What the counts and times leave of a line: they are never cut, the detail is."""


class ProgressDisplay:
    """A context manager that is called with every `Progress`; see `export.progress`.

    Args:
        console: where to write; a bar is drawn only if it is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description:<18}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False, table_column=_REST),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started = time.monotonic()
        self._said: set[str] = set()

    def __call__(self, progress: Progress) -> None:
        """Show one report."""
        if not self._console.is_terminal:
            self._print_line(progress)
            return
        if progress.stage not in self._tasks:
            self._finish_tasks()
            self._tasks[progress.stage] = self._bars.add_task(
                progress.stage, total=progress.total or None, detail=""
            )
        self._bars.update(
            self._tasks[progress.stage],
            completed=progress.done,
            total=progress.total or None,
            detail=progress.detail,
        )

    def _finish_tasks(self) -> None:
        """End what is shown, also stages that never said how long they are, or were done sooner.

        One that runs beside the next, such as the build of an engine, goes on with its next report.
        """
        for task in self._bars.tasks:
            if not task.finished:
                done = max(task.completed, 1)
                self._bars.update(task.id, total=done, completed=done)

    def _print_line(self, progress: Progress) -> None:
        """One line when a stage begins; the rest would fill a log."""
        if progress.stage in self._said:
            return
        self._said.add(progress.stage)
        seconds = time.monotonic() - self._started
        self._console.print(f"[{seconds:6.1f} s] {progress.stage}", markup=False, highlight=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:  # rich 14.1 ends bars that nobody sees with a blank line
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish_tasks()
        if self._console.is_terminal:
            self._bars.stop()
