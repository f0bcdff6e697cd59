"""How far runs are: counts kept from events, and an observer that shows them."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from canobatch import _clock
from canobatch.definition import label
from canobatch.errors import ConfigurationError
from canobatch.join import BranchStatus
from canobatch.observe.log import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import Console, RenderableType
    from rich.live import Live

    from canobatch.observe.events import Event

#: Seconds between lines about one run where there is no terminal.
_QUIET = 5.0
_FRAMES = 8
#: Visits of states that a run's progress keeps.
_KEPT = 8


@dataclass(slots=True)
class SplitProgress:
    """How far a split is.

    Attributes:
        state: Its state's label.
        total: How many branches there are, None where that is not known.
        started: When it began, in seconds since the epoch.
        ended: When it ended, or None.
        kept: Branches that were accepted before the run was resumed.
        running: Branches that workers have now, or that wait for another attempt.
        done: Branches that succeeded.
        failed: Branches that failed for good.
        killed: Branches that were cut.
        retried: Attempts that were followed by another.
    """

    state: str
    total: int | None
    started: float
    ended: float | None = None
    kept: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    killed: int = 0
    retried: int = 0

    @property
    def ended_branches(self) -> int:
        """How many branches ended for good, in this life of the run or an earlier one."""
        return self.kept + self.done + self.failed

    def rate(self, now: float) -> float | None:
        """Return how many branches a second came to their end so far; None before the first."""
        elapsed = (now if self.ended is None else self.ended) - self.started
        count = self.done + self.failed
        return count / elapsed if count and elapsed > 0 else None

    def remaining(self, now: float) -> float | None:
        """Return the seconds that are left at that rate, None where that is not known."""
        rate = self.rate(now)
        if rate is None or self.total is None or self.ended is not None:
            return None
        return max(0, self.total - self.ended_branches - self.killed) / rate

    def parts(self, now: float) -> list[str]:
        """Return it in words, the most important first."""
        parts = [f"{self.ended_branches:,}{'' if self.total is None else f'/{self.total:,}'}"]
        counts = {"kept": self.kept, "failed": self.failed, "killed": self.killed}
        parts += [f"{count:,} {word}" for word, count in counts.items() if count]
        rate, left = self.rate(now), self.remaining(now)
        if rate is not None:
            parts.append(f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min")
        if left:
            parts.append(f"{clock_text(math.ceil(left))} left")
        if self.retried:
            parts.append(f"{self.retried:,} retr{'y' if self.retried == 1 else 'ies'}")
        return parts


@dataclass(slots=True)
class VisitProgress:
    """One visit of a state.

    Attributes:
        state: Its label.
        started: When it began, in seconds since the epoch.
        ended: When it ended, or None.
        split: How far its split is, if it has one.
        task: What its single task said last of how far it is: done, total, message.
        retried: Attempts of its single task that were followed by another.
    """

    state: str
    started: float
    ended: float | None = None
    split: SplitProgress | None = None
    task: tuple[float, float | None, str | None] | None = None
    retried: int = 0

    @property
    def extent(self) -> tuple[float, float | None]:
        """How much is done, of how much; None: that is not known, or of no interest any more."""
        if self.split is not None:
            return self.split.ended_branches + self.split.killed, self.split.total
        return (0.0, None) if self.task is None or self.ended is not None else self.task[:2]

    def parts(self, now: float) -> list[str]:
        """Return it in words, the most important first."""
        if self.split is not None:
            return self.split.parts(now)
        parts = []
        if self.task is not None and self.ended is None:
            done, total, message = self.task
            parts.append(f"{done:g}{'' if total is None else f'/{total:g}'}{'' if message is None else f' {message}'}")
        if self.retried:
            parts.append(f"{self.retried:,} retr{'y' if self.retried == 1 else 'ies'}")
        return parts


@dataclass(slots=True)
class RunProgress:
    """How far a run is; `take` gives it an event, and as an observer of one run it takes them itself.

    Attributes:
        run_id: The run, "" until it is known.
        workflow: Its workflow's name, "" until it is known.
        started: When it began, in seconds since the epoch.
        visits: The last visits of states; the very last is under way until the run has ended.
        count: How many visits there were.
        end: Its last event, once it has ended.
    """

    run_id: str = ""
    workflow: str = ""
    started: float = 0.0
    visits: list[VisitProgress] = field(default_factory=list)
    count: int = 0
    end: Event | None = None

    @property
    def state(self) -> str:
        """The label of the state it is in, "" before the first."""
        return self.visits[-1].state if self.visits else ""

    @property
    def split(self) -> SplitProgress | None:
        """The split that is under way, if one is."""
        split = self.visits[-1].split if self.visits else None
        return None if split is None or split.ended is not None else split

    def on_event(self, event: Event) -> None:
        """Take one event."""
        self.take(event)

    def take(self, event: Event) -> None:
        """Take one event of this run into account."""
        now = event.time.timestamp()
        kind = event.kind
        visit = self.visits[-1] if self.visits else None
        if kind in {"run_started", "run_resumed"}:
            self.run_id, self.workflow, self.started = event.run_id, event.detail or self.workflow, now
        elif kind == "state_entered":
            self._enter(label(event.state), now)
        elif kind in {"run_finished", "run_failed", "run_cancelled"}:
            self.end = event
            if visit is not None:
                visit.ended = now
        elif visit is None:
            return
        elif kind == "split_started":
            visit.split = SplitProgress(label(event.state), event.detail, now)
        elif kind == "progress" and event.branch is None:
            visit.task = event.detail
        elif visit.split is not None:
            _count(visit.split, event, now)
        elif kind == "retry":
            visit.retried += 1

    def _enter(self, state: str, now: float) -> None:
        if self.visits:
            self.visits[-1].ended = now
        self.visits.append(VisitProgress(state, now))
        self.count += 1
        del self.visits[:-_KEPT]

    def text(self, now: float) -> str:
        """Return it as one line."""
        if self.end is not None:
            took = self.end.time.timestamp() - self.started
            return f"{self.workflow} {self.run_id}: {describe(self.end, took)}"
        parts = self.visits[-1].parts(now) if self.visits and self.visits[-1].ended is None else []
        return join_parts([f"{self.workflow} {self.run_id}: {self.state} {clock_text(now - self.started)}", *parts])


def _count(split: SplitProgress, event: Event, now: float) -> None:
    if event.kind == "branch_started":
        split.running += 1
    elif event.kind == "branch_kept":
        split.kept += 1
    elif event.kind == "branch_finished":
        split.running -= 1
        if event.detail.status is BranchStatus.SUCCEEDED:
            split.done += 1
        else:
            split.failed += 1
    elif event.kind == "branch_killed":
        split.running -= 1
        split.killed += 1
    elif event.kind == "retry":
        split.retried += 1
    elif event.kind == "split_finished":
        split.ended = now


def join_parts(parts: Iterable[str]) -> str:
    """Return parts of a line as one."""
    return " · ".join(parts)


def bar_of(visit: VisitProgress, width: int, *, pulses: bool = False) -> RenderableType:
    """Return a bar for how far a visit is, "" where that is not known; ``pulses``: then one that moves."""
    from rich.progress_bar import ProgressBar  # noqa: PLC0415

    done, total = visit.extent
    if total or pulses:
        return ProgressBar(total=total, completed=done, width=width, pulse=not total)
    return ""


def clock_text(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    whole = max(0, int(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class ProgressObserver:
    """Shows how far runs are: live on a terminal, else as a line now and then.

    Needs rich (``pip install canobatch[progress]``). One observer may watch many runs at once.

    Args:
        console: A `rich.console.Console`; None: one on standard error.
        footer: Gives one more line for the live display, such as how busy the workers are.

    Raises:
        ConfigurationError: rich is not installed.

    Example:
        >>> workflow.with_observer(ProgressObserver())                    # doctest: +SKIP
    """

    def __init__(self, console: Console | None = None, *, footer: Callable[[], str] | None = None) -> None:
        try:
            from rich.console import Console  # noqa: PLC0415 - slow, and not everyone has it
        except ImportError:
            raise ConfigurationError(
                "ProgressObserver needs rich; install it with: pip install canobatch[progress]"
            ) from None
        self._console = Console(stderr=True) if console is None else console
        self._footer = footer
        self._lock = threading.RLock()
        self._live: Live | None = None
        #: Runs that have not ended, with when a line was printed about each.
        self._runs: dict[str, RunProgress] = {}
        self._told: dict[str, float] = {}

    @property
    def runs(self) -> list[RunProgress]:
        """The runs that have not ended."""
        with self._lock:
            return list(self._runs.values())

    def on_event(self, event: Event) -> None:
        """Take one event."""
        if event.kind.startswith("flow_"):
            return
        with self._lock:
            run = self._runs.setdefault(event.run_id, RunProgress(event.run_id, started=event.time.timestamp()))
            run.take(event)
            if self._console.is_terminal:
                self._draw(run)
            else:
                self._print(run, event)
            if run.end is not None:
                del self._runs[event.run_id]
                self._told.pop(event.run_id, None)
                if not self._runs:
                    self.close()

    def close(self) -> None:
        """End the live display; it begins again with the next event."""
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                live.stop()

    def _draw(self, run: RunProgress) -> None:
        if self._live is None:
            from rich.live import Live  # noqa: PLC0415

            self._live = Live(
                console=self._console, get_renderable=self._picture, refresh_per_second=_FRAMES, transient=True
            )
            self._live.start()
        if run.end is not None:
            self._live.console.print(run.text(_clock.epoch()), markup=False, highlight=False)

    def _print(self, run: RunProgress, event: Event) -> None:
        now = event.time.timestamp()
        is_news = event.kind in {"state_entered", "split_finished"} or run.end is not None
        if not is_news and now - self._told.setdefault(run.run_id, now) < _QUIET:
            return
        self._told[run.run_id] = now
        if event.kind == "split_finished":
            text = join_parts([f"{run.workflow} {run.run_id}: {run.state}", *run.visits[-1].parts(now)])
        else:
            text = run.text(now)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _picture(self) -> RenderableType:
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        now = _clock.epoch()
        lines: list[Any] = []
        # Without our lock: rich calls this with its own, which it also wants for what is printed meanwhile.
        for run in list(self._runs.values()):
            title = Text(no_wrap=True, overflow="ellipsis")
            title.append(run.state, style="bold").append(f"  {clock_text(now - run.started)}  ")
            lines.append(title.append(f"{run.workflow} {run.run_id}", style="dim"))
            if run.visits and run.visits[-1].parts(now):
                lines.append(self._visit_line(run.visits[-1], now))
        if self._footer is not None:
            lines.append(Text(self._footer(), style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)

    def _visit_line(self, visit: VisitProgress, now: float) -> RenderableType:
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        words = join_parts(visit.parts(now))
        width = max(8, min(32, self._console.width - len(words) - 4))
        line = Table.grid(padding=(0, 1))
        line.add_column(width=1)
        line.add_column(width=width)
        line.add_column(no_wrap=True, overflow="ellipsis")
        is_bad = visit.split is not None and visit.split.failed
        line.add_row("", bar_of(visit, width, pulses=True), Text(words, style="red" if is_bad else ""))
        return line
