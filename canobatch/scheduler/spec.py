"""FlowSpec: a flow as it was registered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict, get_args

from canobatch.errors import ConfigurationError
from canobatch.scheduler.flows import BackoffPolicy, CatchUpPolicy, OnInterrupted, OverlapPolicy
from canobatch.scheduler.pings import is_ping_url
from canobatch.scheduler.schedules import Interval
from canobatch.workflow import Workflow

if TYPE_CHECKING:
    from canobatch.scheduler.schedules import Schedule


class FlowOptions(TypedDict, total=False):
    """What can be said of every flow.

    Attributes:
        overlap: What happens when the flow is due, or triggered, while it runs. "skip" (default): it does not
            run, a trigger is a `FlowOverlapError`; "queue_one": one waits for the end of the run; "queue_all":
            any number wait; "cancel_old": the run is cancelled, the new one begins when it has ended;
            "kill_old": the same, without waiting for a compensatable task; "allow": both run.
        catchup: What happens to ticks that were missed because nobody was there. "skip" (default): they are
            skipped; "last": the newest runs; "all": all run, one after the other.
        catchup_window: Seconds after which a missed tick is too old to be caught up; default a day.
        jitter: Seconds by up to which each start is put off at random; default 0.
        backoff: Rest after failures; None (default): the next tick runs as ever.
        pause_on_failure: Whether a failed run pauses the flow; default False.
        ping_url: Where each run's start, success and failure is told to; ``/start`` and ``/fail`` are added.
        params: The parameters of its runs.
        timeout: Seconds a run may take before it is cancelled, which counts as a failure.
        on_interrupted: What happens to a run whose process ended before it did, seen by the next scheduler of the
            home. "leave" (default): it is recorded; "restart": a new run begins, with the flow's own parameters;
            "resume": the run goes on from its journal.
    """

    overlap: OverlapPolicy
    catchup: CatchUpPolicy
    catchup_window: float | timedelta
    jitter: float | timedelta
    backoff: BackoffPolicy | None
    pause_on_failure: bool
    ping_url: str | None
    params: Any
    timeout: float | timedelta | None
    on_interrupted: OnInterrupted


@dataclass(frozen=True, slots=True)
class FlowSpec:
    """A flow: a workflow, where it begins, and when. Durations are in seconds once it is made.

    Raises:
        ConfigurationError: It lists all that is wrong.
    """

    id: str
    workflow: Workflow
    initial: Any
    schedule: Schedule
    overlap: OverlapPolicy = "skip"
    catchup: CatchUpPolicy = "skip"
    catchup_window: float = 86400.0
    jitter: float = 0.0
    backoff: BackoffPolicy | None = None
    pause_on_failure: bool = False
    ping_url: str | None = None
    params: Any = None
    timeout: float | None = None
    on_interrupted: OnInterrupted = "leave"

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.id, str) or not self.id:
            problems.append(f"its id must be a non-empty string, got {self.id!r}")
        if not isinstance(self.workflow, Workflow):
            problems.append(f"workflow must be a Workflow, got {self.workflow!r}")
        for name, policies in (
            ("overlap", OverlapPolicy),
            ("catchup", CatchUpPolicy),
            ("on_interrupted", OnInterrupted),
        ):
            if getattr(self, name) not in get_args(policies):
                problems.append(f"{name} must be one of {', '.join(get_args(policies))}, got {getattr(self, name)!r}")
        for name in ("catchup_window", "jitter", "timeout"):
            problems += self._take_duration(name)
        if self.backoff is not None and not isinstance(self.backoff, BackoffPolicy):
            problems.append(f"backoff must be a BackoffPolicy or None, got {self.backoff!r}")
        if self.ping_url is not None and not is_ping_url(self.ping_url):
            problems.append(f"ping_url must be an http or https address, got {self.ping_url!r}")
        if self.params is not None and not isinstance(self.params, Mapping) and not is_dataclass(self.params):
            problems.append(f"params must be a mapping or a dataclass, got {type(self.params).__name__}")
        if not problems and self.on_interrupted == "resume" and not self.workflow.has_journal:
            problems.append('on_interrupted="resume" needs a workflow with a journal')
        if not problems and isinstance(self.schedule, Interval) and self.jitter > self.schedule.seconds:
            problems.append(f"jitter must not be longer than the interval of {self.schedule.seconds:g} s")
        if problems:
            raise ConfigurationError(f"flow {self.id!r}: " + "; ".join(problems), problems)

    def _take_duration(self, name: str) -> list[str]:
        value = getattr(self, name)
        if value is None and name == "timeout":
            return []
        try:
            seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
        except (TypeError, ValueError):
            seconds = -1.0
        if not seconds >= 0 or (name == "timeout" and seconds == 0):
            return [f"{name} must be {'above' if name == 'timeout' else 'at least'} 0 seconds, got {value!r}"]
        object.__setattr__(self, name, seconds)
        return []
