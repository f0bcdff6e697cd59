"""PollTask: ask until there is an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from canobatch._clock import as_seconds
from canobatch.errors import ConfigurationError
from canobatch.models.base import Driven
from canobatch.models.policy import ErrorPolicy

if TYPE_CHECKING:
    from canobatch.models.base import Stage


@dataclass(frozen=True, slots=True)
class Ready:
    """The poll's answer: go to ``state``."""

    state: Any


@dataclass(frozen=True, slots=True, init=False)
class Pending:
    """Not yet: poll again in ``delay`` seconds (or a `timedelta`); 0 means at once.

    Raises:
        ConfigurationError: The delay is no number of seconds.
    """

    delay: float

    def __init__(self, delay: float | timedelta) -> None:
        seconds = as_seconds(delay) if isinstance(delay, timedelta) else delay
        if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise ConfigurationError(f"Pending: delay must be at least 0 seconds, got {delay!r}")
        object.__setattr__(self, "delay", seconds)


class PollTask(Driven):
    """A task that asks again and again: ``poll(ctx)`` returns `Ready` or `Pending`.

    One attempt is the whole loop: ``attempt_timeout`` bounds it with its pauses, and a retry starts it again,
    without what the failed loop wrote. Between two polls no worker is occupied. A poll sees what the polls
    before it wrote; all of it is committed with the `Ready`.

    Attributes:
        on_poll_error: What to do when a poll fails: `ErrorPolicy.fail_fast` (the default) or
            `ErrorPolicy.tolerate`, which counts errors in a row and pauses after each. What another try cannot
            mend, and what the task's ``retry_on`` leaves out, is never borne.

    Example:
        >>> class WaitForFile(PollTask):
        ...     on_poll_error = ErrorPolicy.tolerate(3, pause=5.0)
        ...     def poll(self, ctx):
        ...         return Ready("load") if Path(ctx.params.path).exists() else Pending(1.0)
    """

    PHASES: ClassVar = {"poll": (1, 0)}
    on_poll_error: ErrorPolicy = ErrorPolicy.fail_fast()

    def poll(self, *args: Any) -> Ready | Pending:
        """Ask once: ``poll(self, ctx)`` or ``poll(self)``."""
        raise NotImplementedError

    def drive(self, stage: Stage) -> Any:
        """Poll until ready."""
        return stage.retry(lambda: self._loop(stage))

    def _loop(self, stage: Stage) -> Any:
        errors = 0
        while True:
            try:
                answer = stage.call("poll")
            except Exception as error:
                errors += 1
                if not (self.on_poll_error.bears(errors) and stage.forgives(error)):
                    raise
                stage.wait(self.on_poll_error.pause)
                continue
            errors = 0
            if isinstance(answer, Ready):
                return answer.state
            if not isinstance(answer, Pending):
                raise stage.refusal(f"poll returned {answer!r}; return Ready(state) or Pending(seconds)")
            stage.wait(answer.delay)
