"""Streams: windows, cursors, errors, drains; sources that block; items in the worker pool."""

from __future__ import annotations

import itertools
import os
import threading
import time

import pytest

from canobatch import Retry, RunCancelledError, TaskConfig, TaskError, WorkerPool
from canobatch.errors import (
    ConfigurationError,
    TaskTimeoutError,
    WorkflowError,
    WorkflowTimeoutError,
)
from canobatch.models import CloseReason, Count, DeadLetter, Duration, ErrorPolicy, StreamTask
from canobatch.workflow import Workflow
from tests.support.branches import FOREVER, await_marks, mark, marks
from tests.support.models import SOON, WORKER, Recorder, began, state_of
from tests.support.tasks import assert_works
from tests.support.watch import Scene, Witness

EITHER = pytest.mark.parametrize("config", [None, WORKER], ids=["here", "worker"])
WAYS = pytest.mark.parametrize(
    ("config", "concurrency"), [(None, 1), (WORKER, 1), (None, 3)], ids=["here", "worker", "pool"]
)


class Numbers(StreamTask):
    """Numbers from the cursor on; each is its own cursor. What is flushed goes into the store."""

    def __init__(self, last=10, **settings):
        self.last = last
        self.__dict__.update(settings)

    def open(self, ctx, cursor):
        return range((cursor or 0) + 1, self.last + 1)

    def process_item(self, ctx, item):
        ctx.store.append("items", item)
        return item * 10, item

    def flush_window(self, ctx, outputs):
        ctx.store.append("windows", outputs)

    def on_close(self, ctx, reason):
        ctx.store.put("reason", str(reason))
        return "end"


def flow_of(task, *, seen=None, **options):
    """Return a workflow of one stream."""
    return state_of(task, observer=seen, **options)


def cursors(seen):
    """Return the cursors that were committed."""
    return [event.detail for event in seen.of("checkpoint")]


# -- windows


@WAYS
def test_count_windows_in_order(config, concurrency, shared_pool):
    """Every n outputs are flushed and committed with the cursor of the last; the rest at the end."""
    seen = Recorder()
    run = began(flow_of(Numbers(window=Count(4), concurrency=concurrency), config=config, seen=seen), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("windows") == [[10, 20, 30, 40], [50, 60, 70, 80], [90, 100]]
    assert run.store.get("items") == list(range(1, 11))
    assert run.store.get("reason") == "exhausted"
    assert cursors(seen) == [4, 8, 10]


def test_items_that_divide_evenly_leave_no_empty_window(shared_pool):
    """The last full window is the last flush."""
    seen = Recorder()
    run = began(flow_of(Numbers(8, window=Count(4)), seen=seen), shared_pool)
    assert run.wait(30) == "end"
    assert cursors(seen) == [4, 8]


def test_by_default_each_item_is_a_window(shared_pool):
    """Without a window every output is flushed by itself."""
    run = began(flow_of(Numbers(3)), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("windows") == [[10], [20], [30]]


def test_an_empty_source_is_closed_without_a_flush(shared_pool):
    """No items: no flush, no cursor, but on_close."""
    seen = Recorder()
    run = began(flow_of(Numbers(0), seen=seen), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.keys() == ["reason"]
    assert cursors(seen) == []


class Gated(Numbers):
    """Yields its first items, then waits for a mark before each of the others."""

    def __init__(self, place, last, free, **settings):
        super().__init__(last, **settings)
        self.place = str(place)
        self.free = free

    def open(self, ctx, cursor):
        for item in super().open(ctx, cursor):
            if item > self.free:
                await_marks(self.place, item)
            yield item

    def flush_window(self, ctx, outputs):
        super().flush_window(ctx, outputs)
        mark(self.place, f"flushed-{outputs[-1]}")


@pytest.mark.parametrize("window", [Duration(0.05), Count(100) | Duration(0.05)], ids=["duration", "either"])
def test_w13_a_slow_source_does_not_hold_a_window_open(window, shared_pool, tmp_path):
    """By time a partial window is flushed while the source blocks; intervals without outputs are passed over."""
    run = began(flow_of(Gated(tmp_path, 4, 3, window=window)), shared_pool)
    await_marks(tmp_path, "flushed-30")
    mark(tmp_path, 4)
    assert run.wait(30) == "end"
    assert list(itertools.chain(*run.store.get("windows"))) == [10, 20, 30, 40]
    assert run.store.get("windows")[-1] == [40]


def test_w13_whichever_comes_first(shared_pool, tmp_path):
    """A window by count and time is flushed by count when items are fast."""
    run = began(flow_of(Numbers(6, window=Count(3) | Duration(FOREVER))), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("windows") == [[10, 20, 30], [40, 50, 60]]


# -- endings


class Stops(Numbers):
    """Stops at a window whose last output is ``at``."""

    at = 40

    def flush_window(self, ctx, outputs):
        super().flush_window(ctx, outputs)
        return "other" if outputs[-1] >= self.at else None


@WAYS
def test_a_flush_may_stop_the_stream(config, concurrency, shared_pool):
    """A state from flush_window ends it there: its window is committed, on_close is not called."""
    seen = Recorder()
    task = Stops(10**9, window=Count(2), concurrency=concurrency)
    run = began(flow_of(task, config=config, seen=seen), shared_pool)
    assert run.wait(30) == "other"
    assert run.store.get("windows") == [[10, 20], [30, 40]]
    assert cursors(seen) == [2, 4]
    assert not run.store.contains("reason")


def test_the_last_flush_may_stop_it_too(shared_pool):
    """A stop from the partial window at the end wins over on_close."""
    run = began(flow_of(Stops(4, window=Count(3))), shared_pool)
    assert run.wait(30) == "other"
    assert not run.store.contains("reason")


def test_w17_a_stop_must_be_a_state(shared_pool):
    """A list of states from a flush is refused with the cure, and its window is not committed."""

    class Many(Numbers):
        def flush_window(self, ctx, outputs):
            ctx.store.append("windows", outputs)
            return ["end", "other"]

    run = began(flow_of(Many()), shared_pool)
    with pytest.raises(WorkflowError, match="use register_split or register_map"):
        run.wait(30)
    assert run.store.keys() == []


def test_a_failed_flush_commits_nothing(shared_pool):
    """What a window's items wrote is dropped with it; the windows before stay."""

    class Fails(Numbers):
        def flush_window(self, ctx, outputs):
            super().flush_window(ctx, outputs)
            if outputs[-1] == 60:
                raise OSError("sink is full")

    seen = Recorder()
    run = began(flow_of(Fails(window=Count(2)), on_error="failed", seen=seen), shared_pool)
    assert run.wait(30) == "failed"
    assert run.store.get("items") == [1, 2, 3, 4]
    assert cursors(seen) == [2, 4]


@WAYS
def test_process_item_must_return_a_pair(config, concurrency, shared_pool):
    """Anything but (output, cursor) fails the run and says so."""

    class Wrong(Numbers):
        def process_item(self, ctx, item):
            return item

    flow = flow_of(Wrong(concurrency=concurrency), config=config)
    with pytest.raises(WorkflowError, match=r"return \(output, cursor\)"):
        began(flow, shared_pool).wait(30)


# -- items that fail


class Picky(Numbers):
    """Refuses some items."""

    bad = (3, 4, 7)

    def process_item(self, ctx, item):
        ctx.store.append("tried", item)
        if item in self.bad:
            raise ValueError(f"bad item {item}")
        return super().process_item(ctx, item)


@WAYS
def test_the_first_bad_item_fails_the_stream(config, concurrency, shared_pool):
    """By default an item's error is the task's, and the open window is lost."""
    seen = Recorder()
    run = began(flow_of(Picky(window=Count(2), concurrency=concurrency), config=config, seen=seen), shared_pool)
    with pytest.raises(TaskError, match="bad item 3") as caught:
        run.wait(30)
    assert isinstance(caught.value.__cause__, ValueError)
    assert cursors(seen) == [2]


@WAYS
def test_w12_skipped_items_leave_a_trace(config, concurrency, shared_pool):
    """They are in the dead-letter list with what they failed with, observers are told, and their writes dropped."""
    seen = Recorder()
    task = Picky(window=Count(3), concurrency=concurrency, on_item_error=ErrorPolicy.skip())
    run = began(flow_of(task, config=config, seen=seen), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("windows") == [[10, 20, 50], [60, 80, 90], [100]]
    letters = [DeadLetter(item, f"ValueError: bad item {item}") for item in (3, 4, 7)]
    assert run.store.get("dead_letters") == letters
    assert run.store.get("tried") == [1, 2, 5, 6, 8, 9, 10]
    assert [event.branch for event in seen.of("item_failed")] == [2, 3, 6]


def test_a_skipped_item_does_not_move_the_cursor(shared_pool):
    """The cursor that is committed is that of the last item that succeeded."""
    seen = Recorder()
    task = Picky(4, window=Count(9), on_item_error=ErrorPolicy.skip())
    run = began(flow_of(task, seen=seen), shared_pool)
    assert run.wait(30) == "end"
    assert cursors(seen) == [2]
    assert len(run.store.get("dead_letters")) == 2


def test_the_dead_letters_may_have_another_key(shared_pool):
    """The key is a setting."""
    task = Picky(on_item_error=ErrorPolicy.skip(), dead_letters="refused")
    run = began(flow_of(task), shared_pool)
    assert run.wait(30) == "end"
    assert len(run.store.get("refused")) == 3


@pytest.mark.parametrize(("most", "ends"), [(0, "3"), (1, "4"), (2, None)])
def test_errors_in_a_row_are_borne_up_to_a_number(most, ends, shared_pool):
    """One more than that fails; a success starts the count again, across windows."""
    task = Picky(window=Count(1), on_item_error=ErrorPolicy.tolerate(most))
    run = began(flow_of(task), shared_pool)
    if ends is None:
        assert run.wait(30) == "end"
    else:
        with pytest.raises(TaskError, match=f"bad item {ends}"):
            run.wait(30)


@WAYS
def test_w12_items_can_really_be_retried(config, concurrency, shared_pool):
    """With item_retry an item that fails once is tried again before any policy is asked."""

    class Flaky(Numbers):
        def process_item(self, ctx, item):
            if ctx.attempt == 1:
                raise OSError("again")
            return super().process_item(ctx, item)

    task = Flaky(5, item_retry=Retry.fixed(1, 0), concurrency=concurrency, window=Count(2))
    run = began(flow_of(task, config=config), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("windows") == [[10, 20], [30, 40], [50]]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_hung_item_is_killed_and_skipped(concurrency, shared_pool):
    """The attempt timeout bounds each item, and a timed-out one is an error like others."""

    class Hangs(Numbers):
        def process_item(self, ctx, item):
            if item == 2:
                time.sleep(FOREVER)
            return super().process_item(ctx, item)

    task = Hangs(4, concurrency=concurrency, on_item_error=ErrorPolicy.skip(), window=Count(9))
    run = began(flow_of(task, config=TaskConfig(attempt_timeout=3.0)), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("windows") == [[10, 30, 40]]
    assert "did not end within 3 s" in run.store.get("dead_letters")[0].error


def test_an_item_that_takes_its_worker_along_is_skipped(shared_pool):
    """One death is one item."""

    class Dies(Numbers):
        def process_item(self, ctx, item):
            if item == 2:
                os._exit(9)
            return super().process_item(ctx, item)

    run = began(flow_of(Dies(4, concurrency=2, on_item_error=ErrorPolicy.skip(), window=Count(9))), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("windows") == [[10, 30, 40]]


@pytest.mark.parametrize("phase", ["flush_window", "on_close"])
def test_w13_the_other_phases_are_bounded_too(phase, shared_pool):
    """A flush or close that hangs is a timed-out attempt."""

    def hang(self, ctx, _):
        time.sleep(FOREVER)

    task = type("Hangs", (Numbers,), {phase: hang})(2)
    with pytest.raises(TaskTimeoutError):
        began(flow_of(task, config=TaskConfig(attempt_timeout=SOON)), shared_pool).wait(30)


# -- order and parallelism


def test_w13_items_are_processed_in_parallel_and_committed_in_order(shared_pool, tmp_path):
    """The second item ends before the first: outputs and cursors are in order all the same."""

    class Late(Numbers):
        concurrency = 2
        window = Count(1)

        def process_item(self, ctx, item):
            if item == 1:
                await_marks(str(tmp_path), "second")
            elif item == 2:
                mark(str(tmp_path), "second")
            return super().process_item(ctx, item)

    seen = Recorder()
    run = began(flow_of(Late(4), seen=seen), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("windows") == [[10], [20], [30], [40]]
    assert cursors(seen) == [1, 2, 3, 4]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_nothing_is_pulled_ahead_of_what_is_processed(concurrency, shared_pool, tmp_path):
    """While items are held up no more are pulled than are processed at a time."""

    class Pulled(Numbers):
        def open(self, ctx, cursor):
            for item in super().open(ctx, cursor):
                mark(str(tmp_path), f"pulled-{item}")
                yield item

        def process_item(self, ctx, item):
            mark(str(tmp_path), f"begun-{item}")
            await_marks(str(tmp_path), "go")
            return super().process_item(ctx, item)

    run = began(flow_of(Pulled(9, concurrency=concurrency), config=WORKER), shared_pool)
    await_marks(tmp_path, *(f"begun-{item}" for item in range(1, concurrency + 1)))
    pulled = {name for name in marks(tmp_path) if name.startswith("pulled")}
    assert pulled == {f"pulled-{item}" for item in range(1, concurrency + 1)}
    mark(tmp_path, "go")
    assert run.wait(30) == "end"


# -- a failure, and a retry from the last cursor


def test_without_retries_a_source_is_opened_once(shared_pool, tmp_path):
    """A failure of the source is the task's."""

    class Breaks(Numbers):
        def open(self, ctx, cursor):
            mark(str(tmp_path), f"open-{cursor}")
            yield 1
            raise OSError("connection lost")

    with pytest.raises(TaskError, match="connection lost"):
        began(flow_of(Breaks()), shared_pool).wait(30)
    assert marks(tmp_path) == {"open-None"}


@WAYS
def test_a_retry_opens_the_source_at_the_last_cursor(config, concurrency, shared_pool, tmp_path):
    """A stream that breaks again and again goes on from what was committed; progress renews its attempts."""

    class Breaks(Numbers):
        def open(self, ctx, cursor):
            mark(str(tmp_path), f"open-{cursor}")
            yield from itertools.islice(super().open(ctx, cursor), 3)
            if (cursor or 0) < 6:
                raise OSError("connection lost")

    config = TaskConfig(retry=Retry.fixed(1, 0), where=config and config.where)
    run = began(flow_of(Breaks(10, window=Count(2), concurrency=concurrency), config=config), shared_pool)
    assert run.wait(30) == "end"
    assert marks(tmp_path) == {"open-None", "open-2", "open-4", "open-6"}
    assert list(itertools.chain(*run.store.get("windows"))) == [10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_a_stream_without_progress_uses_up_its_attempts(shared_pool):
    """Failing at the same place again is one attempt after the other."""

    class Breaks(Numbers):
        def open(self, ctx, cursor):
            ctx.logger.debug("opened")
            raise OSError("connection lost")

    run = began(flow_of(Breaks(), config=TaskConfig(retry=Retry.fixed(2, 0))), shared_pool)
    with pytest.raises(TaskError, match="attempt 3 of 3"):
        run.wait(30)
    assert run.report().states[0].attempts == 3


def test_w33_a_failure_in_open_is_the_task_s_error(shared_pool):
    """What open raises, also SystemExit, fails the state like any other failure."""

    class Exits(Numbers):
        def open(self, ctx, cursor):
            raise SystemExit(4)

    run = began(flow_of(Exits(), on_error="failed"), shared_pool)
    assert run.wait(30) == "failed"
    assert "SystemExit: 4" in str(run.report().states[0].error)


@pytest.mark.parametrize("bad", [None, 5])
def test_open_must_return_items(bad, shared_pool):
    """What cannot be iterated over is refused."""

    class Bad(Numbers):
        def open(self, ctx, cursor):
            return bad

    with pytest.raises(WorkflowError, match=f"open returned {bad}, which cannot be iterated over"):
        began(flow_of(Bad()), shared_pool).wait(30)


def test_open_must_not_write(shared_pool):
    """A write from the source belongs to no window, and is refused."""

    class Writes(Numbers):
        def open(self, ctx, cursor):
            ctx.store.put("opened", True)
            yield 1

    with pytest.raises(WorkflowError, match="open must not write to the store"):
        began(flow_of(Writes()), shared_pool).wait(30)


# -- cancels and timeouts


class Endless(Numbers):
    """Yields as many items as are free, marks that, and blocks until the run is cancelled."""

    def __init__(self, place, free, **settings):
        super().__init__(**settings)
        self.place = str(place)
        self.free = free

    def open(self, ctx, cursor):
        yield from range((cursor or 0) + 1, self.free + 1)
        mark(self.place, "blocks")
        while not ctx.cancelled and not (ctx.deadline is not None and ctx.deadline <= 0):
            time.sleep(0.001)

    def on_close(self, ctx, reason):
        mark(self.place, f"closed-{reason}")
        return super().on_close(ctx, reason)


@WAYS
def test_a_cancel_drains_the_stream(config, concurrency, shared_pool, tmp_path):
    """The open window is flushed and committed, on_close is told, and the run ends as cancelled."""
    seen = Recorder()
    task = Endless(tmp_path, 5, window=Count(3), concurrency=concurrency)
    run = began(flow_of(task, config=config, seen=seen), shared_pool)
    await_marks(tmp_path, "blocks")
    seen.await_kind("checkpoint")
    run.cancel("enough")
    with pytest.raises(RunCancelledError, match="enough"):
        run.wait(30)
    windows = run.store.get("windows")
    assert windows[0] == [10, 20, 30]
    # The items at the end may not have been through yet, but what is flushed is committed.
    assert cursors(seen) == [window[-1] // 10 for window in windows]
    assert run.store.get("reason") == CloseReason.CANCELLED
    assert len(seen.of("run_cancelled")) == 1
    assert seen.kinds()[-1] == "run_cancelled"


def test_a_cancel_with_an_empty_window_only_closes(shared_pool, tmp_path):
    """Nothing to flush is no flush."""
    run = began(flow_of(Endless(tmp_path, 3, window=Count(3))), shared_pool)
    await_marks(tmp_path, "blocks")
    run.cancel("enough")
    with pytest.raises(RunCancelledError):
        run.wait(30)
    assert run.store.get("windows") == [[10, 20, 30]]
    assert run.store.get("reason") == "cancelled"


def test_a_cancel_ignores_where_a_flush_wants_to_stop(shared_pool, tmp_path):
    """A drained stream ends its run as cancelled, whatever state its flush returns."""

    class Wants(Endless):
        def flush_window(self, ctx, outputs):
            super().flush_window(ctx, outputs)
            return "other"

    run = began(flow_of(Wants(tmp_path, 2, window=Count(9))), shared_pool)
    await_marks(tmp_path, "blocks")
    run.cancel("enough")
    with pytest.raises(RunCancelledError):
        run.wait(30)
    assert run.store.get("windows") == [[10, 20]]
    assert "closed-cancelled" in marks(tmp_path)


def test_an_error_of_on_close_surfaces_from_a_cancel(shared_pool, tmp_path):
    """A close that fails while draining is what the run fails with; the window before it is committed."""

    class Fails(Endless):
        def on_close(self, ctx, reason):
            raise OSError(f"cannot close: {reason}")

    seen = Recorder()
    run = began(flow_of(Fails(tmp_path, 2, window=Count(9)), seen=seen), shared_pool)
    await_marks(tmp_path, "blocks")
    run.cancel("enough")
    with pytest.raises(TaskError, match="cannot close: cancelled"):
        run.wait(30)
    assert cursors(seen) == [2]


def test_a_failed_flush_in_a_drain_still_closes(shared_pool, tmp_path):
    """The flush's error is raised, its window is not committed, and on_close is called all the same."""

    class Fails(Endless):
        def flush_window(self, ctx, outputs):
            super().flush_window(ctx, outputs)
            raise OSError("sink is gone")

    run = began(flow_of(Fails(tmp_path, 2, window=Count(9)), config=TaskConfig(retry=Retry.fixed(3, 0))), shared_pool)
    await_marks(tmp_path, "blocks")
    run.cancel("enough")
    with pytest.raises(TaskError, match="sink is gone"):
        run.wait(30)
    assert not run.store.contains("windows")
    assert "closed-cancelled" in marks(tmp_path)


def test_w13_a_cancel_while_the_source_opens(shared_pool, tmp_path):
    """An open that blocks holds up nothing; as nothing was opened, nothing is closed."""

    class Blocks(Endless):
        def open(self, ctx, cursor):
            mark(self.place, "opening")
            while not ctx.cancelled:
                time.sleep(0.001)
            raise InterruptedError("gave up")

    run = began(flow_of(Blocks(tmp_path, 0)), shared_pool)
    await_marks(tmp_path, "opening")
    run.cancel("enough")
    with pytest.raises(RunCancelledError):
        run.wait(30)
    assert marks(tmp_path) == {"opening"}


def test_the_total_timeout_drains_too(shared_pool, tmp_path):
    """It surfaces as the run's timeout, and on_close is told the reason."""
    run = began(flow_of(Endless(tmp_path, 2, window=Count(9)), total_timeout=4.0, compensation_timeout=20), shared_pool)
    with pytest.raises(WorkflowTimeoutError):
        run.wait(30)
    assert run.store.get("windows") == [[10, 20]]
    assert run.store.get("reason") == CloseReason.TIMED_OUT


def test_a_drain_is_bounded(shared_pool, tmp_path):
    """A flush that hangs in a drain is killed when the compensation timeout is over, and the run ends."""

    class Hangs(Endless):
        def flush_window(self, ctx, outputs):
            time.sleep(FOREVER)

    flow = flow_of(Hangs(tmp_path, 2, window=Count(9)), config=WORKER, compensation_timeout=0.3)
    run = began(flow, shared_pool)
    await_marks(tmp_path, "blocks")
    run.cancel("enough")
    with pytest.raises(TaskTimeoutError):
        run.wait(30)


class Scenic(Numbers):
    """Items that enter the scene and hang."""

    concurrency = 2

    def __init__(self, place):
        super().__init__(2)
        self.place = place

    def process_item(self, ctx, item):
        scene = Scene(self.place)
        scene.enter(item)
        scene.runs(item)
        time.sleep(FOREVER)


def test_a_cancel_kills_items_in_workers(tmp_path):
    """Items under way are dead when the run ends, nothing of them is flushed, and the pool works."""
    with WorkerPool(2) as pool, Witness(tmp_path, 1, 2) as witness:
        run = began(flow_of(Scenic(str(tmp_path))), pool)
        witness.scene.await_runs(1, 2)
        run.cancel("enough")
        with pytest.raises(RunCancelledError):
            run.wait(30)
        assert witness.survivors() == []
        assert not run.store.contains("windows")
        assert_works(pool)


def test_the_source_is_closed_in_the_end(shared_pool, tmp_path):
    """A generator's finally runs, whether the stream ends, stops or fails; its thread ends too."""

    class Closes(Stops):
        def open(self, ctx, cursor):
            try:
                yield from range(1, 100)
            finally:
                mark(str(tmp_path), "closed")

    before = threading.active_count()
    assert began(flow_of(Closes()), shared_pool).wait(30) == "other"
    assert "closed" in marks(tmp_path)
    assert threading.active_count() <= before


def test_a_stream_among_other_states(shared_pool):
    """Its windows are there for the states after it, and a second visit begins at the start."""
    flow = Workflow("test").register_stream("S", Numbers(2)).add_exit_state("done")
    flow.register("end", lambda ctx: "done" if len(ctx.store.get("windows")) == 4 else "S")
    run = began(flow, shared_pool)
    assert run.wait(30) == "done"
    assert run.store.get("windows") == [[10], [20], [10], [20]]


def test_a_mistake_in_items_is_not_endless(shared_pool):
    """A configuration error in an item is not retried by item_retry."""

    class Wrong(Numbers):
        item_retry = Retry.fixed(5, 0)

        def process_item(self, ctx, item):
            if ctx.attempt > 1:
                raise AssertionError("it was tried again")
            raise ConfigurationError("never")

    with pytest.raises(TaskError, match="never"):
        began(flow_of(Wrong()), shared_pool).wait(30)
