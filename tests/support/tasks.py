"""Small tasks of many tests, where a worker can import them at little cost, and the check that a pool works."""

from __future__ import annotations

from typing import TYPE_CHECKING

from canobatch import JoinConfig, JoinStrategy, Workflow

if TYPE_CHECKING:
    from canobatch import WorkerPool


def square(ctx, item):
    return item * item


def measure(ctx, item):
    return len(item)


def assert_works(pool: WorkerPool) -> None:
    """The next call on the pool succeeds, for more branches than there are workers, each at its first attempt."""
    workflow = Workflow("next").register_map("map", square, range(50), JoinConfig(JoinStrategy.all(), "end", into="v"))
    run = workflow.add_exit_state("end").start("map", pool=pool)
    assert run.wait(60) == "end"
    assert run.store.get("v") == [n * n for n in range(50)]
    assert {branch.attempts for branch in run.report().splits["map"]} == {1}
