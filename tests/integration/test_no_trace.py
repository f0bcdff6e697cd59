"""Promise 2: what was not accepted has never written, at whatever moment it was killed."""

from __future__ import annotations

import os
import random
import time

import pytest

from canobatch import JoinConfig, JoinError, JoinStrategy, Retry, SharedStore, TaskConfig, WorkerPool, Workflow
from canobatch.errors import RunCancelledError, TaskError, WorkflowTimeoutError
from tests.support.watch import Scene, await_that
from tests.support.writers import win_some_time, write_everything, write_until_killed

ROUNDS = int(os.environ.get("CANOBATCH_ROUNDS", "0"))

BEFORE = {"counter": 100, "list": ["first"], "kept": "as it was", "removed?": "no"}


def filled() -> SharedStore:
    store = SharedStore()
    for key, value in BEFORE.items():
        store.put(key, value)
    return store


def contents(store) -> dict[str, object]:
    return {key: store.get(key) for key in store.keys()}  # noqa: SIM118 - a store is no dict


def rounds_of_losers(rounds: int, place) -> None:
    with WorkerPool(4, spares=3) as pool:
        for index in range(rounds):
            store = filled()
            store.put("place", str(place))
            tasks = [write_until_killed, write_until_killed, write_until_killed, win_some_time]
            join = JoinConfig(JoinStrategy.any(), "end", into="v")
            workflow = Workflow("w", store=store).register_split("s", tasks, join).add_exit_state("end")
            run = workflow.start("s", pool=pool, run_id=str(index))
            assert run.wait(60) == "end"
            split = run.report().splits["s"]
            (winner,) = split.successes
            found = contents(store)
            assert found.pop("v") == [winner.value]
            assert found.pop("place")
            if winner.index == 3:
                assert found == {**BEFORE, "winner": 3, "list": ["first", "winner"]}
            else:
                # The loser that ends was faster: then it is the one that has written, and it alone.
                assert winner.index == 2
                assert found["counter"] == 301
                assert found["list"] == ["first", *range(201)]
                assert "winner" not in found
                assert "removed?" not in found
            for branch in (0, 1):
                assert split[branch].status == "cancelled"


def test_a_loser_that_writes_until_it_is_killed_leaves_nothing(tmp_path):
    """Losers that put, append, add, update and remove until a random moment leave the store as it was."""
    rounds_of_losers(ROUNDS or 25, tmp_path)


@pytest.mark.stress
@pytest.mark.timeout(1200)
def test_200_rounds_of_losers_leave_nothing(tmp_path):
    """The same holds 200 times in a row (CANOBATCH_ROUNDS sets another number)."""
    rounds_of_losers(ROUNDS or 200, tmp_path)


def attempts_that_write(how: str):
    """Return a task whose first attempts write everything and then end in a way that is not accepted."""

    def task(ctx, item=0):
        write_everything(ctx, f"attempt-{ctx.attempt}")
        if ctx.attempt < 3:
            if how == "raises":
                raise ValueError("after it has written")
            if how == "exits":
                os._exit(1)
            if how == "times out":
                time.sleep(1000)
        return "end"

    return task


@pytest.mark.parametrize("how", ["raises", "exits", "times out"])
@pytest.mark.parametrize("where", ["split", "single"])
def test_failed_attempts_write_nothing(how, where):
    """Of several attempts only the accepted one has written, once, whatever became of those before it."""
    store = filled()
    config = TaskConfig(retry=Retry.fixed(2, 0.0), where="worker", attempt_timeout=1.5 if how == "times out" else None)
    workflow = Workflow("w", store=store)
    if where == "split":
        join = JoinConfig(JoinStrategy.all(), "end")
        workflow.register_split("s", [attempts_that_write(how)], join, config=config)
    else:
        workflow.register("s", attempts_that_write(how), config=config)
    with WorkerPool(1) as pool:
        assert workflow.add_exit_state("end").start("s", pool=pool).wait(60) == "end"
    found = contents(store)
    assert len(found.pop("own-attempt-3")) == 1000
    assert found == {"counter": 101, "list": ["first", "attempt-3"], "kept": "by attempt-3", "updated": 1}


@pytest.mark.parametrize("where", ["parent", "worker"])
def test_a_task_that_fails_for_good_writes_nothing(where):
    """A single task that wrote and then failed leaves the store as it was, also on its way to ``on_error``."""

    def fail(ctx):
        write_everything(ctx, "failed")
        raise ValueError("after it has written")

    store = filled()
    workflow = Workflow("w", store=store).register("s", fail, config=TaskConfig(where=where)).add_exit_state("end")
    with WorkerPool(1) as pool:
        with pytest.raises(TaskError):
            workflow.orchestrate("s", pool=pool)
        assert contents(store) == BEFORE
        workflow = Workflow("w", store=store).add_exit_state("end")
        workflow.register("s", fail, config=TaskConfig(where=where), on_error="end")
        assert workflow.orchestrate("s", pool=pool) == "end"
        assert contents(store) == BEFORE


@pytest.mark.parametrize("ending", ["raises", "on_failure"])
def test_a_split_that_fails_writes_nothing_of_any_branch(ending):
    """When a split fails, the branches that succeeded have not written either; their values can be read."""

    def branch(ctx, item):
        write_everything(ctx, item)
        if item == 3:
            raise ValueError("after it has written")
        return item * 2

    def look(ctx):
        assert {key: ctx.store.get(key) for key in ctx.store} == BEFORE
        return "end" if ctx.split("s").values == [0, 2, 4] else "wrong"

    store = filled()
    on_failure = "look" if ending == "on_failure" else None
    join = JoinConfig(JoinStrategy.all(), "end", into="v", store_partial_results=True, on_failure=on_failure)
    workflow = Workflow("w", store=store).register_map("s", branch, range(4), join)
    workflow.register("look", look).add_exit_states(["end", "wrong"])
    with WorkerPool(2) as pool:
        if ending == "raises":
            with pytest.raises(JoinError) as caught:
                workflow.orchestrate("s", pool=pool)
            assert caught.value.result.values == [0, 2, 4]
        else:
            assert workflow.orchestrate("s", pool=pool) == "end"
    assert contents(store) == BEFORE


@pytest.mark.parametrize("how", ["cancel", "total timeout", "split timeout"])
def test_a_run_that_is_stopped_writes_nothing_of_its_split(how, tmp_path):
    """Branches that had succeeded before a cancel or timeout of their split have written nothing."""

    def branch(ctx, item):
        write_everything(ctx, item)
        if item == 2:
            Scene(tmp_path).runs("last")
            time.sleep(1000)
        return item

    store = filled()
    join = JoinConfig(JoinStrategy.all(), "end", timeout=3.0 if how == "split timeout" else None, into="v")
    total_timeout = 3.0 if how == "total timeout" else None
    workflow = Workflow("w", store=store, total_timeout=total_timeout).register_map("s", branch, range(3), join)
    with WorkerPool(3) as pool:
        pool.warm_up()
        run = workflow.add_exit_state("end").start("s", pool=pool)
        # Before the timeout, or there is nothing to show.
        Scene(tmp_path).await_runs("last")
        if how == "cancel":
            run.cancel()
        with pytest.raises((RunCancelledError, WorkflowTimeoutError, JoinError)):
            run.wait(60)
    assert contents(store) == BEFORE


def test_a_loser_with_a_large_outcome_leaves_nothing(tmp_path):
    """A loser that is killed while 100 MB of its writes are on their way leaves none of them."""

    def large(ctx):
        for index in range(10):
            write_everything(ctx, index, size=10_000_000)
        Scene(tmp_path).runs(f"large-{ctx.run_id}")
        return "large"

    def small(ctx):
        Scene(tmp_path).await_runs(f"large-{ctx.run_id}")
        time.sleep(random.random() * 0.2)  # the moment, not a wait
        return "small"

    with WorkerPool(2) as pool:
        for index in range(5):
            store = filled()
            join = JoinConfig(JoinStrategy.any(), "end", into="v")
            workflow = Workflow("w", store=store).register_split("s", [large, small], join).add_exit_state("end")
            assert workflow.start("s", pool=pool, run_id=str(index)).wait(60) == "end"
            found = contents(store)
            (value,) = found.pop("v")
            if value == "small":
                assert found == BEFORE
            else:
                assert len(found["own-9"]) == 10_000_000
                assert found["counter"] == 110


def test_a_retried_attempt_sees_the_store_as_the_first_did():
    """A second attempt begins with the store as of its state's entry: not with what the first one wrote."""

    def task(ctx):
        seen = {key: ctx.store.get(key) for key in ctx.store}
        write_everything(ctx, ctx.attempt)
        if ctx.attempt == 1:
            raise ValueError("again")
        return seen == BEFORE

    store = filled()
    config = TaskConfig(retry=Retry.fixed(1, 0.0))
    join = JoinConfig(JoinStrategy.all(), "end", into="v")
    workflow = Workflow("w", store=store, default_config=config).register_split("s", [task] * 3, join)
    with WorkerPool(2) as pool:
        assert workflow.add_exit_state("end").orchestrate("s", pool=pool) == "end"
    assert store.get("v") == [True] * 3


def test_a_branch_does_not_see_what_its_siblings_wrote(tmp_path):
    """Branches of one split all see the store as of the state's entry, whoever ends first."""

    def branch(ctx, item):
        if item:
            # The first one has ended, and been accepted, long ago.
            await_that(lambda: ctx.store.get("place") and Scene(tmp_path).pids("first"), "the first should run")
        seen = ctx.store.get("list")
        ctx.store.append("list", item)
        if item == 0:
            Scene(tmp_path).runs("first")
        return seen

    store = filled()
    store.put("place", str(tmp_path))
    join = JoinConfig(JoinStrategy.all(), "end", into="v")
    workflow = Workflow("w", store=store).register_map("s", branch, range(4), join).add_exit_state("end")
    with WorkerPool(2) as pool:
        assert workflow.orchestrate("s", pool=pool) == "end"
    assert store.get("v") == [["first"]] * 4
    assert store.get("list") == ["first", 0, 1, 2, 3]
