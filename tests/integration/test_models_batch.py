"""Batches in the worker pool: order, isolation, bounds, kills, and what is written."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from canobatch import Retry, RunCancelledError, TaskConfig, TaskError, WorkerLostError, WorkerPool
from canobatch.errors import PayloadError, RetryExhaustedError, TaskTimeoutError, WorkflowError
from canobatch.models import BatchTask
from tests.support.branches import FOREVER, await_marks, mark, marks
from tests.support.models import SOON, WORKER, Recorder, began, state_of
from tests.support.tasks import assert_works
from tests.support.watch import Scene, Witness

EITHER = pytest.mark.parametrize("config", [None, WORKER], ids=["here", "worker"])


class Batch(BatchTask):
    """Items are (what to do, value); finish keeps the values, and the errors by their type's names."""

    concurrency = 3

    def __init__(self, *items, place="", retries=0, **settings):
        self.items = items
        self.place = str(place)
        self.item_retry = Retry.fixed(retries, 0)
        self.__dict__.update(settings)

    def load(self, ctx):
        ctx.store.put("loaded", len(self.items))
        return list(self.items)

    def process_item(self, ctx, item):
        how, value = item
        if self.place:
            mark(self.place, f"{ctx.branch}.{ctx.attempt}")
        if how == "fail" or (how == "flaky" and ctx.attempt < 3):
            raise ValueError(f"item {value}")
        if how == "die" or (how == "sick" and ctx.attempt == 1):
            os._exit(5)
        if how == "hang":
            time.sleep(FOREVER)
        if how == "wait":
            await_marks(self.place, "go")
        if how == "go":
            mark(self.place, "go")
        ctx.store.append("written", value)
        return value * 10

    def finish(self, ctx, results):
        assert [result.index for result in results] == list(range(len(self.items)))
        ctx.store.put("values", [result.value for result in results])
        ctx.store.put("errors", [type(result.error).__name__ for result in results if result.error])
        ctx.store.put("seen", ctx.store.get("written", []))
        return "end"


def ok(*values):
    """Items that succeed."""
    return [("ok", value) for value in values]


@EITHER
def test_results_and_writes_are_in_the_order_of_the_items(config, shared_pool, tmp_path):
    """The first item ends last; values and appended items are in order all the same, and finish sees them."""
    run = began(state_of(Batch(("wait", 0), *ok(1, 2, 3), ("go", 4), place=tmp_path), config=config), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("values") == [0, 10, 20, 30, 40]
    assert run.store.get("written") == run.store.get("seen") == [0, 1, 2, 3, 4]


@EITHER
def test_w14_a_failing_or_dying_item_is_data(config, shared_pool):
    """An item that raises, and one that takes its worker with it, are errors in their own results."""
    seen = Recorder()
    items = [("ok", 1), ("fail", 2), ("die", 3), ("ok", 4)]
    run = began(state_of(Batch(*items), config=config, observer=seen), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("values") == [10, None, None, 40]
    assert run.store.get("errors") == ["ValueError", "WorkerLostError"]
    assert run.store.get("written") == [1, 4]
    assert [event.branch for event in seen.of("item_failed")] == [1, 2]
    assert isinstance(seen.of("item_failed")[1].detail, WorkerLostError)


def test_an_item_is_retried_by_itself(shared_pool, tmp_path):
    """A flaky item and one whose worker died get their attempts; the others run once."""
    items = [("ok", 1), ("flaky", 2), ("sick", 3)]
    run = began(state_of(Batch(*items, place=tmp_path, retries=2)), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("values") == [10, 20, 30]
    assert marks(tmp_path) == {"0.1", "1.1", "1.2", "1.3", "2.1", "2.2"}


def test_what_an_item_raised_last_is_in_its_result(shared_pool):
    """Exhausted, an item's result has its own error, not a wrapper."""
    run = began(state_of(Batch(("fail", 1), retries=1)), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("errors") == ["ValueError"]


def test_w14_a_hung_item_is_killed_alone(shared_pool, tmp_path):
    """The attempt timeout bounds one item: it is killed, its siblings are not."""
    config = TaskConfig(attempt_timeout=3.0)
    run = began(state_of(Batch(("hang", 1), *ok(2, 3), place=tmp_path), config=config), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("values") == [None, 20, 30]
    assert run.store.get("errors") == ["TaskTimeoutError"]


def test_w14_items_have_their_context(shared_pool):
    """An item reads the store, as of load, and knows its index."""

    class Reads(BatchTask):
        def load(self, ctx):
            ctx.store.put("factor", 7)
            return [1, 2]

        def process_item(self, ctx, item):
            return ctx.store.get("factor") * item + 100 * ctx.branch

        def finish(self, ctx, results):
            ctx.store.put("values", [result.value for result in results])
            return "end"

    run = began(state_of(Reads()), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("values") == [7, 114]


class Counts(BatchTask):
    """Items say how many run beside them."""

    def __init__(self, place, concurrency):
        self.place = str(place)
        self.concurrency = concurrency

    def load(self):
        return range(30)

    def process_item(self, ctx, item):
        Path(f"{self.place}/{item}").touch()
        time.sleep(0.01)
        running = len(os.listdir(self.place))
        Path(f"{self.place}/{item}").unlink()
        return running

    def finish(self, ctx, results):
        ctx.store.put("most", max(result.value for result in results))
        return "end"


@pytest.mark.parametrize("concurrency", [1, 2])
def test_no_more_items_run_than_are_allowed(concurrency, shared_pool, tmp_path):
    """Concurrency is a limit, and one that is reached."""
    run = began(state_of(Counts(tmp_path, concurrency)), shared_pool)
    assert run.wait(60) == "end"
    assert run.store.get("most") == concurrency


def test_w14_items_run_in_processes_of_their_own(shared_pool, tmp_path):
    """Two items that wait for each other both end: they run at the same time, in two workers."""

    class Meet(BatchTask):
        concurrency = 2

        def load(self):
            return [0, 1]

        def process_item(self, ctx, item):
            mark(str(tmp_path), item)
            await_marks(str(tmp_path), 1 - item)
            return os.getpid()

        def finish(self, ctx, results):
            return "end" if len({r.value for r in results} | {os.getpid()}) == 3 else "other"

    assert began(state_of(Meet()), shared_pool).wait(30) == "end"


@EITHER
def test_w14_load_may_be_a_generator(config, shared_pool):
    """Items come lazily where load runs in the parent, as a list from a worker."""

    class Lazy(Batch):
        def load(self, ctx):
            for value in range(200):
                yield ("ok", value)

        def finish(self, ctx, results):
            return "end" if [result.value for result in results] == list(range(0, 2000, 10)) else "other"

    assert began(state_of(Lazy(), config=config), shared_pool).wait(30) == "end"


def test_a_generator_that_fails_half_way_fails_the_batch(shared_pool):
    """The error says after how many items."""

    class Breaks(Batch):
        def load(self, ctx):
            yield ("ok", 1)
            raise OSError("read error")

    run = began(state_of(Breaks()), shared_pool)
    with pytest.raises(TaskError, match="the items of load failed after 1: OSError: read error"):
        run.wait(30)


def test_no_items_still_finish(shared_pool):
    """An empty batch is finished, and writes what finish writes."""
    run = began(state_of(Batch()), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("values") == []


def test_an_item_that_cannot_be_sent_is_data(shared_pool):
    """An item that does not pickle fails by itself."""

    class Locks(BatchTask):
        def load(self):
            import threading

            return [1, threading.Lock(), 3]

        def process_item(self, ctx, item):
            return item

        def finish(self, ctx, results):
            assert isinstance(results[1].error, PayloadError)
            return "end" if [result.value for result in results] == [1, None, 3] else "other"

    assert began(state_of(Locks()), shared_pool).wait(30) == "end"


class Ends(Batch):
    """Load and finish fail in their first attempts."""

    def __init__(self, place, **settings):
        super().__init__(*ok(1, 2), place=place, **settings)

    def load(self, ctx):
        mark(self.place, f"load.{ctx.attempt}")
        ctx.store.append("loads", ctx.attempt)
        if ctx.attempt == 1:
            raise OSError("load")
        return list(self.items)

    def finish(self, ctx, results):
        mark(self.place, f"finish.{ctx.attempt}")
        ctx.store.append("finishes", ctx.attempt)
        if ctx.attempt == 1:
            raise OSError("finish")
        return "end"


@EITHER
def test_w14_load_and_finish_are_retried_without_the_items(config, shared_pool, tmp_path):
    """Each is retried by itself, items run once, and failed attempts leave no trace."""
    config = TaskConfig(retry=Retry.fixed(1, 0), where=config and config.where)
    run = began(state_of(Ends(tmp_path), config=config), shared_pool)
    assert run.wait(30) == "end"
    assert marks(tmp_path) == {"load.1", "load.2", "0.1", "1.1", "finish.1", "finish.2"}
    assert (run.store.get("loads"), run.store.get("finishes")) == ([2], [2])


def test_a_batch_that_fails_leaves_no_trace(shared_pool, tmp_path):
    """When finish fails for good, what load and the items wrote is not in the store either."""
    config = TaskConfig(retry=Retry.fixed(0, 0))

    class Fails(Batch):
        def finish(self, ctx, results):
            raise OSError("disk full")

    run = began(state_of(Fails(*ok(1, 2)), config=config, on_error="failed"), shared_pool)
    assert run.wait(30) == "failed"
    assert run.store.keys() == []


def test_a_load_that_fails_for_good_is_the_task_s_error(shared_pool, tmp_path):
    """Load is tried as often as allowed, and neither items nor finish are."""

    class NoLoad(Batch):
        def load(self, ctx):
            mark(self.place, f"load.{ctx.attempt}")
            raise OSError("where?")

    config = TaskConfig(retry=Retry.fixed(1, 0))
    with pytest.raises(RetryExhaustedError, match="where") as caught:
        began(state_of(NoLoad(place=tmp_path), config=config), shared_pool).wait(30)
    assert caught.value.attempts == 2
    assert marks(tmp_path) == {"load.1", "load.2"}


def test_items_in_the_parent_if_that_is_asked_for(shared_pool):
    """With where="parent" nothing is sent to a worker."""

    class Here(Batch):
        concurrency = 1

        def process_item(self, ctx, item):
            ctx.store.append("pids", (os.getpid(), ctx.branch))
            return super().process_item(ctx, item)

    flow = state_of(Here(("ok", 1), ("flaky", 2), retries=2), config=TaskConfig(where="parent"))
    run = began(flow, shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("values") == [10, 20]
    assert run.store.get("pids") == [(os.getpid(), 0), (os.getpid(), 1)]


class Hangs(BatchTask):
    """Items that enter the scene and hang."""

    concurrency = 2

    def __init__(self, place):
        self.place = place

    def load(self):
        return ["a", "b", "c"]

    def process_item(self, ctx, item):
        scene = Scene(self.place)
        scene.enter(item)
        scene.runs(item)
        time.sleep(FOREVER)

    def finish(self, ctx, results):
        raise AssertionError("a cancelled batch must not be finished")


def test_a_cancel_kills_the_items(tmp_path):
    """When a cancelled batch ends its items are dead, the third never began, and the pool works."""
    with WorkerPool(2) as pool, Witness(tmp_path, "a", "b", "c") as witness:
        run = began(state_of(Hangs(str(tmp_path))), pool)
        witness.scene.await_runs("a", "b")
        run.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            run.wait(30)
        assert witness.survivors() == []
        assert witness.absent() == ["c"]
        assert_works(pool)


def test_a_cancelled_batch_leaves_no_trace(shared_pool, tmp_path):
    """What finished items wrote is not in the store."""
    run = began(state_of(Batch(*ok(1, 2), ("hang", 3), place=tmp_path)), shared_pool)
    await_marks(tmp_path, "2.1")
    run.cancel("enough")
    with pytest.raises(RunCancelledError):
        run.wait(30)
    assert run.store.keys() == []


def test_a_large_batch(shared_pool):
    """Thousands of items go through, in order."""

    class Large(Batch):
        def load(self, ctx):
            return (("ok", value) for value in range(3000))

        def process_item(self, ctx, item):
            return item[1]

        def finish(self, ctx, results):
            return "end" if [result.value for result in results] == list(range(3000)) else "other"

    assert began(state_of(Large()), shared_pool).wait(60) == "end"


def test_a_worker_lost_in_load_is_a_failed_attempt(shared_pool, tmp_path):
    """W10: a crash in load is retried like any failure."""

    class Crashes(Batch):
        def load(self, ctx):
            if ctx.attempt == 1:
                os._exit(1)
            return super().load(ctx)

    config = TaskConfig(where="worker", retry=Retry.fixed(1, 0))
    run = began(state_of(Crashes(*ok(1)), config=config), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("values") == [10]


def test_finish_must_return_a_state(shared_pool):
    """What is no state is refused, and nothing is written."""

    class Lost(Batch):
        def finish(self, ctx, results):
            return "nowhere"

    run = began(state_of(Lost(*ok(1))), shared_pool)
    with pytest.raises(WorkflowError, match="returned 'nowhere'"):
        run.wait(30)
    assert run.store.keys() == []


def test_a_hung_finish_is_bounded(shared_pool):
    """The attempt timeout bounds finish too."""

    class Slow(Batch):
        def finish(self, ctx, results):
            time.sleep(FOREVER)

    with pytest.raises(TaskTimeoutError):
        began(state_of(Slow(*ok(1)), config=TaskConfig(attempt_timeout=SOON)), shared_pool).wait(30)
