"""Launching: one run in the foreground, with its progress, the signals that end it, and its exit code."""

from __future__ import annotations

import errno
import os
import queue
import signal
import threading
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import click

from canobatch import _signals
from canobatch.cancel import CancelToken
from canobatch.cli import exits, summary, text
from canobatch.cli.command import Failure, colour, say
from canobatch.cli.home import Bell
from canobatch.cli.records import show_records
from canobatch.cli.streams import leave_terminal
from canobatch.cli.view import make_view
from canobatch.errors import CanobatchError, CompensationError, RunCancelledError
from canobatch.observe import RunProgress
from canobatch.pool import WorkerPool
from canobatch.workflow import new_run_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from canobatch.cli.home import Home, LaunchRecord
    from canobatch.cli.view import View
    from canobatch.engine import Run
    from canobatch.observe import Observer
    from canobatch.workflow import Workflow

#: The signals that end a run, and what they are called.
_REASONS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal hung up"}
#: Signals that are taken before the next one ends the process as it would end any other.
_TAKEN = 2


@dataclass(slots=True)
class Ended:
    """How a launched run came out; ``number`` is the signal that ended it, if one did."""

    run: Run
    error: BaseException | None
    number: int | None

    @property
    def code(self) -> int:
        """The exit code."""
        if self.error is None:
            return exits.DONE
        if self.number is not None and isinstance(self.error, RunCancelledError):
            return exits.code_of_signal(self.number)
        return exits.code_of(self.error)

    @property
    def is_resumable(self) -> bool:
        """Whether its journal lets somebody go on with it."""
        if isinstance(self.error, RunCancelledError):
            return self.number is not None
        return self.error is not None


def follow(
    start: Callable[[Sequence[Observer]], Run],
    token: CancelToken,
    pool: WorkerPool,
    title: str,
    *,
    settings: Settings,
    begin: Callable[[Run], None] = lambda _: None,
    tick: Callable[[Callable[[str], None]], None] = lambda _: None,
    is_shown: bool = True,
) -> Ended:
    """Start a run and follow it to its end.

    The first signal cancels it, the second kills it and this process with it.

    Args:
        start: Begins the run with these observers.
        token: What cancels it.
        pool: Where it runs.
        title: What stands above its live progress.
        settings: Where it is remembered, so that others can find and cancel it.
        begin: Called with the run when it has begun.
        tick: Called now and then while it runs, and at its end, with how to write a line.
        is_shown: Whether its progress is shown.
    """
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    progress = RunProgress()
    show_records()
    with _told_signals(told), ExitStack() as stack:
        run = start([progress] if is_shown else [])
        run.watch(lambda: told.put(0))
        bell = _settle_in(run, pool, settings, stack)
        begin(run)
        view = make_view(progress, pool, f"{title}  {run.id}") if is_shown else None
        note = say if view is None else view.note
        try:

            def often() -> None:
                tick(note)
                if bell is not None and bell.has_rung():
                    note("cancelled from another process")
                    token.cancel("cancelled from another process")

            number = _until_ended(told, token, view, often)
            tick(note)
        except _SecondSignal as second:
            _die(second.number, view, pool, run.id)
        finally:
            with _unseen():
                if view is not None:
                    view.close()
    try:
        run.wait()
    except Exception as error:  # noqa: BLE001 - told to the user
        return Ended(run, error, number)
    return Ended(run, None, number)


def _settle_in(run: Run, pool: WorkerPool, settings: Settings, stack: ExitStack) -> Bell | None:
    """Leave word of the run in the home."""
    home = settings.home
    if home is None:
        return None
    try:
        if settings.record is not None:
            home.remember(run.id, replace(settings.record, token=pool.token))
        bell = Bell(home.bell(run.id))
    except OSError as error:
        say(f"the run cannot be cancelled from elsewhere: {error}")
        return None
    stack.callback(bell.close)
    return bell


@contextmanager
def _unseen() -> Iterator[None]:
    """Let a run go on whose terminal is gone."""
    try:
        yield
    except OSError:
        leave_terminal()


class _SecondSignal(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _told_signals(told: queue.SimpleQueue[int]) -> AbstractContextManager[None]:
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return _signals.signals_told(_REASONS, told.put, times=_TAKEN)


def _until_ended(
    told: queue.SimpleQueue[int], token: CancelToken, view: View | None, tick: Callable[[], None]
) -> int | None:
    """Wait for the end of the run; return the signal that was to end it, if there was one."""
    first: int | None = None
    while True:
        try:
            number = told.get(timeout=0.5 if view is None else view.interval)
        except queue.Empty:
            with _unseen():
                tick()
                if view is not None:
                    view.update()
            continue
        if number == 0:
            return first
        if number == signal.SIGHUP:
            # The kernel and the shell both tell of a terminal that is gone; nothing can be written there any more.
            leave_terminal()
            if first is not None:
                continue
        elif first is not None:
            raise _SecondSignal(number)
        first = number
        reason = _REASONS[signal.Signals(number)]
        _tell(view, f"{reason}: cancelling, and rolling back what can be; once more to kill")
        # What was recorded stays recorded: it can be gone on with.
        token.cancel(reason, keep=True)


def _tell(view: View | None, line: str) -> None:
    if view is None:
        say(line)
    else:
        view.note(line)


def _die(number: int, view: View | None, pool: WorkerPool, run_id: str) -> None:
    """Kill everything and end; a task in this process that does not end must not keep us."""
    if view is not None:
        view.close()
    say(f"run {run_id} killed")
    pool.close()
    os._exit(exits.code_of_signal(number))


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is launched.

    Attributes:
        home: Where it is remembered; None: nowhere.
        record: What it takes to go on with it.
        jobs: Worker processes; None: one per core.
        timeout: Seconds it may take.
        as_json: Whether its report is JSON.
    """

    home: Home | None = None
    record: LaunchRecord | None = None
    jobs: int | None = None
    timeout: float | None = None
    as_json: bool = False

    def prepare(self, workflow: Workflow) -> None:
        """Let the home remember the workflow's runs, unless a journal of its own does."""
        if self.home is not None and workflow.journal is None:
            workflow.with_journal(self.home.journal)

    def start(self, start: Callable[..., Run], run_id: str, **more: Any) -> Run:
        """Start a run as every run that is launched; what its tasks print is kept where it is remembered."""
        output = None
        if self.home is not None:
            output = self.home.output(run_id)
            try:
                output.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                what = f"the home {self.home.directory} cannot be used: {error.strerror}; give another with --home"
                raise Failure(what) from error
        try:
            return start(run_id=run_id, where="worker", timeout=self.timeout, output=output, **more)
        except BaseException:
            if output is not None:
                # There is nothing in it if the run has not begun.
                with suppress(OSError):
                    output.rmdir()
            raise


def launch(
    workflow: Workflow, state: Any, params: Any, data: IO[str], settings: Settings, run_id: str | None = None
) -> None:
    """Run a workflow from a state and report it to ``data``; without an id the run gets a new one.

    Raises:
        Failure: It did not reach an exit state.
    """
    settings.prepare(workflow)
    run_id = run_id or new_run_id()

    def start(token: CancelToken, pool: WorkerPool, observers: Sequence[Observer]) -> Run:
        begin = partial(workflow.start, state, params=params)
        return settings.start(begin, run_id, pool=pool, cancel=token, observers=observers)

    run_to_end(workflow.name, start, data, settings)


def relaunch(workflow: Workflow, run_id: str, data: IO[str], settings: Settings) -> None:
    """Go on with a run and report it to ``data``; as `launch`."""
    settings.prepare(workflow)

    def start(token: CancelToken, pool: WorkerPool, observers: Sequence[Observer]) -> Run:
        return settings.start(workflow.start_resume, run_id, pool=pool, cancel=token, observers=observers)

    run_to_end(workflow.name, start, data, settings)


def run_to_end(
    title: str,
    start: Callable[[CancelToken, WorkerPool, Sequence[Observer]], Run],
    data: IO[str],
    settings: Settings,
) -> None:
    """Start a run, follow it, report it, and raise `Failure` if it did not reach an exit state."""
    token = CancelToken()
    with WorkerPool(settings.jobs) as pool:
        ended = follow(
            lambda observers: start(token, pool, observers),
            token,
            pool,
            title,
            begin=lambda run: _announce(run.id, data, as_json=settings.as_json),
            settings=settings,
        )
        try:
            report_end(ended, data, as_json=settings.as_json)
        except OSError as error:
            # A terminal that is gone does not change how the run came out.
            if error.errno != errno.EIO:
                raise
            leave_terminal()
    if settings.home is not None and settings.home.has_output(ended.run.id):
        say(f"what its tasks printed: canobatch logs {ended.run.id}")
    if ended.is_resumable and settings.home is not None:
        say(f"go on with: canobatch resume {ended.run.id}")
    fail_if(ended)


def _announce(run_id: str, data: IO[str], *, as_json: bool) -> None:
    if as_json:
        say(f"run {run_id}")
        return
    # A run does not depend on who reads this; at its end it is told if nobody can.
    with suppress(OSError):
        click.echo(f"run {run_id}", file=data)


def fail_if(ended: Ended) -> None:
    """Raise `Failure` with what the run failed with, if it did."""
    error = ended.error
    if error is not None:
        own = str(error) if isinstance(error, CanobatchError) else f"{type(error).__name__}: {error}"
        # Failed branches, and what could not be undone, have been listed before.
        raise Failure(text.one_line(own.partition("\n")[0].removesuffix(":"), 1000), ended.code) from error


def report_end(ended: Ended, data: IO[str], *, as_json: bool) -> None:
    """Print what a run came to: the data to ``data``, the rest to standard error."""
    report = ended.run.report()
    if as_json:
        click.echo(summary.as_json(report, ended.code), file=data)
    else:
        click.echo(summary.as_text(report, ended.code), file=data, color=colour(1))
    for line in summary.failures(report):
        say(f"  {click.style('failed', fg='red')} {line}")
    if isinstance(ended.error, CompensationError):
        for each in ended.error.errors:
            say(f"  {click.style('not undone', fg='red')} {text.one_line(str(each), 300)}")
