"""Scheduler: which flows there are, and when they are due; `start` brings it to life."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, Unpack

from canobatch._importing import refuse_while_importing
from canobatch.errors import ConfigurationError, SchedulerError
from canobatch.pool import default_pool
from canobatch.scheduler.clock import Clock, SystemClock
from canobatch.scheduler.home import SqliteLedger
from canobatch.scheduler.ledger import MemoryLedger
from canobatch.scheduler.running import RunningScheduler
from canobatch.scheduler.schedules import Cron, Interval, Manual, Schedule
from canobatch.scheduler.spec import FlowOptions, FlowSpec

if TYPE_CHECKING:
    from datetime import timedelta, tzinfo

    from canobatch.observe import Observer
    from canobatch.pool import Backend
    from canobatch.workflow import Workflow


class Scheduler:
    """Collects flows: workflows that run by interval, by cron, or by hand.

    Two runs of one flow never overlap unless it says ``overlap="allow"``. Every registering method takes the
    options of `FlowOptions` and returns the scheduler. Single tasks run in workers unless they say otherwise, so
    that a run can be stopped.

    Args:
        home: A directory in which schedulers of this and other processes share their flows: each tick runs once,
            runs of a flow do not overlap, and what happened is kept. None: all that within this scheduler only.
        pool: Where all flows run; None: this process's default pool.
        clock: What gives the time; for tests.

    Example:
        >>> from canobatch import Workflow
        >>> from canobatch.scheduler import Scheduler
        >>> workflow = Workflow("report").register("start", lambda: "done").add_exit_state("done")
        >>> with Scheduler().cron("report", workflow, "start", "0 9 * * *", "Europe/London").start() as running:
        ...     running.trigger("report").wait()
        'done'
    """

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        *,
        pool: Backend | None = None,
        clock: Clock | None = None,
    ) -> None:
        if home is not None and not isinstance(home, str | os.PathLike):
            raise ConfigurationError(f"home must be a directory or None, got {home!r}")
        self._home = home
        self._pool = pool
        self._clock = clock or SystemClock()
        self._specs: dict[str, FlowSpec] = {}
        self._observers: list[Observer] = []
        self._running: RunningScheduler | None = None

    def every(
        self,
        id: str,
        workflow: Workflow,
        initial: Any,
        interval: float | timedelta,
        *,
        mode: Literal["fixed_rate", "fixed_delay"] = "fixed_rate",
        start: Literal["now", "after_interval"] = "now",
        **options: Unpack[FlowOptions],
    ) -> Scheduler:
        """Run a workflow every ``interval`` seconds.

        Args:
            id: The flow's id.
            workflow: What runs.
            initial: The state each run begins in.
            interval: Seconds.
            mode: "fixed_rate": from start to start; "fixed_delay": from the end of a run to the next start.
            start: Whether the first run begins at once or one interval later.
            **options: See `FlowOptions`.

        Raises:
            ConfigurationError: The id is taken, or an argument is impossible.
        """
        return self._add(id, workflow, initial, Interval(interval, mode, start), options)

    def every_seconds(
        self,
        id: str,
        workflow: Workflow,
        initial: Any,
        seconds: float,
        *,
        mode: Literal["fixed_rate", "fixed_delay"] = "fixed_rate",
        start: Literal["now", "after_interval"] = "now",
        **options: Unpack[FlowOptions],
    ) -> Scheduler:
        """Run a workflow every so many seconds; as `every`."""
        return self._add(id, workflow, initial, Interval(seconds, mode, start), options)

    def every_minutes(
        self,
        id: str,
        workflow: Workflow,
        initial: Any,
        minutes: float,
        *,
        mode: Literal["fixed_rate", "fixed_delay"] = "fixed_rate",
        start: Literal["now", "after_interval"] = "now",
        **options: Unpack[FlowOptions],
    ) -> Scheduler:
        """Run a workflow every so many minutes; as `every`."""
        return self._add(id, workflow, initial, Interval(_times(minutes, 60), mode, start), options)

    def every_hours(
        self,
        id: str,
        workflow: Workflow,
        initial: Any,
        hours: float,
        *,
        mode: Literal["fixed_rate", "fixed_delay"] = "fixed_rate",
        start: Literal["now", "after_interval"] = "now",
        **options: Unpack[FlowOptions],
    ) -> Scheduler:
        """Run a workflow every so many hours; as `every`."""
        return self._add(id, workflow, initial, Interval(_times(hours, 3600), mode, start), options)

    def cron(
        self,
        id: str,
        workflow: Workflow,
        initial: Any,
        expr: str,
        tz: str | tzinfo = "UTC",
        **options: Unpack[FlowOptions],
    ) -> Scheduler:
        """Run a workflow by a cron expression on the wall clock of a zone; see `Cron`.

        Raises:
            ConfigurationError: The id is taken, the expression is wrong or never fires, or the zone is unknown.
        """
        return self._add(id, workflow, initial, Cron(expr, tz), options)

    def manual(self, id: str, workflow: Workflow, initial: Any, **options: Unpack[FlowOptions]) -> Scheduler:
        """Run a workflow when it is triggered.

        Raises:
            ConfigurationError: The id is taken, or an argument is impossible.
        """
        return self._add(id, workflow, initial, Manual(), options)

    def with_home(self, home: str | os.PathLike[str]) -> Scheduler:
        """Share the flows with other schedulers in ``home``, unless a home was given already."""
        self._home = home if self._home is None else self._home
        return self

    @property
    def home(self) -> str | os.PathLike[str] | None:
        """Where its flows are shared, or None."""
        return self._home

    def with_observer(self, observer: Observer) -> Scheduler:
        """Tell ``observer`` of every flow that fires, is skipped or has ended, as its workflow's observers are."""
        self._observers.append(observer)
        return self

    def start(self) -> RunningScheduler:
        """Check every flow, then set up the resources of their workflows, and begin to run them.

        The resources stay set up until the scheduler has stopped and the last run has ended.

        Raises:
            ConfigurationError: A workflow, an initial state or parameters of a flow cannot work; nothing runs.
            SchedulerError: It runs already, or its home knows a flow with another schedule.
            JournalError: Its home cannot be used.
            ResourceError: A resource could not be set up; those before it are torn down again.
        """
        refuse_while_importing("a scheduler")
        if self._running is not None and not self._running.is_stopped:
            raise SchedulerError("this scheduler runs already; stop it first, or build another one")
        for spec in self._specs.values():
            try:
                spec.workflow.validate().validate_initial_state(spec.initial).validate_params(spec.params)
            except ConfigurationError as error:
                raise ConfigurationError(f"flow {spec.id!r}: {error}", error.problems) from error
        pool = self._pool
        ledger = MemoryLedger() if self._home is None else SqliteLedger(self._home)
        held = ExitStack()
        try:
            for spec in self._specs.values():
                held.enter_context(spec.workflow.resources.held())
            self._running = RunningScheduler(
                self._specs.values(),
                ledger=ledger,
                clock=self._clock,
                pool=default_pool if pool is None else lambda: pool,
                observers=self._observers,
                held=held,
            )
        except BaseException:
            held.close()
            ledger.close()
            raise
        return self._running

    def _add(self, id: str, workflow: Workflow, initial: Any, schedule: Schedule, options: FlowOptions) -> Scheduler:
        spec = FlowSpec(id, workflow, initial, schedule, **options)  # type: ignore[arg-type]  # takes timedeltas too
        if id in self._specs:
            raise ConfigurationError(f"flow {id!r} is registered already; give this one another id")
        self._specs[id] = spec
        return self

    @property
    def specs(self) -> tuple[FlowSpec, ...]:
        """The flows, as they were registered."""
        return tuple(self._specs.values())

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, id: object) -> bool:
        return id in self._specs

    def __repr__(self) -> str:
        return f"<Scheduler, {len(self._specs)} flows>"


def _times(number: float, seconds: int) -> float:
    # What is no number is told by Interval, in the words of its caller.
    return number * seconds if isinstance(number, int | float) and not isinstance(number, bool) else number
