"""FlowHome: the flows of a home, seen and commanded from a process that runs no scheduler."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from canobatch import _clock
from canobatch.errors import SchedulerError, UnknownFlowError
from canobatch.scheduler.flows import FlowInfo, FlowState
from canobatch.scheduler.home import SqliteLedger
from canobatch.scheduler.schedules import parse_schedule

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from datetime import timedelta
    from types import TracebackType
    from typing import Self

    from canobatch.scheduler.ledger import FlowRecord
    from canobatch.scheduler.schedules import Schedule

#: Seconds between two looks for an answer.
_LOOK = 0.02


class FlowHome:
    """What schedulers share in a home. Close it, or use it as a context manager.

    Args:
        home: The directory that was given to `Scheduler`.

    Raises:
        JournalError: It cannot be used.
    """

    def __init__(self, home: str | os.PathLike[str]) -> None:
        self._home = home
        self._ledger = SqliteLedger(home)

    def list(self) -> Sequence[FlowInfo]:
        """Describe all flows, by id; ``next_run`` is known to schedulers only."""
        return [self._info(flow) for flow in self._ledger.flows()]

    def status(self, id: str) -> FlowInfo:
        """Describe a flow.

        Raises:
            UnknownFlowError: The home has no such flow.
        """
        return self._info(self._known(id))

    def schedule(self, id: str) -> Schedule:
        """Return when a flow is due, anchored where it was first started.

        Raises:
            UnknownFlowError: The home has no such flow.
            ConfigurationError: Its zone is known to its own scheduler only.
        """
        text = self._ledger.flows()[self._known(id)]
        anchor = self._ledger.enrol(id, text, _clock.as_utc(_clock.epoch()))
        return parse_schedule(text).anchored(anchor)

    def schedules(self) -> dict[str, str]:
        """Return what all flows say of their schedules, by id."""
        return self._ledger.flows()

    def history(self, id: str, limit: int = 100) -> Sequence[FlowRecord]:
        """Return what happened to a flow, the newest ``limit`` records, oldest first.

        Raises:
            UnknownFlowError: The home has no such flow.
        """
        return self._ledger.history(self._known(id), limit)

    def pause_flow(self, id: str) -> None:
        """Let no run of a flow begin, in any scheduler, until it is unpaused; also after they are started anew.

        Raises:
            UnknownFlowError: The home has no such flow.
        """
        self._change(id, FlowState.paused)

    def unpause_flow(self, id: str) -> None:
        """Let a paused flow run again.

        Raises:
            UnknownFlowError: The home has no such flow.
        """
        self._change(id, FlowState.unpaused)

    def reset_flow(self, id: str) -> None:
        """Forget a flow's failures.

        Raises:
            UnknownFlowError: The home has no such flow.
        """
        self._change(id, FlowState.reset)

    def forget(self, id: str) -> None:
        """Drop all that is known of a flow, so that its id can have another schedule.

        Raises:
            UnknownFlowError: The home has no such flow.
            SchedulerError: It is running.
        """
        if self._ledger.is_claimed(self._known(id)):
            raise SchedulerError(f"flow {id!r} is running; cancel it first, then forget it", flow=id)
        self._ledger.forget(id)

    def trigger(self, id: str, params: Any = None, *, timeout: float | timedelta = 5.0) -> str:
        """Have a scheduler of the home run a flow, and return the run's id.

        Args:
            id: The flow.
            params: The run's parameters; they are pickled. None: those of the flow.
            timeout: Seconds, or a `timedelta`, to wait for a scheduler that takes the command.

        Raises:
            UnknownFlowError: The home has no such flow.
            SchedulerError: The flow cannot run now (the text says why), or no scheduler took the command; it is
                withdrawn then.
        """
        return self._ask(id, "trigger", params, timeout)

    def cancel_flow(self, id: str, *, timeout: float | timedelta = 5.0) -> None:
        """Have what runs of a flow cancelled; does nothing if nothing does.

        Raises:
            UnknownFlowError: The home has no such flow.
            SchedulerError: The process that runs it did not take the command.
        """
        if self._ledger.is_claimed(self._known(id)):
            self._ask(id, "cancel", None, timeout)

    def cancel_run(self, run_id: str, *, timeout: float | timedelta = 5.0) -> str | None:
        """Have one run cancelled, or dropped if it waits for its turn; other runs go on, of the same flow too.

        Returns:
            The flow that it is a run of, once its scheduler has heard of it; None: no scheduler runs it.

        Raises:
            SchedulerError: The process that runs it did not take the command.
        """
        flow = self._ledger.flow_of(run_id)
        if flow is not None:
            self._ask(flow, "cancel", None, timeout, run_id=run_id)
        return flow

    def close(self) -> None:
        """Let go of the home."""
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _known(self, id: str) -> str:
        flows = self._ledger.flows()
        if id not in flows:
            known = ", ".join(flows) or "none"
            raise UnknownFlowError(f"there is no flow {id!r} in {self._home}; flows: {known}", flow=str(id))
        return id

    def _info(self, id: str) -> FlowInfo:
        state = replace(self._ledger.state(id), running=int(self._ledger.is_claimed(id)))
        return FlowInfo(
            id,
            state.status,
            state.run_count,
            state.last_run,
            state.last_state,
            state.last_duration,
            state.last_error,
            state.failure_streak,
        )

    def _change(self, id: str, change: Callable[[FlowState], FlowState]) -> None:
        with self._ledger.transaction():
            self._ledger.put_state(self._known(id), change(self._ledger.state(id)))
        self._ledger.wake_others()

    def _ask(self, id: str, what: Any, params: Any, timeout: float | timedelta, *, run_id: str | None = None) -> str:
        number = self._ledger.ask(self._known(id), what, params, run_id=run_id)
        seconds = _clock.as_seconds(timeout)
        until = _clock.monotonic() + seconds
        while (answer := self._ledger.answer_to(number)) is None:
            if _clock.monotonic() > until:
                self._ledger.withdraw(number)
                raise SchedulerError(
                    f"no scheduler of {self._home} has taken the command to {what} flow {id!r} within {seconds:g} s; "
                    f"is one running that has this flow?",
                    flow=id,
                )
            _clock.sleep(_LOOK)
        answered, error = answer
        if error:
            raise SchedulerError(error, flow=id)
        return answered
