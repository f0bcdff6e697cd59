"""Workflows of single tasks, and an observer that keeps how they went."""

from __future__ import annotations

import itertools

from canobatch import RunCancelledError, Workflow


def single(task, *, config=None, on_error=None, **options) -> Workflow:
    """Return a workflow of one task, state "begin", that ends in "end" or "failed"."""
    flow = Workflow("test", **options).register("begin", task, config=config, on_error=on_error)
    return flow.add_exit_states(["end", "failed"])


def chain(*names, **options) -> Workflow:
    """Return a workflow that goes from each name to the next and notes where it was."""

    def step(name, following):
        def task(ctx):
            ctx.store.append("seen", name)
            return following

        return task

    flow = Workflow("chain", **options).add_exit_state(names[-1])
    for name, following in itertools.pairwise(names):
        flow.register(name, step(name, following))
    return flow


def cancelled(run):
    """Wait for a run that must end as cancelled; return the error."""
    try:
        end = run.wait(100)
    except RunCancelledError as error:
        return error
    raise AssertionError(f"it was not cancelled, but ended in {end!r}")


class Recorder:
    """Keeps every event."""

    def __init__(self):
        self.events = []

    def on_event(self, event):
        self.events.append(event)

    def kinds(self):
        return [event.kind for event in self.events]
