"""What all models share: phases that can be checked beforehand, and the seam to what drives them.

A model says what comes next, a `Stage` does it: calls a phase, waits, keeps a cursor. The run's driver is
one stage; `Here` is the other, for a model that runs in one piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from canobatch import _clock
from canobatch.errors import ConfigurationError, WorkflowError
from canobatch.models.item import ItemResult
from canobatch.retry import Retry
from canobatch.task import Task, bound_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from canobatch.task import TaskContext

_T = TypeVar("_T")


class Stage(Protocol):
    """What drives a model."""

    def call(self, phase: str, *args: Any) -> Any:
        """Call a phase once; ``ctx`` comes before ``args``."""

    def retry(self, attempt: Callable[[], _T]) -> _T:
        """Return what ``attempt`` returns, made again as the task's configuration says."""

    def forgives(self, error: Exception) -> bool:
        """Return whether a call that failed with ``error`` may be tried again at all."""

    def wait(self, seconds: float) -> None:
        """Let time pass."""

    def now(self) -> tuple[float, float]:
        """Return the monotonic time and the seconds since the epoch."""

    def keep(self, cursor: Any) -> None:
        """Commit what was written so far together with ``cursor``."""

    def cursor(self) -> Any:
        """Return a copy of the cursor that was kept last; None: none was."""

    def once(self, make: Callable[[], _T]) -> _T:
        """Return what ``make`` returned in the first attempt of this visit that came so far."""

    def process(self, items: Iterable[Any]) -> list[ItemResult]:
        """Call "process_item" for each item; return what became of them, in their order."""

    def refusal(self, text: str) -> WorkflowError:
        """Return the error that says what a phase must not do."""


class Model(Task):
    """A task with phases.

    Attributes:
        PHASES: Each phase's accepted numbers of arguments.
    """

    PHASES: ClassVar[dict[str, tuple[int, ...]]] = {}


class Driven(Model):
    """A model that is driven phase by phase, between which no worker is occupied."""

    def drive(self, stage: Stage) -> Any:
        """Return the next state. For stages; not to be overridden."""
        raise NotImplementedError

    def run(self, *args: Any) -> Any:
        """Run all of it in one piece, as a branch of a split does."""
        return self.drive(Here(self, args[0]))


class Here:
    """Drives a model in one piece, where it is. Retries nothing: whoever runs the piece does."""

    def __init__(self, model: Driven, ctx: TaskContext) -> None:
        self._model = model
        self._ctx = ctx
        self._cursor: Any = None

    def call(self, phase: str, *args: Any) -> Any:
        """Call a phase once; see `Stage`."""
        return perform(self._model, phase, self._ctx, args)

    def retry(self, attempt: Callable[[], _T]) -> _T:
        """Make the one attempt."""
        return attempt()

    def forgives(self, error: Exception) -> bool:
        """Return whether a call that failed with ``error`` may be tried again at all."""
        return not isinstance(error, ConfigurationError | WorkflowError)

    def wait(self, seconds: float) -> None:
        """Sleep."""
        if seconds > 0:
            _clock.sleep(seconds)

    def now(self) -> tuple[float, float]:
        """Return the monotonic time and the seconds since the epoch."""
        return _clock.monotonic(), _clock.epoch()

    def keep(self, cursor: Any) -> None:
        """Keep it just here: one piece has nowhere to start again from."""
        self._cursor = cursor

    def cursor(self) -> Any:
        """Return the cursor that was kept last."""
        return self._cursor

    def once(self, make: Callable[[], _T]) -> _T:
        """Make it: there is one attempt."""
        return make()

    def process(self, items: Iterable[Any]) -> list[ItemResult]:
        """Call "process_item" for each item, one after the other."""
        return [self._process(index, item) for index, item in enumerate(items)]

    def _process(self, index: int, item: Any) -> ItemResult:
        retry: Retry = getattr(self._model, "item_retry", Retry.none())
        attempt = 1
        while True:
            try:
                return ItemResult(index, self.call("process_item", item))
            except Exception as error:  # noqa: BLE001 - an item's error is data
                if attempt >= retry.max_attempts or not self.forgives(error):
                    return ItemResult(index, None, error)
                self.wait(retry.delay(attempt))
                attempt += 1

    def refusal(self, text: str) -> WorkflowError:
        """Return the error that says what a phase must not do."""
        return WorkflowError(f"{type(self._model).__name__}: {text}", state=self._ctx.state)


def perform(model: Model, phase: str, ctx: TaskContext, args: tuple[Any, ...]) -> Any:
    """Call a phase of ``model``; run it to its end if it is ``async``."""
    return bound_call(getattr(model, phase), model.PHASES[phase])(ctx, *args)
