"""CompensatableTask: work that can be undone."""

from __future__ import annotations

from typing import Any, ClassVar

from canobatch.models.base import Model


class CompensatableTask(Model):
    """A task whose effect outside can be undone: ``run(ctx)`` returns ``(state, output)``.

    When the run fails later, is cancelled or times out, ``compensate(ctx, output)`` is called for every such task
    that ended, the last one first. Each gets one attempt within its ``attempt_timeout`` and the workflow's
    ``compensation_timeout``; what fails is collected in a `CompensationError` and stops none of the others.

    ``run`` is not killed midway: a cancel and the total timeout wait for it up to the ``compensation_timeout``.
    Past that, past its own ``attempt_timeout`` or limit, or when its worker dies, nobody knows what it has done:
    it is *in doubt*. So is one that returns no pair. What it raises means that it has done nothing.

    The output is plain data. Both methods should be idempotent; ``ctx.run_id`` and ``ctx.state`` make a key.

    Attributes:
        compensates_in_doubt: Whether ``compensate(ctx, None)`` can undo what is in doubt. Otherwise it is listed
            in the `CompensationError`.

    Example:
        >>> class Reserve(CompensatableTask):
        ...     def run(self, ctx):
        ...         return "pay", stock.reserve(ctx.params.item)
        ...     def compensate(self, ctx, output):
        ...         stock.release(output)
    """

    PHASES: ClassVar = {"run": (1, 0), "compensate": (2,)}
    compensates_in_doubt: bool = False

    def run(self, *args: Any) -> Any:
        """Do it, and return ``(state, output)``: ``run(self, ctx)`` or ``run(self)``."""
        raise NotImplementedError

    def compensate(self, ctx: Any, output: Any) -> Any:
        """Undo it; what this returns is ignored."""
        raise NotImplementedError
