"""Views: how a run's progress is shown; a live screen on a terminal, else a line now and then."""

from __future__ import annotations

import os
import sys
from typing import IO, TYPE_CHECKING, Any, Protocol

from canobatch import _clock, _procs
from canobatch.cli import text
from canobatch.cli.command import say
from canobatch.observe.progress import bar_of, join_parts

if TYPE_CHECKING:
    from canobatch.observe import RunProgress, VisitProgress
    from canobatch.pool import WorkerPool

#: Seconds between two lines where there is no live screen.
_SECONDS_PER_LINE = 5.0
#: Columns of a bar.
_BAR = 24


class View(Protocol):
    """Shows a run until it is closed. All of it is called by one thread."""

    #: Seconds after which it wants to be updated.
    interval: float

    def update(self) -> None:
        """Show how things stand."""

    def note(self, line: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def make_view(progress: RunProgress, pool: WorkerPool, title: str) -> View:
    """Return the view for standard error."""
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return LiveView(progress, pool, title, sys.stderr)
    return LineView(progress, pool)


class LineView:
    """A line every few seconds, and one at once for the first state."""

    interval = 0.5

    def __init__(self, progress: RunProgress, pool: WorkerPool) -> None:
        self._progress = progress
        self._pool = pool
        self._due = 0.0

    def update(self) -> None:
        """Write a line if it is time."""
        now = _clock.epoch()
        if _clock.monotonic() >= self._due and self._progress.visits:
            self._due = _clock.monotonic() + _SECONDS_PER_LINE
            visit = self._progress.visits[-1]
            line = join_parts([visit.state, *describe(visit, now), *workers_text(self._pool)])
            self.note(f"{text.duration(max(0.0, now - self._progress.started)):>6}  {text.one_line(line, 200)}")

    def note(self, line: str) -> None:
        """Write a line."""
        say(line)

    def close(self) -> None:
        """Do nothing: every line stands as it is."""


class LiveView:
    """States with their marks, a bar for a split, and what the workers take; redrawn in place."""

    interval = 0.1

    def __init__(self, progress: RunProgress, pool: WorkerPool, title: str, stream: IO[str]) -> None:
        from rich.console import Console  # noqa: PLC0415 - only where there is a terminal
        from rich.live import Live  # noqa: PLC0415
        from rich.spinner import Spinner  # noqa: PLC0415

        self._progress = progress
        self._pool = pool
        self._title = title
        self._spinner: Any = Spinner("dots")
        self._workers: list[str] = []
        self._workers_due = 0.0
        console = Console(file=stream, highlight=False)
        # No thread of its own: it is drawn when we say so.
        self._live = Live(self._picture(), console=console, auto_refresh=False, transient=True)
        self._live.start()

    def update(self) -> None:
        """Draw it again."""
        self._live.update(self._picture(), refresh=True)

    def note(self, line: str) -> None:
        """Write a line above it."""
        self._live.console.print(line, markup=False)

    def close(self) -> None:
        """Take it away; what comes after it says it all."""
        self._live.stop()

    def _picture(self) -> Any:
        from rich.console import Group  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        now = _clock.epoch()
        progress = self._progress
        grid = Table.grid(padding=(0, 2))
        hidden = progress.count - len(progress.visits)
        if hidden:
            grid.add_row("", f"… {text.plural(hidden, 'state')} before")
        for visit in progress.visits:
            grid.add_row(self._mark(visit, now), *self._cells(visit, now))
        if _clock.monotonic() >= self._workers_due:
            # Memory is read from /proc of every worker and what it started.
            self._workers, self._workers_due = workers_text(self._pool), _clock.monotonic() + 1.0
        elapsed = text.duration(max(0.0, now - progress.started)) if progress.started else ""
        head = Text(f"{self._title}  {elapsed}", style="bold", no_wrap=True, overflow="ellipsis")
        return Group(head, grid, Text("  " + join_parts(self._workers), style="dim"))

    def _mark(self, visit: VisitProgress, now: float) -> Any:
        from rich.text import Text  # noqa: PLC0415

        return Text("✓", style="green") if visit.ended is not None else self._spinner.render(now)

    def _cells(self, visit: VisitProgress, now: float) -> tuple[Any, ...]:
        from rich.text import Text  # noqa: PLC0415

        words = Text(join_parts(describe(visit, now)), no_wrap=True, overflow="ellipsis")
        return Text(text.one_line(visit.state, 30)), bar_of(visit, _BAR), words


def describe(visit: VisitProgress, now: float) -> list[str]:
    """Return what is to be said of a visit, in parts; at its end with how long it took."""
    took = [] if visit.ended is None else [text.duration(visit.ended - visit.started)]
    return [text.one_line(part) for part in visit.parts(now)] + took


def workers_text(pool: WorkerPool) -> list[str]:
    """Return how busy a pool is, and what memory its workers take."""
    workers = pool.workers
    if not workers:
        return []
    memory = sum(_procs.anonymous_memory(worker.pid) for worker in workers)
    return [f"{sum(worker.busy for worker in workers)}/{len(workers)} workers busy", text.size(memory)]
