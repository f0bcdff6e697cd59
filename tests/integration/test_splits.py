"""What is known of the branches of a split, how they are tried again, and where tasks and items come from."""

from __future__ import annotations

import itertools
import time
from datetime import UTC

import pytest

from canobatch import (
    JoinConfig,
    JoinError,
    JoinStrategy,
    Retry,
    SharedStore,
    SplitResult,
    TaskConfig,
    TaskError,
    WorkerLostError,
    WorkerPool,
    Workflow,
    WorkflowError,
)
from canobatch.errors import RetryExhaustedError, TaskTimeoutError
from tests.support.branches import (
    Act,
    Marker,
    RefusalError,
    failing,
    map_of,
    mark,
    marks,
    ran,
    split_of,
    statuses,
)
from tests.support.watch import await_that

all_, any_ = JoinStrategy.all(), JoinStrategy.any()
quorum, percentage = JoinStrategy.quorum, JoinStrategy.percentage
partial_results, partial_timeout = JoinStrategy.partial_results, JoinStrategy.partial_timeout

#: What a branch is when it was cut, depending on whether it had begun.
CUT = {"cancelled", "not_started"}
#: A limit that is never reached.
LONG = 1000.0


# -- what is known of each branch


def test_every_way_to_end_has_its_status(shared_pool):
    """A branch succeeds, fails, runs into its own timeout, or is lost with its process; each with its error."""
    tasks = [Act(), Act("fail"), Act("hang", config=TaskConfig(attempt_timeout=0.3)), Act("die")]
    final, run = ran(split_of(tasks, partial_timeout(), timeout=LONG), shared_pool)
    assert final == "joined"
    succeeded, failed, timed_out, lost = result = run.report().splits["split"]
    assert statuses(run) == ["succeeded", "failed", "timed_out", "lost"]
    assert (succeeded.value, succeeded.error) == (0, None)
    assert type(failed.error) is TaskError
    assert isinstance(failed.error.__cause__, RefusalError)
    assert isinstance(timed_out.error, TaskTimeoutError)
    assert timed_out.error.limit == 0.3
    assert isinstance(lost.error, WorkerLostError)
    assert lost.error.exitcode == 3
    for branch in (failed, timed_out, lost):
        assert (branch.error.state, branch.error.branch, branch.error.attempt) == ("split", branch.index, 1)
        assert branch.error.path == ("split",)
        assert f"state 'split', branch {branch.index}, attempt 1" in str(branch.error)
    assert [branch.index for branch in result] == [0, 1, 2, 3]
    assert [branch.attempts for branch in result] == [1, 1, 1, 1]
    assert all(branch.started_at.tzinfo is UTC and branch.duration >= 0 for branch in result)
    assert timed_out.duration >= 0.3


def test_begun_is_cancelled_and_not_begun_is_not_started(shared_pool, tmp_path):
    """What the join cuts is cancelled if it had begun, with when and how long; not_started if not, with nothing."""
    place = str(tmp_path)
    tasks = [Act("hang", place), Act(place=place, after=("0.1",)), *[Act("hang", place)] * 3]
    final, run = ran(split_of(tasks, any_, bulkhead=2), shared_pool)
    assert final == "joined"
    assert statuses(run)[:2] == ["cancelled", "succeeded"]
    # The place of the winner may have been given to branch 2 before its success was read.
    assert statuses(run)[2] in CUT
    assert statuses(run)[3:] == ["not_started"] * 2
    result = run.report().splits["split"]
    assert [b.index for b in result.cancelled] == [0, 2, 3, 4]
    assert (result[0].attempts, result[0].error, result[0].value) == (1, None, None)
    assert result[0].started_at.tzinfo is UTC
    assert result[0].duration >= 0
    assert (result[4].attempts, result[4].started_at, result[4].duration, result[4].error) == (0, None, None, None)
    assert not {"3.1", "4.1"} & marks(tmp_path)


def test_a_branch_cut_in_its_back_off_is_cancelled(shared_pool, tmp_path):
    """A branch that waits for its next attempt when the join is settled had begun: it is cancelled."""
    place, config = str(tmp_path), TaskConfig(retry=Retry.fixed(5, LONG))
    tasks = [Act("fail", place, config=config), Act(place=place, after=("0.retried",))]
    final, run = ran(split_of(tasks, any_, place=tmp_path), shared_pool)
    assert final == "joined"
    assert statuses(run) == ["cancelled", "succeeded"]
    assert run.report().splits["split"][0].attempts == 1


def test_usage_is_the_branch_s_own():
    """CPU time and peak memory are those of the branch, not of what ran in the same worker before."""

    def work(ctx, item):
        data = bytearray(item << 20)
        data[::4096] = b"x" * len(data[::4096])
        cpu = time.process_time()
        while time.process_time() - cpu < 0.1:
            pass
        time.sleep(0.1)

    with WorkerPool(1) as pool:
        final, run = ran(map_of(work, [1, 200, 1], all_), pool)
    assert final == "joined"
    small, large, after = run.report().splits["split"]
    for branch in (small, large, after):
        assert branch.cpu_time >= 0.1
        assert branch.duration >= 0.2
    if large.max_rss is not None:
        assert large.max_rss > 200 << 20
    if after.max_rss is not None:
        assert after.max_rss < 200 << 20


def test_a_join_error_shows_the_first_errors(shared_pool):
    """The text of a JoinError has the numbers and the first three errors; the rest is in its result."""
    error, _ = failing(split_of([Act("fail")] * 5, any_), shared_pool)
    text = str(error)
    assert text.startswith("state 'split': any() needs 1 of 5 branches to succeed, 0 did (5 failed, 0 cancelled)")
    assert [f"branch {index} refuses" in text for index in range(5)] == [True, True, True, False, False]
    assert text.endswith("... and 2 more")
    assert error.__cause__ is error.result[0].error
    assert len(error.result.errors) == 5


# -- reading a split in later states


def about(result):
    """Return what a later state can see of a split."""
    return [
        (
            b.index,
            str(b.status),
            b.value,
            b.attempts,
            type(b.error).__name__,
            str(b.error),
            type(getattr(b.error, "__cause__", None)).__name__,
        )
        for b in result
    ]


@pytest.mark.parametrize("where", ["parent", "worker"])
def test_a_later_task_reads_the_split(where, shared_pool, tmp_path):
    """ctx.split gives the whole result to tasks in the parent and in workers alike, errors and causes included."""
    place = str(tmp_path)
    tasks = [
        Act(value={"a": 1}),
        Act("fail"),
        Act("die"),
        Act("hang", place),
        Act(place=place, after=("0.ended", "1.ended", "2.ended", "3.1")),
    ]

    def look(ctx):
        result = ctx.split("split")
        ctx.store.put("seen", (type(result).__name__, result.values, result.summary, about(result)))
        return "end"

    flow = (
        Workflow("test")
        .with_observer(Marker(tmp_path))
        .register_split("split", tasks, JoinConfig(quorum(2), "look"))
        .register("look", look, config=TaskConfig(where=where))
        .add_exit_state("end")
    )
    final, run = ran(flow, shared_pool)
    assert final == "end"
    result = run.report().splits["split"]
    assert isinstance(result, SplitResult)
    kind, values, summary, seen = run.store.get("seen")
    assert (kind, values, summary) == (
        "SplitResult",
        [{"a": 1}, 4],
        "Split results: 2 succeeded, 2 failed, 1 cancelled",
    )
    assert seen == about(result)
    assert seen[1][-1] == "RefusalError"


def test_branches_of_a_later_split_read_the_split(shared_pool):
    """ctx.split works in the branches of a later split too."""
    flow = (
        Workflow("test")
        .register_map("split", lambda ctx, item: item * 10, range(3), JoinConfig(all_, "next"))
        .register_map(
            "next", lambda ctx, item: ctx.split("split")[item].value, range(3), JoinConfig(all_, "end", into="v")
        )
        .add_exit_state("end")
    )
    assert ran(flow, shared_pool)[1].store.get("v") == [0, 10, 20]


def test_the_last_visit_of_a_split_counts(shared_pool):
    """After a second visit ctx.split and the report have the second result, in the parent and in workers."""

    def again(ctx):
        ctx.store.append("seen", ctx.split("split").values)
        return "split" if len(ctx.store.get("seen")) < 2 else "look"

    flow = (
        Workflow("test")
        .register_map("split", lambda ctx, item: len(ctx.store.get("seen", [])), [1], JoinConfig(all_, "again"))
        .register("again", again, config=TaskConfig(where="worker"))
        .register("look", lambda ctx: ctx.store.append("seen", ctx.split("split").values) or "end")
        .add_exit_state("end")
    )
    _, run = ran(flow, shared_pool)
    assert run.store.get("seen") == [[0], [1], [1]]
    assert run.report().splits["split"].values == [1]


@pytest.mark.parametrize("where", ["parent", "worker"])
def test_a_split_that_has_not_ended_cannot_be_read(where, shared_pool):
    """ctx.split of any other state is a WorkflowError that names the state."""
    flow = (
        Workflow("test")
        .register("split", lambda ctx: ctx.split("other"), config=TaskConfig(where=where))
        .add_exit_state("end")
    )
    with pytest.raises(TaskError, match="no split of state 'other' has ended in this run") as caught:
        flow.orchestrate("split", pool=shared_pool)
    assert isinstance(caught.value.__cause__, WorkflowError)


# -- retries of branches


def test_a_branch_is_retried_as_its_configuration_says(shared_pool, tmp_path):
    """A branch that fails twice and then succeeds is one success after exactly three attempts."""
    config = TaskConfig(retry=Retry.fixed(4, 0.01))
    final, run = ran(split_of([Act("fail fail ok", str(tmp_path), config=config), Act()], all_), shared_pool)
    assert final == "joined"
    assert [branch.attempts for branch in run.report().splits["split"]] == [3, 1]
    assert marks(tmp_path) == {"0.1", "0.2", "0.3"}
    assert run.report().states[0].attempts == 4


def test_a_branch_that_exhausts_its_attempts_fails(shared_pool):
    """After the last attempt the branch has a RetryExhaustedError with the number of attempts and the last error."""
    config = TaskConfig(retry=Retry.fixed(2, 0.0))
    short = TaskConfig(retry=Retry.fixed(1, 0.0), attempt_timeout=0.2)
    tasks = [Act("fail", config=config), Act("die", config=config), Act("hang", config=short)]
    error, _ = failing(split_of(tasks, all_), shared_pool)
    failed, lost, timed_out = error.result
    for branch, attempts, last in (
        (failed, 3, RefusalError),
        (lost, 3, WorkerLostError),
        (timed_out, 2, TaskTimeoutError),
    ):
        assert isinstance(branch.error, RetryExhaustedError)
        assert branch.error.attempts == branch.attempts == attempts
        assert isinstance(branch.error.last_error, last)
        assert branch.error.__cause__ is branch.error.last_error
    assert [str(branch.status) for branch in error.result] == ["failed", "lost", "timed_out"]


def test_tasks_of_one_split_have_their_own_configurations(shared_pool):
    """Each task brings its configuration; the workflow's default is for those without, the registration's for all."""

    def fail(ctx):
        raise RefusalError("no")

    tasks = [Act("fail", config=TaskConfig(retry=Retry.fixed(2, 0.0))), fail]

    def attempts(**options):
        flow = Workflow("test", default_config=TaskConfig(retry=Retry.fixed(1, 0.0)))
        flow.register_split("split", tasks, JoinConfig(all_, "end", on_failure="end"), **options).add_exit_state("end")
        return [branch.attempts for branch in ran(flow, shared_pool)[1].report().splits["split"]]

    assert attempts() == [3, 2]
    assert attempts(config=TaskConfig()) == [1, 1]


# -- where tasks and items come from


def test_tasks_may_be_made_when_the_state_is_entered(shared_pool):
    """A callable makes the tasks from the store, of any mix of types, anew in every visit."""

    class Times:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, ctx):
            return self.factor * ctx.branch

    async def slow(ctx):
        return "async"

    def make(ctx):
        count = ctx.store.get("count")
        return [*(Times(10) for _ in range(count)), Act(value="act"), lambda: "bare", slow]

    def count(ctx):
        ctx.store.add("count")
        ctx.store.append("all", ctx.store.get("v", None))
        return "split" if ctx.store.get("count") < 3 else "end"

    flow = (
        Workflow("test")
        .register("begin", count)
        .register_split("split", make, JoinConfig(all_, "begin", into="v"))
        .add_exit_state("end")
    )
    run = flow.start("begin", pool=shared_pool)
    assert run.wait(60) == "end"
    assert run.store.get("all") == [None, [0, "act", "bare", "async"], [0, 10, "act", "bare", "async"]]


@pytest.mark.parametrize(
    "items",
    [
        [3, 4],
        (3, 4),
        range(3, 5),
        {3: "a", 4: "b"},
        "numbers",
        lambda: [3, 4],
        lambda ctx: ctx.store.get("numbers"),
        lambda: iter([3, 4]),
        lambda: (n for n in [3, 4]),
        lambda: "34",
    ],
    ids=["list", "tuple", "range", "dict", "key", "callable", "with ctx", "iterator", "generator", "text"],
)
def test_items_come_from_anywhere(items, shared_pool):
    """A map goes over any iterable, a key of the store, or what a callable makes, run after run."""
    store = SharedStore()
    store.put("numbers", (3, 4))
    flow = map_of(lambda ctx, item: int(item) * 2, items, all_, into="v", workflow={"store": store})
    for _ in range(2):
        assert ran(flow, shared_pool)[0] == "joined"
        assert store.get("v") == [6, 8]
        store.remove("v")


def test_a_generator_serves_one_run(shared_pool):
    """A generator that was used up by one run is no empty list in the next: that run is refused, with the cure."""
    flow = map_of(lambda ctx, item: item, (n for n in range(3)), all_, into="v")
    assert ran(flow, shared_pool)[1].store.get("v") == [0, 1, 2]
    with pytest.raises(WorkflowError, match=r"state 'split'.*(callable|list)"):
        flow.orchestrate("split", pool=shared_pool)


def test_a_slow_generator_does_not_hold_up_what_it_has_given(shared_pool, tmp_path):
    """Items are sent as they come: a generator may take its time for the next one, and may even wait for the last."""

    def work(ctx, place):
        mark(place, f"{ctx.branch}.ran")
        return ctx.branch

    def items():
        for index in range(5):
            yield str(tmp_path)
            await_that((tmp_path / f"{index}.ran").exists, f"branch {index} should run", timeout=20)

    final, run = ran(map_of(work, items, all_, into="v"), shared_pool)
    assert final == "joined"
    assert run.store.get("v") == [0, 1, 2, 3, 4]


def test_a_generator_without_end_is_fine_for_who_needs_only_some(shared_pool):
    """A quorum over an endless generator joins, and the generator is not asked for much more."""
    asked = 0

    def items():
        nonlocal asked
        for index in itertools.count():
            asked = index
            yield index

    final, run = ran(map_of(lambda ctx, item: item, items, quorum(3), into="v"), shared_pool)
    assert final == "joined"
    assert len(run.store.get("v")) == 3
    assert asked < 100_000
    result = run.report().splits["split"]
    assert len(result.successes) == 3
    assert {str(b.status) for b in result} <= {"succeeded"} | CUT


def test_a_percentage_of_a_generator_is_of_all_its_items(shared_pool):
    """A percentage waits until it is known of how many, then joins with that many; early successes count."""

    def items():
        yield from range(10)

    final, run = ran(map_of(lambda ctx, item: item, items, percentage(0.5), into="v"), shared_pool)
    assert final == "joined"
    assert len(run.store.get("v")) >= 5

    def fail_on_most(ctx, item):
        if item > 3:
            raise RefusalError("no")

    error, _ = failing(map_of(fail_on_most, items, percentage(0.5)), shared_pool)
    assert "percentage(0.5) needs 5 of 10 branches to succeed, 4 did (6 failed" in str(error)


def test_a_length_that_lies_does_not_hang(shared_pool):
    """An iterable that gives fewer items than its length promised is joined by what it gave, or refused."""

    class Short:
        def __len__(self):
            return 5

        def __iter__(self):
            return iter([1, 2])

    run = map_of(lambda ctx, item: item, Short, all_, into="v").start("split", pool=shared_pool)
    try:
        assert run.wait(20) == "joined"
        assert run.store.get("v") == [1, 2]
    except TimeoutError:
        run.cancel()
        with pytest.raises(Exception, match="cancelled"):
            run.wait(60)
        raise
    except (JoinError, WorkflowError):
        pass


def test_many_branches_are_many_results(shared_pool):
    """A few thousand branches all run once, in order, with their results."""
    final, run = ran(map_of(lambda ctx, item: item * 2, range(3000), all_, into="v"), shared_pool)
    assert final == "joined"
    assert run.store.get("v") == [n * 2 for n in range(3000)]
    assert [b.attempts for b in run.report().splits["split"]] == [1] * 3000
