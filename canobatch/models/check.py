"""What is wrong with a model, before it runs. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canobatch.models.node import Node
from canobatch.models.policy import ErrorPolicy
from canobatch.models.router import RouterTask
from canobatch.models.window import Window
from canobatch.retry import Retry
from canobatch.task import arity_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from canobatch.models.base import Model

#: What a phase is given besides, or instead of, ``ctx``, for messages.
_ARGUMENTS = {
    "exec": "value",
    "post": "ctx, result",
    "step": "ctx, cursor",
    "open": "ctx, cursor",
    "process_item": "ctx, item",
    "finish": "ctx, results",
    "flush_window": "ctx, outputs",
    "on_close": "ctx, reason",
    "compensate": "ctx, output",
}
#: Settings that must be of a class, with an example.
_KINDS: dict[str, tuple[type, str]] = {
    "item_retry": (Retry, "Retry.fixed(2, 0.5)"),
    "window": (Window, "Count(100) | Duration(5.0)"),
    "on_item_error": (ErrorPolicy, "ErrorPolicy.skip()"),
    "on_poll_error": (ErrorPolicy, "ErrorPolicy.tolerate(3)"),
    "compensates_in_doubt": (bool, "True"),
    "dead_letters": (str, '"dead_letters"'),
}


def model_problems(model: Model) -> Iterator[str]:
    """Return what is wrong with the phases and settings of ``model``, one sentence each with its cure."""
    yield from _phase_problems(model)
    name = type(model).__name__
    for setting, (kind, example) in _KINDS.items():
        if hasattr(model, setting) and not isinstance(getattr(model, setting), kind):
            given = getattr(model, setting)
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            yield f"{name}.{setting} must be {article} {kind.__name__} such as {example}, got {given!r}"
    if hasattr(model, "concurrency"):
        yield from _concurrency_problems(model, model.concurrency)


def _phase_problems(model: Model) -> Iterator[str]:
    kind = type(model)
    base: Any = next(each for each in kind.__mro__ if "PHASES" in vars(each))
    if isinstance(model, Node | RouterTask) and kind.run is not base.run:
        # With a ``run`` of its own it is a plain task, and needs none of them.
        return
    for phase, accepted in kind.PHASES.items():
        arguments = _ARGUMENTS.get(phase, "ctx")
        if getattr(kind, phase) is getattr(base, phase):
            yield f"{kind.__name__} does not define {phase}(self, {arguments})"
            continue
        words = f"({arguments})" + (" or no argument" if 0 in accepted else "")
        problem = arity_problem(getattr(model, phase), accepted, words)
        if problem:
            yield problem


def _concurrency_problems(model: Model, concurrency: Any) -> Iterator[str]:
    name = type(model).__name__
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
        yield f"{name}.concurrency must be a whole number of at least 1, got {concurrency!r}"
