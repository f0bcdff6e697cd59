"""What tests of models share: an observer that writes everything down, and runs of one state."""

from __future__ import annotations

from canobatch import TaskConfig, Workflow
from tests.support.watch import await_that

WORKER = TaskConfig(where="worker")

#: Seconds after which what hangs is cut; what does not hang is done before, on a busy machine too.
SOON = 3.0


class Recorder:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events = []

    def on_event(self, event) -> None:
        self.events.append(event)

    def kinds(self) -> list[str]:
        """Return what happened, in order."""
        return [event.kind for event in self.events]

    def of(self, kind) -> list:
        """Return the events of a kind."""
        return [event for event in list(self.events) if event.kind == kind]

    def await_kind(self, kind, count=1) -> None:
        """Wait until it has happened ``count`` times."""
        await_that(lambda: len(self.of(kind)) >= count, f"{count} of {kind} in {self.kinds()}")


def state_of(task, *, config=None, on_error=None, observer=None, **options) -> Workflow:
    """Return a workflow of one task, state "S", that ends in "end", "other" or "failed"."""
    flow = Workflow("test", **options).register("S", task, config=config, on_error=on_error)
    if observer is not None:
        flow.with_observer(observer)
    return flow.add_exit_states(["end", "other", "failed"])


def began(workflow, pool, initial="S", **options):
    """Start it on a pool."""
    return workflow.start(initial, pool=pool, **options)
