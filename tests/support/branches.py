"""Branches that end as they are told to, in the order that a test wants, and runs of them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from canobatch import JoinConfig, JoinError, Task, TaskConfig, Workflow
from tests.support.watch import await_that

FOREVER = 100_000


class RefusalError(Exception):
    """What a failing branch raises."""


def mark(place, name) -> None:
    """Leave a mark that others can wait for."""
    Path(f"{place}/{name}").touch()


def marks(place) -> set[str]:
    """Return all marks."""
    return set(os.listdir(place))


def await_marks(place, *names) -> None:
    """Wait until all of these are there."""
    for name in names:
        await_that(Path(f"{place}/{name}").exists, f"{name} should have been marked")


@dataclass
class Act(Task):
    """Marks that it runs, as "branch.attempt", waits for others' marks, and ends as it is told to.

    ``how`` is one word per attempt, the last for all further ones: ok, fail, hang, die.
    """

    how: str = "ok"
    place: str = ""
    after: tuple[str, ...] = ()
    value: object = None
    config: TaskConfig = field(default_factory=TaskConfig)

    def run(self, ctx):
        if self.place:
            mark(self.place, f"{ctx.branch}.{ctx.attempt}")
        await_marks(self.place, *self.after)
        ways = self.how.split()
        how = ways[min(ctx.attempt, len(ways)) - 1]
        if how == "fail":
            raise RefusalError(f"branch {ctx.branch} refuses")
        if how == "hang":
            time.sleep(FOREVER)
        if how == "die":
            os._exit(3)
        return ctx.branch if self.value is None else self.value


class Marker:
    """Marks each branch that the run has counted as "branch.ended", and each retry as "branch.retried"."""

    def __init__(self, place) -> None:
        self.place = place

    def on_event(self, event) -> None:
        if event.kind == "branch_finished":
            mark(self.place, f"{event.branch}.ended")
        elif event.kind == "retry":
            mark(self.place, f"{event.branch}.retried")


def split_of(tasks, strategy, *, place=None, workflow=None, **join) -> Workflow:
    """Return a workflow of one split, state "split", that ends in "joined", "failed" or "late"."""
    flow = Workflow("test", **(workflow or {}))
    flow.register_split("split", tasks, JoinConfig(strategy, "joined", **join))
    if place is not None:
        flow.with_observer(Marker(place))
    return flow.add_exit_states(["joined", "failed", "late"])


def map_of(fn, items, strategy, *, config=None, workflow=None, **join) -> Workflow:
    """The same for one function over items."""
    flow = Workflow("test", **(workflow or {}))
    flow.register_map("split", fn, items, JoinConfig(strategy, "joined", **join), config=config)
    return flow.add_exit_states(["joined", "failed", "late"])


def ran(workflow, pool, **options):
    """Run it to its end, from "split"; return final state and run."""
    run = workflow.start("split", pool=pool, **options)
    return run.wait(100), run


def statuses(run, state="split"):
    """Return the statuses of a run's split."""
    return [str(branch.status) for branch in run.report().splits[state]]


def contents(store) -> dict[str, object]:
    """Return what is in a store."""
    return {key: store.get(key) for key in store.keys()}  # noqa: SIM118 - a store is no dict


def failing(workflow, pool):
    """Run a workflow that must fail its join; return the error and the run."""
    run = workflow.start("split", pool=pool)
    try:
        end = run.wait(100)
    except JoinError as error:
        return error, run
    raise AssertionError(f"it did not fail, but ended in {end!r}")
