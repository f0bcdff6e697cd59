"""Saga: what a run did that can be undone, and undoing it, the last first.

A deed belongs to the visit of its state; what cannot be told to have happened or not is in doubt.
"""

from __future__ import annotations

import reprlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from canobatch import _clock
from canobatch.definition import Single, label
from canobatch.effects import describe_error, loads
from canobatch.engine.attempt import Where, own_error
from canobatch.engine.report import StateReport
from canobatch.engine.visit import Visit
from canobatch.errors import CompensationError, JournalError, RunCancelledError, TaskError, WorkflowError
from canobatch.models import CompensatableTask
from canobatch.phases import Deed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from canobatch.engine.driver import Driver


class Done(NamedTuple):
    """What is to be undone: by whom, of which attempt, with what packed output; None: it is in doubt.

    The journal knows it by ``number``.
    """

    visit: Visit
    where: Where
    output: bytes | None
    number: int


class Saga:
    """One run's stack of deeds."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._stack: list[Done] = []

    def do(self, visit: Visit) -> Any:
        """Run a compensatable task; put it on the stack; return the next state."""
        return visit.retry(lambda: self._attempt(visit))

    def _attempt(self, visit: Visit) -> Any:
        where = visit.where()
        scribe = self._driver.scribe
        number: int | None = None
        visit.is_in_doubt = False
        try:
            # Who waits at the gate need not be waited for.
            with visit.admitted(), self._driver.patient(self._driver.definition.grace):
                number = scribe.intend(visit.state)
                deed = visit.call_at_once("run")
        except BaseException:
            if number is not None and visit.is_in_doubt:
                self._stack.append(Done(visit, where, None, number))
            elif number is not None:
                scribe.withdraw(number)
            raise
        assert number is not None
        if not isinstance(deed, Deed):
            self._stack.append(Done(visit, where, None, number))
            raise visit.refusal(f"{type(visit.model).__name__}.run must return (state, output); it is in doubt now")
        self._stack.append(Done(visit, where, deed.output, number))
        visit.outputs[number] = deed.output
        return deed.state

    def restore(self) -> None:
        """Put on the stack what earlier lives of the run did, or may have done.

        Raises:
            WorkflowError: A state of them can no longer be undone.
        """
        driver = self._driver
        for deed in driver.scribe.deeds():
            state = driver.scribe.state_named(deed.state)
            handler = driver.definition.handlers.get(state)
            if not isinstance(handler, Single) or not isinstance(handler.task, CompensatableTask):
                text = f"state {deed.state} was done and may have to be undone, but is no compensatable task any more"
                raise WorkflowError(text, state=state, path=driver.path)
            visit = Visit(driver, state, handler, StateReport(state, deed.visit, _clock.as_utc(_clock.epoch())))
            self._stack.append(Done(visit, Where(state, None, 1, tuple(driver.path)), deed.output, deed.number))

    @contextmanager
    def rolled_back(self) -> Iterator[None]:
        """Undo everything if this fails.

        Raises:
            CompensationError: Not all of it could be undone.
        """
        try:
            yield
        except JournalError:
            # What cannot be recorded had better not be done: the run is as it was, and can be resumed.
            raise
        except BaseException as error:
            is_kept = isinstance(error, RunCancelledError) and self._driver.token.is_kept is True
            if is_kept and self._driver.scribe.is_on:
                raise
            failed = self._roll_back(error)
            if failed is error:
                raise
            raise failed from error

    def _roll_back(self, error: BaseException) -> BaseException:
        """Undo everything; return ``error``, or the `CompensationError` of what could not be undone."""
        own = own_error(error) if isinstance(error, TaskError) else error
        errors = list(own.errors) if isinstance(own, CompensationError) else []
        grace = self._driver.definition.grace
        deadline = None if grace is None else _clock.monotonic() + grace
        if self._stack or self._driver.scribe.failure() is not None:
            self._begin_rollback(error)
        with self._driver.patient(None, is_firm=True):
            while self._stack:
                done = self._stack.pop()
                state = done.where.state
                self._driver.emit("compensation_started", state=state, attempt=done.where.attempt)
                failure = self._undo(done, deadline)
                self._driver.emit("compensation_finished", state=state, attempt=done.where.attempt, detail=failure)
                if failure is not None:
                    self._driver.scribe.fail_compensation(done.number, failure)
                    errors.append(failure)
        if not errors:
            return error
        listed = "".join(f"\n  {describe_error(each)}" for each in errors)
        text = f"{describe_error(error)}; and {len(errors)} of its effects could not be undone:{listed}"
        return CompensationError(text, errors=errors, original=error)

    def _begin_rollback(self, error: BaseException) -> None:
        for done in self._stack:
            # Done, but its state was not left: its output is not known yet.
            if done.visit.outputs:
                self._driver.commit(done.where.state, [], outputs=done.visit.outputs)
                done.visit.outputs = {}
        self._driver.scribe.begin_rollback(error)

    def _undo(self, done: Done, deadline: float | None) -> BaseException | None:
        """Compensate; return what it failed with."""
        visit, where = done.visit, done.where
        if done.output is None and not visit.model.compensates_in_doubt:
            text = (
                f"{where}: it is in doubt whether {type(visit.model).__name__} took effect; look, and undo it by hand, "
                "or let it declare compensates_in_doubt"
            )
            return TaskError(text, **where.facts)
        left = None if deadline is None else round(deadline - _clock.monotonic(), 3)
        if left is not None and left <= 0:
            grace = self._driver.definition.grace or 0.0
            text = f"{where}: was not compensated: the roll-back's {grace:g} s were over; its output: {_shown(done)}"
            return TaskError(text, **where.facts)
        visit.attempt = 1
        try:
            visit.unstage()
            visit.call_at_once("compensate", done.output, timeout=left)
            visit.commit(undone=done.number)
        except JournalError:
            raise
        except Exception as error:  # noqa: BLE001 - the others are to be undone all the same
            error.add_note(f"while compensating state {label(where.state)}; its output: {_shown(done)}")
            return error
        return None


def _shown(done: Done) -> str:
    if done.output is None:
        return "unknown"
    try:
        return reprlib.repr(loads(done.output))
    except Exception as error:  # noqa: BLE001 - a user's class
        return f"cannot be unpacked: {describe_error(error)}"
