"""Node: read, compute, decide."""

from __future__ import annotations

from typing import Any, ClassVar

from canobatch.models.base import Model, perform
from canobatch.task import bound_call


class Node(Model):
    """A task in three phases, the middle one without access to anything shared.

    ``prep(ctx)`` reads, ``exec(value)`` computes, ``post(ctx, result)`` writes and returns the next state (in a
    split: the branch's value). One attempt is all three; a retry runs all three again.

    Example:
        >>> class Double(Node):
        ...     def prep(self, ctx):
        ...         return ctx.store.get("number")
        ...     def exec(self, value):
        ...         return 2 * value
        ...     def post(self, ctx, result):
        ...         ctx.store.put("number", result)
        ...         return "done"
    """

    PHASES: ClassVar = {"prep": (1, 0), "exec": (1,), "post": (2,)}

    def prep(self, *args: Any) -> Any:
        """Return what `exec` works on: ``prep(self, ctx)`` or ``prep(self)``."""
        raise NotImplementedError

    def exec(self, value: Any) -> Any:
        """Compute. What it raises fails the attempt."""
        raise NotImplementedError

    def post(self, ctx: Any, result: Any) -> Any:
        """Write what is to be kept, and return the next state."""
        raise NotImplementedError

    def run(self, *args: Any) -> Any:
        """Run the three phases."""
        ctx = args[0]
        value = perform(self, "prep", ctx, ())
        return perform(self, "post", ctx, (bound_call(self.exec, (1,))(value),))
