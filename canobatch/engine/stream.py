"""One visit of a stream: from its source through its items to flushed windows and committed cursors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from canobatch import _clock
from canobatch.definition import label
from canobatch.effects import describe_error
from canobatch.engine.attempt import own_error, wrap
from canobatch.engine.items import Items, ItemsHere, ItemsInWorkers
from canobatch.engine.source import Source
from canobatch.errors import (
    PayloadError,
    RunCancelledError,
    StoreTypeError,
    TaskError,
    WorkflowError,
    WorkflowTimeoutError,
)
from canobatch.models import CloseReason, DeadLetter
from canobatch.models.base import perform

if TYPE_CHECKING:
    from canobatch.engine.items import ItemOutcome
    from canobatch.engine.visit import Visit
    from canobatch.models import StreamTask
    from canobatch.view import StoreView


class StreamExecution:
    """A stream from its last committed cursor on; each attempt opens the source again."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit

    def run(self) -> Any:
        """Run it to its end and return the next state."""
        visit = self._visit
        while True:
            visit.begin_attempt()
            session = Session(visit)
            try:
                return session.run()
            except TaskError as error:
                visit.unstage()
                if session.is_drained:
                    raise
                # Whatever it is about, it has failed this attempt.
                error.attempt = visit.attempt
                visit.driver.back_off(visit.config, error)


class Session:
    """One attempt at a stream, from ``open`` to ``on_close``.

    Attributes:
        is_drained: Whether the run is over, and the stream was brought to an end for that.
    """

    def __init__(self, visit: Visit) -> None:
        self.is_drained = False
        self._visit = visit
        self._driver = visit.driver
        self._model: StreamTask = visit.model
        self._outputs: list[Any] = []
        #: The cursor after the last output.
        self._last: Any = None
        #: Items that failed in a row.
        self._errors = 0
        self._started = _clock.monotonic()
        self._boundary: float | None = None
        self._is_flushing = False
        self._view: StoreView | None = None

    def run(self) -> Any:
        """Pull, process, flush; return the next state."""
        name = f"canobatch-source-{self._driver.run_id}-{label(self._visit.state)}"
        source = Source(name, self._open, self._driver.mailbox.wake)
        try:
            with self._crew() as crew:
                try:
                    return self._pump(source, crew)
                except (RunCancelledError, WorkflowTimeoutError) as error:
                    self._salvage(crew)
                    over = error
            # What was under way in workers is dead.
            if source.is_open and not self._is_flushing:
                self.is_drained = True
                timed_out = isinstance(over, WorkflowTimeoutError)
                self._drain(CloseReason.TIMED_OUT if timed_out else CloseReason.CANCELLED)
            raise over
        finally:
            source.close()

    def _open(self) -> Iterable[Any]:
        driver, visit = self._driver, self._visit
        self._view = visit.view()
        ctx = driver.context(visit.state, self._view, visit.attempt)
        items = perform(self._model, "open", ctx, (visit.cursor(),))
        if not isinstance(items, Iterable):
            raise visit.refusal(f"open returned {items!r}, which cannot be iterated over; return the items")
        return items

    def _crew(self) -> Items:
        visit, concurrency = self._visit, self._model.concurrency
        if visit.is_here and concurrency == 1:
            return ItemsHere(visit)
        return ItemsInWorkers(visit, concurrency, ahead=concurrency)

    # -- the loop

    def _pump(self, source: Source, crew: Items) -> Any:
        while True:
            for outcome in crew.ready():
                stop = self._take(outcome, crew)
                if stop is not None:
                    return stop
            if self._boundary is not None and _clock.monotonic() >= self._boundary:
                stop = self._flush(crew)
                if stop is not None:
                    return stop
            if source.is_exhausted and crew.is_idle:
                return self._end(source, crew)
            items = source.take()
            for item in items:
                crew.submit(item)
            crew.send()
            source.ask(crew.room())
            self._check_source()
            until = min((at for at in (crew.next_due, self._boundary) if at is not None), default=None)
            crew.take(self._driver.mailbox.read(crew.lane, _clock.monotonic() if items else until))

    def _take(self, outcome: ItemOutcome, crew: Items) -> Any:
        """Put an output into the window; return the state to stop at, if that closed it and stopped."""
        if outcome.error is not None:
            self._bear(outcome, outcome.error)
            return None
        if not isinstance(outcome.value, tuple) or len(outcome.value) != 2:
            raise self._visit.refusal(f"process_item returned {outcome.value!r}; return (output, cursor)")
        output, self._last = outcome.value
        self._errors = 0
        self._outputs.append(output)
        self._visit.stage(f"item {outcome.index}", outcome.operations)
        if self._boundary is None:
            self._boundary = self._model.window.boundary(self._started, _clock.monotonic())
        return self._flush(crew) if self._model.window.is_full(len(self._outputs)) else None

    def _bear(self, outcome: ItemOutcome, error: TaskError) -> None:
        """Skip an item that failed for good, or raise what it failed with."""
        self._errors += 1
        if not self._model.on_item_error.bears(self._errors):
            raise error
        visit = self._visit
        self._driver.emit("item_failed", state=visit.state, branch=outcome.index, attempt=error.attempt, detail=error)
        view = visit.view()
        try:
            view.append(self._model.dead_letters, DeadLetter(outcome.item, describe_error(own_error(error))))
        except (StoreTypeError, PayloadError) as failure:
            raise visit.refusal(f"the skipped item {outcome.index} cannot be kept: {failure}") from failure
        visit.stage("its dead letters", view.operations)

    def _flush(self, crew: Items) -> Any:
        """Hand the window on and commit it; return the state to stop at, or None."""
        self._is_flushing = True
        with self._visit.admitted(), self._driver.patient(self._driver.definition.grace):
            stop = self._visit.call_at_once("flush_window", self._outputs)
        self._is_flushing = False
        if stop is not None:
            self._driver.checked(self._visit.state, stop)
        self._commit()
        crew.refresh()
        return stop

    def _commit(self) -> None:
        visit = self._visit
        visit.keep(self._last)
        self._outputs = []
        self._boundary = None
        # What fails from here on is a first failure.
        visit.attempt = 1

    def _check_source(self) -> None:
        if self._view is not None and self._view.operations:
            raise self._visit.refusal("open must not write to the store; write in process_item or flush_window")

    # -- the end

    def _end(self, source: Source, crew: Items) -> Any:
        """The source has no more: flush what is left, and close."""
        self._check_source()
        if source.error is not None:
            # What gave up because the run was cancelled has not failed.
            self._driver.check()
            if isinstance(source.error, WorkflowError):
                raise source.error
            raise wrap(source.error, self._visit.where())
        stop = self._flush(crew) if self._outputs else None
        return self._visit.call("on_close", CloseReason.EXHAUSTED) if stop is None else stop

    def _salvage(self, crew: Items) -> None:
        """Take what was processed and not yet looked at, up to the first failure."""
        for outcome in crew.ready():
            if outcome.error is not None or not isinstance(outcome.value, tuple) or len(outcome.value) != 2:
                return
            output, self._last = outcome.value
            self._outputs.append(output)
            self._visit.stage(f"item {outcome.index}", outcome.operations)

    def _drain(self, reason: CloseReason) -> None:
        """The run is over: flush what there is, and close; raise the first failure."""
        visit, grace = self._visit, self._driver.definition.grace
        until = None if grace is None else _clock.monotonic() + grace
        failure: TaskError | None = None
        with self._driver.patient(None):
            try:
                if self._outputs:
                    visit.call_at_once("flush_window", self._outputs, timeout=_left(until))
                    self._commit()
            except TaskError as error:
                visit.unstage()
                failure = error
            try:
                visit.call_at_once("on_close", reason, timeout=_left(until))
                visit.commit()
            except TaskError as error:
                failure = failure or error
        if failure is not None:
            raise failure


def _left(until: float | None) -> float | None:
    """Return the seconds left, a little at least: what is called gets its chance."""
    return None if until is None else max(0.05, until - _clock.monotonic())
