"""RouterTask: read and decide."""

from __future__ import annotations

from typing import Any, ClassVar

from canobatch.models.base import Model, perform


class RouterTask(Model):
    """A task that only chooses the next state: ``route(ctx)`` returns it, and must not write to the store.

    A write is a `WorkflowError`, and changes nothing. A router leaves no record of its own, so a resumed run
    decides again.

    Example:
        >>> class BySize(RouterTask):
        ...     def route(self, ctx):
        ...         return "large" if ctx.store.get("size") > 100 else "small"
    """

    PHASES: ClassVar = {"route": (1, 0)}

    def route(self, *args: Any) -> Any:
        """Return the next state: ``route(self, ctx)`` or ``route(self)``."""
        raise NotImplementedError

    def run(self, *args: Any) -> Any:
        """Decide."""
        return perform(self, "route", args[0], ())
