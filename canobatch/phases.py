"""A model's phases as calls: the one function by which the driver reaches them, here or in a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from canobatch.effects import describe_error, dumps, loads
from canobatch.errors import CompensationError, PayloadError, TaskError
from canobatch.models import CompensatableTask
from canobatch.models.base import Model, perform
from canobatch.task import bound_call

if TYPE_CHECKING:
    from canobatch.task import TaskContext


class Deed(NamedTuple):
    """What a compensatable task did: the next state, and its packed output."""

    state: Any
    output: bytes


class Phases:
    """A model as a function of (context, (phase, arguments)).

    Args:
        model: Whose phases are called.
        is_here: Whether they are called in the parent.
    """

    def __init__(self, model: Model, *, is_here: bool = False) -> None:
        self._model = model
        self._is_here = is_here
        #: Phases that were called before, ready to be called again.
        self._calls: dict[str, Callable[..., Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Phases, (self._model,)

    def __call__(self, ctx: TaskContext, item: tuple[str, tuple[Any, ...]]) -> Any:
        """Call a phase."""
        phase, args = item
        if isinstance(self._model, CompensatableTask):
            return _do(self._model, ctx) if phase == "run" else _undo(self._model, ctx, args[0])
        call = self._calls.get(phase)
        if call is None:
            call = self._calls[phase] = bound_call(getattr(self._model, phase), self._model.PHASES[phase])
        value = call(ctx, *args)
        if phase == "load" and isinstance(value, Iterator) and not self._is_here:
            # A generator stays in the process that runs it.
            return list(value)
        return value


def _do(model: CompensatableTask, ctx: TaskContext) -> Deed | None:
    """Run it; None when it returned no pair."""
    result = perform(model, "run", ctx, ())
    if not isinstance(result, tuple) or len(result) != 2:
        return None
    state, output = result
    try:
        return Deed(state, dumps(output))
    except PayloadError as error:
        # Nobody else will ever have this output: undo it now.
        refusal = PayloadError(f"its output cannot be kept: {error}; return plain data")
        try:
            perform(model, "compensate", ctx, (output,))
        except BaseException as own:  # noqa: BLE001 - its author's code
            text = f"{refusal}; compensating at once failed: {describe_error(own)}"
            failure = TaskError(f"compensating at once: {describe_error(own)}", state=ctx.state, attempt=ctx.attempt)
            failure.__cause__ = own
            raise CompensationError(text, errors=[failure], original=refusal) from refusal
        raise PayloadError(f"{refusal}; it was compensated at once") from error


def _undo(model: CompensatableTask, ctx: TaskContext, output: bytes | None) -> None:
    perform(model, "compensate", ctx, (None if output is None else loads(output),))
