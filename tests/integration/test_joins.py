"""Splits over real processes: every strategy, what is accepted and cut, and what is known of it afterwards."""

from __future__ import annotations

import itertools
import random
import time
from datetime import UTC, timedelta

import pytest

from canobatch import (
    JoinConfig,
    JoinError,
    JoinStrategy,
    Retry,
    RunCancelledError,
    SharedStore,
    SplitResult,
    TaskConfig,
    TaskError,
    WorkerLostError,
    WorkerPool,
    Workflow,
    WorkflowError,
)
from canobatch.errors import ConfigurationError, RetryExhaustedError, TaskTimeoutError
from tests.support.branches import (
    Act,
    Marker,
    RefusalError,
    await_marks,
    contents,
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


def failing(workflow, pool):
    """Run a workflow that must fail its join; return the error and the run."""
    run = workflow.start("split", pool=pool)
    with pytest.raises(JoinError) as caught:
        run.wait(100)
    return caught.value, run


# -- strategies


def test_all_joins_when_every_branch_succeeded(shared_pool):
    """all() waits for every branch and accepts all of them."""
    final, run = ran(split_of([Act(), Act(), Act()], all_, into="v"), shared_pool)
    assert final == "joined"
    assert statuses(run) == ["succeeded"] * 3
    assert run.store.get("v") == [0, 1, 2]


def test_all_fails_when_one_branch_failed_after_the_others_ended(shared_pool, tmp_path):
    """all() with a failed branch lets the others run to their end, then fails."""
    tasks = [Act("fail"), Act(place=str(tmp_path), after=("0.ended",)), Act()]
    error, run = failing(split_of(tasks, all_, place=tmp_path, into="v"), shared_pool)
    assert statuses(run) == ["failed", "succeeded", "succeeded"]
    assert error.result == run.report().splits["split"]
    assert "all() needs 3 of 3 branches to succeed, 2 did (1 failed, 0 cancelled)" in str(error)
    assert contents(run.store) == {}


def test_any_joins_with_the_first_success_and_kills_the_rest(shared_pool, tmp_path):
    """any() passes over failures, accepts the first success, and cuts what still runs."""
    place = str(tmp_path)
    tasks = [Act("hang", place), Act("fail"), Act("hang", place), Act(place=place, after=("0.1", "2.1", "1.ended"))]
    final, run = ran(split_of(tasks, any_, place=tmp_path, into="v"), shared_pool)
    assert final == "joined"
    assert statuses(run) == ["cancelled", "failed", "cancelled", "succeeded"]
    assert run.store.get("v") == [3]


def test_any_fails_when_every_branch_failed(shared_pool):
    """any() without any success fails with the errors of all branches."""
    error, run = failing(split_of([Act("fail")] * 3, any_), shared_pool)
    assert statuses(run) == ["failed"] * 3
    assert [branch.error.branch for branch in error.result.errors] == [0, 1, 2]


@pytest.mark.parametrize("strategy", [quorum(2), percentage(0.5), percentage(0.3), partial_results(2)], ids=str)
def test_enough_successes_join_and_the_rest_is_killed(strategy, shared_pool, tmp_path):
    """quorum, percentage and partial_results join with the success that is enough, and keep outcomes so far."""
    place = str(tmp_path)
    tasks = [
        Act("hang", place),
        Act("fail"),
        Act(after=("1.ended",), place=place),
        Act(after=("0.1", "2.ended"), place=place),
    ]
    final, run = ran(split_of(tasks, strategy, place=tmp_path, into="v"), shared_pool)
    assert final == "joined"
    assert statuses(run) == ["cancelled", "failed", "succeeded", "succeeded"]
    assert run.store.get("v") == [2, 3]


@pytest.mark.parametrize("strategy", [quorum(3), percentage(0.75), partial_results(3)], ids=str)
def test_too_few_successes_fail_when_all_have_ended(strategy, shared_pool, tmp_path):
    """A strategy that cannot be met any more still lets the branches end, then fails."""
    place = str(tmp_path)
    tasks = [
        Act("fail"),
        Act("fail"),
        Act(place=place, after=("0.ended", "1.ended")),
        Act(place=place, after=("2.ended",)),
    ]
    error, run = failing(split_of(tasks, strategy, place=tmp_path), shared_pool)
    assert statuses(run) == ["failed", "failed", "succeeded", "succeeded"]
    assert f"{strategy} needs 3 of 4 branches to succeed, 2 did (2 failed, 0 cancelled)" in str(error)


@pytest.mark.parametrize("strategy", [any_, quorum(2), percentage(0.25), partial_results(3)], ids=str)
def test_exactly_as_many_as_needed_are_accepted(strategy, shared_pool):
    """Of many branches that end at the same time the first n are accepted, and nobody else's effects exist."""

    def write(ctx, item):
        ctx.store.append("who", ctx.branch)
        return ctx.branch

    flow = map_of(write, range(12), strategy, into="v")
    for _ in range(5):
        final, run = ran(flow, shared_pool)
        assert final == "joined"
        accepted = run.store.get("v")
        assert len(accepted) == strategy.needed(12)
        assert accepted == sorted(accepted) == run.store.get("who")
        assert [b.index for b in run.report().splits["split"].successes] == accepted
        assert {status for status in statuses(run) if status != "succeeded"} <= CUT


def test_partial_timeout_joins_early_when_all_have_ended(shared_pool):
    """partial_timeout does not wait for its timeout when no branch runs any more."""
    final, run = ran(split_of([Act(), Act("fail"), Act()], partial_timeout(), timeout=LONG, into="v"), shared_pool)
    assert final == "joined"
    assert statuses(run) == ["succeeded", "failed", "succeeded"]
    assert run.store.get("v") == [0, 2]


def test_partial_timeout_joins_with_what_there_is(shared_pool):
    """At the timeout partial_timeout accepts the successes so far and kills the rest."""
    tasks = [Act(), Act("fail"), Act(), Act("hang"), Act("hang")]
    final, run = ran(
        split_of(tasks, partial_timeout(2), timeout=timedelta(seconds=3), into="v", bulkhead=2), shared_pool
    )
    assert final == "joined"
    assert statuses(run)[:3] == ["succeeded", "failed", "succeeded"]
    assert set(statuses(run)[3:]) <= CUT
    assert run.store.get("v") == [0, 2]


def test_partial_timeout_with_too_few_successes_times_out(shared_pool, tmp_path):
    """With fewer successes than its minimum partial_timeout fails by its timeout."""
    error, run = failing(split_of([Act("hang"), Act("hang")], partial_timeout(), timeout=0.2), shared_pool)
    assert isinstance(error.__cause__, TimeoutError)
    assert set(statuses(run)) <= CUT


def test_partial_timeout_fails_when_all_failed(shared_pool):
    """Failures are no successes: partial_timeout fails when every branch has failed, and that is no timeout."""
    flow = split_of([Act("fail")] * 2, partial_timeout(), timeout=LONG, on_failure="failed", on_timeout="late")
    assert ran(flow, shared_pool)[0] == "failed"


def test_one_branch_is_a_split(shared_pool):
    """A split of a single branch joins by it, under every strategy."""
    for strategy in (all_, any_, quorum(1), percentage(1.0), partial_results(1), partial_timeout()):
        assert ran(split_of([Act()], strategy, timeout=LONG), shared_pool)[0] == "joined"


@pytest.mark.parametrize("seed", range(5))
def test_random_splits_end_as_the_table_says(seed, shared_pool):
    """Whatever strategy, outcomes, retries and bulkhead: verdict, accepted and stored are as the table says."""
    chance = random.Random(seed)

    def act(ctx, item):
        needs, succeeds = item
        ctx.store.append("who", ctx.branch)
        if ctx.attempt < needs or not succeeds:
            raise RefusalError(ctx.branch)
        return ctx.branch

    for _ in range(12):
        total = chance.randint(1, 9)
        items = [(chance.randint(1, 2), chance.random() < 0.7) for _ in range(total)]
        k = chance.randint(1, total)
        strategy = chance.choice([all_, any_, quorum(k), percentage(k / total), partial_results(k), partial_timeout(k)])
        flow = map_of(
            act,
            chance.choice([items, lambda items=items: iter(items)]),
            strategy,
            timeout=LONG,
            into="v",
            on_failure="failed",
            bulkhead=chance.choice([None, 1, 2, 3]),
            config=TaskConfig(retry=Retry.fixed(1, chance.choice([0.0, 0.001]))),
        )
        final, run = ran(flow, shared_pool)
        result = run.report().splits["split"]
        accepted = [branch.index for branch in result.successes]
        good = [index for index, (_, succeeds) in enumerate(items) if succeeds]
        needed = strategy.needed(total)
        story = f"seed {seed}: {strategy} of {items}: {final}, {result}"
        assert (final == "joined") == (len(good) >= needed), story
        assert set(accepted) <= set(good), story
        assert all(branch.attempts == items[branch.index][0] for branch in result.successes), story
        assert all(branch.attempts == 2 for branch in result.errors), story
        if final == "failed":
            assert contents(run.store) == {}, story
            assert accepted == good, story
        else:
            assert len(accepted) == (len(good) if strategy.kind == "partial_timeout" else needed), story
            assert contents(run.store) == {"v": accepted, "who": accepted}, story


# -- impossible or nothing to do


def nothing():
    """Give no items, or no tasks."""
    return []


@pytest.mark.parametrize("strategy", [all_, percentage(0.5)], ids=str)
def test_nothing_to_do_joins_at_once(strategy):
    """An empty split joins with an empty list, and needs no worker for that."""
    for flow in (
        split_of([], strategy, into="v", store_partial_results=True),
        split_of(nothing, strategy, into="v", store_partial_results=True),
        map_of(max, [], strategy, into="v", store_partial_results=True),
        map_of(lambda ctx, item: 1, nothing, strategy, into="v", store_partial_results=True),
        map_of(lambda ctx, item: 1, lambda: iter(()), strategy, into="v", store_partial_results=True),
    ):
        final, run = ran(flow, None)
        assert final == "joined"
        assert run.store.get("v") == []
        assert run.store.get("split_results_summary") == "Split results: 0 succeeded, 0 failed, 0 cancelled"
        assert len(run.report().splits["split"]) == 0


@pytest.mark.parametrize("strategy", [any_, quorum(2), partial_results(1)], ids=str)
@pytest.mark.parametrize("source", [nothing, lambda: iter(())], ids=["list", "generator"])
def test_nothing_to_do_fails_what_needs_a_success(strategy, source, shared_pool):
    """When it turns out at run time that there is nothing to do, a strategy that needs a success fails its join."""
    error, _ = failing(map_of(lambda ctx, item: 1, source, strategy), shared_pool)
    assert "of 0 branches to succeed, 0 did" in str(error)
    assert ran(map_of(lambda ctx, item: 1, source, strategy, on_failure="failed"), shared_pool)[0] == "failed"


def test_an_impossible_quorum_found_at_run_time(shared_pool):
    """A number that the branches made at run time can never reach is refused before any of them runs."""
    flow = split_of(lambda: [Act("hang")] * 2, quorum(3))
    with pytest.raises(ConfigurationError, match=r"state 'split': quorum\(3\) can never be met by 2 branches"):
        flow.orchestrate("split", pool=shared_pool)


def test_a_generator_that_ends_too_early_fails_the_join(shared_pool):
    """A quorum larger than what a generator gives fails when that is known, and says the numbers."""
    error, _ = failing(map_of(lambda ctx, item: item, lambda: iter([1, 2]), quorum(3)), shared_pool)
    assert "quorum(3) needs 3 of 2 branches to succeed, 2 did" in str(error)


# -- timeouts


@pytest.mark.parametrize("strategy", [all_, any_, quorum(2), percentage(0.5), partial_results(2)], ids=str)
def test_a_split_that_is_not_satisfied_in_time_fails(strategy, shared_pool, tmp_path):
    """At its timeout a split is killed and fails with a JoinError whose cause is a TimeoutError."""
    place = str(tmp_path)
    error, run = failing(split_of([Act("hang", place)] * 5, strategy, timeout=0.3, bulkhead=2), shared_pool)
    assert isinstance(error.__cause__, TimeoutError)
    assert "it timed out after 0.3 s" in str(error)
    assert error.state == "split"
    begun = {name for name in marks(tmp_path) if name.endswith(".1")}
    cancelled = {f"{b.index}.1" for b in error.result if b.status == "cancelled"}
    assert begun <= cancelled
    assert len(cancelled) <= 2
    assert set(statuses(run)) <= CUT
    assert statuses(run)[2:] == ["not_started"] * 3


def test_no_time_at_all_is_a_timeout(shared_pool):
    """A timeout of zero fails a split that is not satisfied from the start."""
    error, _ = failing(split_of([Act("hang")], all_, timeout=0), shared_pool)
    assert isinstance(error.__cause__, TimeoutError)


def test_queueing_counts(shared_pool, tmp_path):
    """The split's clock starts with the split: branches that wait for a worker have no more time than others."""
    hold = split_of([Act("hang", str(tmp_path))] * 4, all_).start("split", pool=shared_pool)
    try:
        await_marks(tmp_path, *(f"{index}.1" for index in range(4)))
        error, run = failing(split_of([Act()] * 2, all_, timeout=0.2), shared_pool)
    finally:
        hold.cancel()
        with pytest.raises(RunCancelledError):
            hold.wait(60)
    assert isinstance(error.__cause__, TimeoutError)
    assert statuses(run) == ["not_started"] * 2


def test_a_satisfied_split_is_not_timed_out(shared_pool):
    """A split that joins before its timeout ends then, and nothing happens when the time has passed."""
    flow = split_of([Act("hang"), Act()], any_, timeout=5.0, on_timeout="late")
    assert ran(flow, shared_pool)[0] == "joined"


@pytest.mark.parametrize("strategy", [quorum(2), partial_timeout(2), all_], ids=str)
def test_what_had_come_before_the_timeout_counts(strategy, shared_pool, tmp_path):
    """A run that is slow to read what its branches sent takes it into account when the timeout is over."""
    begun = time.monotonic()

    class Slow:
        def on_event(self, event):
            if event.kind == "branch_finished":
                # The other branch has long ended when this is over, and so has the time.
                time.sleep(max(0.0, begun + 2.2 - time.monotonic()))

    flow = split_of([Act(), Act()], strategy, timeout=2.0, into="v").with_observer(Slow())
    final, run = ran(flow, shared_pool)
    assert final == "joined"
    assert run.store.get("v") == [0, 1]


def test_branches_know_their_deadline(shared_pool):
    """ctx.deadline is what is left of the nearest of attempt, split and run; None when nothing limits."""

    def deadline(ctx, item):
        return ctx.deadline

    def first(flow):
        return ran(flow, shared_pool)[1].store.get("v")[0]

    assert first(map_of(deadline, [1], all_, into="v")) is None
    assert 0 < first(map_of(deadline, [1], all_, into="v", timeout=LONG)) <= LONG
    config = TaskConfig(attempt_timeout=500.0)
    assert 0 < first(map_of(deadline, [1], all_, into="v", timeout=LONG, config=config)) <= 500.0
    assert 0 < first(map_of(deadline, [1], all_, into="v", timeout=LONG, workflow={"total_timeout": 400.0})) <= 400.0


# -- other ways than the error


def test_a_failure_may_lead_to_another_state(shared_pool):
    """With on_failure a join that is not met goes there; the path and the report say so."""
    final, run = ran(split_of([Act("fail"), Act()], all_, on_failure="failed"), shared_pool)
    assert final == "failed"
    report = run.report()
    assert report.path == ["split", "failed"]
    assert isinstance(report.states[0].error, JoinError)
    assert report.error is None


def test_a_timeout_may_lead_to_another_state(shared_pool):
    """With on_timeout a split that times out goes there; without it to on_failure."""
    hang = [Act("hang")]
    assert ran(split_of(hang, all_, timeout=0.1, on_failure="failed", on_timeout="late"), shared_pool)[0] == "late"
    assert ran(split_of(hang, all_, timeout=0.1, on_timeout="late"), shared_pool)[0] == "late"
    assert ran(split_of(hang, all_, timeout=0.1, on_failure="failed"), shared_pool)[0] == "failed"


def test_on_timeout_is_not_for_failures(shared_pool):
    """A join that is not met in time but for failures is no timeout."""
    fail = [Act("fail")]
    assert ran(split_of(fail, all_, timeout=LONG, on_failure="failed", on_timeout="late"), shared_pool)[0] == "failed"
    failing(split_of(fail, all_, timeout=LONG, on_timeout="late"), shared_pool)


def test_a_failed_split_commits_nothing_but_stays_readable(shared_pool):
    """On the way to on_failure nothing of the split is in the store, and its values are there by ctx.split."""

    def write(ctx, item):
        ctx.store.put(f"key {item}", item)
        ctx.store.append("list", item)
        if item == 1:
            raise RefusalError("no")
        return item * 10

    def look(ctx):
        result = ctx.split("split")
        ctx.store.put("seen", (ctx.store.keys(), result.values, result.summary))
        return "failed"

    flow = map_of(write, range(3), all_, on_failure="look", into="v", store_partial_results=True).register("look", look)
    final, run = ran(flow, shared_pool)
    assert final == "failed"
    assert contents(run.store) == {"seen": ([], [0, 20], "Split results: 2 succeeded, 1 failed, 0 cancelled")}


# -- fail_fast


def test_fail_fast_kills_what_cannot_help_any_more(shared_pool, tmp_path):
    """With fail_fast the first failure of an all() ends the split, and the rest is killed."""
    place = str(tmp_path)
    tasks = [Act("hang", place), Act("fail", place, after=("0.1", "2.1")), Act("hang", place)]
    error, run = failing(split_of(tasks, all_, fail_fast=True), shared_pool)
    assert statuses(run) == ["cancelled", "failed", "cancelled"]
    assert "(1 failed, 2 cancelled)" in str(error)


def test_fail_fast_waits_while_success_is_possible(shared_pool, tmp_path):
    """With fail_fast a quorum fails with the failure that puts it out of reach, not before."""
    place = str(tmp_path)
    tasks = [
        Act("fail"),
        Act(place=place, after=("0.ended",)),
        Act("fail", place, after=("1.ended", "3.1")),
        Act("hang", place),
    ]
    _, run = failing(split_of(tasks, quorum(3), place=tmp_path, fail_fast=True), shared_pool)
    assert statuses(run) == ["failed", "succeeded", "failed", "cancelled"]


# -- bulkheads


def overlap(spans):
    """Return how many of these (begin, end) were going on at once, at most."""
    steps = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    return max(itertools.accumulate(step for _, step in steps))


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_bulkhead_limits_how_many_run_at_once(limit, shared_pool):
    """With bulkhead=n at most n branches run at a time, and all do run."""

    def span(ctx, item):
        begun = time.monotonic()
        time.sleep(item % 3 * 0.004)
        return begun, time.monotonic()

    final, run = ran(map_of(span, range(14), all_, bulkhead=limit, into="v"), shared_pool)
    assert final == "joined"
    assert overlap(run.store.get("v")) <= limit


def test_without_a_bulkhead_all_workers_are_used(shared_pool, tmp_path):
    """As many branches run at once as there are workers."""
    everyone = tuple(f"{index}.1" for index in range(4))
    tasks = [Act(place=str(tmp_path), after=everyone) for _ in range(4)]
    assert ran(split_of(tasks, all_), shared_pool)[0] == "joined"


def test_a_bulkhead_is_used_to_the_full(shared_pool, tmp_path):
    """With bulkhead=n n branches do run at a time."""
    tasks = [Act(place=str(tmp_path), after=("0.1", "1.1", "2.1")) for _ in range(3)]
    assert ran(split_of(tasks, all_, bulkhead=3), shared_pool)[0] == "joined"


def test_a_bulkhead_wider_than_the_split_is_none(shared_pool):
    """A bulkhead larger than the number of branches changes nothing."""
    assert ran(split_of([Act()] * 3, all_, bulkhead=50), shared_pool)[0] == "joined"


def test_a_branch_in_its_back_off_holds_no_place(shared_pool, tmp_path):
    """While a branch waits for its next attempt another runs in its place."""
    place, config = str(tmp_path), TaskConfig(retry=Retry.fixed(1, 1.0))
    # The second attempt comes only after branch 1 has ended: it must have run before.
    tasks = [Act("fail ok", place, config=config), Act(place=place, after=("0.retried",))]
    final, run = ran(split_of(tasks, all_, place=tmp_path, bulkhead=1), shared_pool)
    assert final == "joined"
    first, second = run.report().splits["split"]
    assert second.started_at < first.started_at
    assert first.attempts == 2


# -- values into the store


def test_values_are_in_branch_order(shared_pool, tmp_path):
    """into holds the accepted values in branch order, whoever ended first."""
    place = str(tmp_path)
    tasks = [Act(place=place, after=(f"{index + 1}.ended",), value=index * 10) for index in range(3)] + [
        Act(value="last")
    ]
    final, run = ran(split_of(tasks, all_, place=tmp_path, into="v"), shared_pool)
    assert final == "joined"
    assert run.store.get("v") == [0, 10, 20, "last"]


def test_none_is_a_value(shared_pool):
    """A branch that returns nothing is accepted with None."""
    _, run = ran(map_of(lambda ctx, item: None, range(3), all_, into="v"), shared_pool)
    assert run.store.get("v") == [None, None, None]


def test_what_a_branch_returns_is_a_value_not_a_state(shared_pool):
    """The states that branches return are ignored: only the join state is entered."""
    final, run = ran(split_of([lambda: "failed", lambda: ["late", "failed"]], all_, into="v"), shared_pool)
    assert final == "joined"
    assert run.store.get("v") == ["failed", ["late", "failed"]]


def test_without_into_the_values_are_on_the_report(shared_pool):
    """Nothing is stored without into, and the values are in the split's result."""
    _, run = ran(split_of([Act(value=[1]), Act(value=[2])], all_), shared_pool)
    assert contents(run.store) == {}
    assert run.report().splits["split"].values == [[1], [2]]


def test_into_replaces_what_was_there(shared_pool):
    """A second visit of a split puts its own values, and no trace of the first's."""

    def again(ctx):
        ctx.store.append("seen", ctx.store.get("v"))
        return "split" if len(ctx.store.get("seen")) < 3 else "end"

    flow = (
        Workflow("loop")
        .register_map(
            "split",
            lambda ctx, item: (item, len(ctx.store.get("seen", []))),
            range(2),
            JoinConfig(all_, "again", into="v"),
        )
        .register("again", again)
        .add_exit_state("end")
    )
    final, run = ran(flow, shared_pool)
    assert final == "end"
    assert run.store.get("seen") == [[(0, n), (1, n)] for n in range(3)]
    assert run.report().path == ["split", "again"] * 3 + ["end"]


def test_one_split_feeds_the_next(shared_pool):
    """A key that one split puts may be what the next one maps over."""
    flow = (
        Workflow("two levels")
        .register_map("split", lambda ctx, item: [item] * item, [1, 2, 3], JoinConfig(all_, "reduce", into="lists"))
        .register_map("reduce", lambda ctx, item: sum(item), "lists", JoinConfig(all_, "end", into="sums"))
        .add_exit_state("end")
    )
    assert ran(flow, shared_pool)[1].store.get("sums") == [1, 4, 9]


# -- reduce


def follow(folded, value):
    """Keep what was folded, in order."""
    return [*folded, value]


def keep(folded, value):
    """Change what is folded in place."""
    folded.append(value)
    return folded


def test_reduce_folds_in_branch_order(shared_pool, tmp_path):
    """reduce folds the accepted values in branch order, whoever ended first, and keeps none of them."""
    place = str(tmp_path)
    tasks = [Act(place=place, after=(f"{index + 1}.ended",)) for index in range(3)] + [Act()]
    final, run = ran(split_of(tasks, all_, place=tmp_path, into="v", reduce=(follow, ["start"])), shared_pool)
    assert final == "joined"
    assert run.store.get("v") == ["start", 0, 1, 2, 3]
    assert run.report().splits["split"].values == [None] * 4


def test_reduce_may_fold_on_arrival(shared_pool, tmp_path):
    """With ordered=False each value is folded when it arrives."""
    place = str(tmp_path)
    tasks = [Act(place=place, after=(f"{index + 1}.ended",)) for index in range(3)] + [Act()]
    flow = split_of(tasks, all_, place=tmp_path, into="v", reduce=(follow, []), ordered=False)
    final, run = ran(flow, shared_pool)
    assert final == "joined"
    assert run.store.get("v") == [3, 2, 1, 0]


@pytest.mark.parametrize("ordered", [True, False])
def test_reduce_folds_what_was_accepted(ordered, shared_pool, tmp_path):
    """Failed and cut branches are not folded, and hold up none of the others."""
    place = str(tmp_path)
    tasks = [
        Act("hang", place),
        Act("fail", place),
        Act(place=place, after=("1.ended",)),
        Act(place=place, after=("0.1", "2.ended")),
    ]
    flow = split_of(tasks, quorum(2), place=tmp_path, into="v", reduce=(follow, []), ordered=ordered)
    final, run = ran(flow, shared_pool)
    assert final == "joined"
    assert run.store.get("v") == [2, 3]


def test_the_initial_value_serves_every_run(shared_pool):
    """A reduce that changes its value in place begins anew in every run and every visit."""
    flow = map_of(lambda ctx, item: item, range(3), all_, into="v", reduce=(keep, []))
    assert [ran(flow, shared_pool)[1].store.get("v") for _ in range(3)] == [[0, 1, 2]] * 3


def test_a_long_generator_is_reduced_in_order(shared_pool):
    """20 000 items of a generator are folded in order, each once, and asked for only as they are needed."""
    folded, ahead = 0, []

    def items(ctx):
        for index in range(20_000):
            if index % 1000 == 0:
                ahead.append(index - folded)
            yield index

    def fold(total, value):
        nonlocal folded
        assert value == folded
        folded += 1
        return total + value

    final, run = ran(map_of(lambda ctx, item: item, items, all_, into="v", reduce=(fold, 0)), shared_pool)
    assert final == "joined"
    assert run.store.get("v") == sum(range(20_000))
    assert folded == 20_000
    assert min(ahead[1:]) < 20_000 / 2


def test_a_slow_first_item_holds_up_the_generator(shared_pool):
    """While the first item runs the others wait for it, in a window that does not depend on how many there are."""
    folded, ahead = 0, 0

    def items(ctx):
        nonlocal ahead
        for index in range(1_000_000):
            ahead = max(ahead, index - folded)
            if folded > 100:
                return
            yield index

    def work(ctx, item):
        if item == 0:
            time.sleep(3.0)  # long enough to go through more items than the window has
        return item

    def fold(total, value):
        nonlocal folded
        folded += 1
        return total + value

    final, run = ran(map_of(work, items, all_, into="v", reduce=(fold, 0)), shared_pool)
    assert final == "joined"
    assert run.store.get("v") == sum(range(folded))
    assert ahead < 50_000


def test_a_reduce_that_fails_says_on_which_branch(shared_pool):
    """An error of the reducing function fails the run with state and branch, and is the cause."""

    def fold(total, value):
        if value == 2:
            raise RefusalError("cannot fold")
        return total + value

    run = map_of(lambda ctx, item: item, range(5), all_, into="v", reduce=(fold, 0)).start("split", pool=shared_pool)
    with pytest.raises(
        WorkflowError, match="state 'split': reduce failed on branch 2: RefusalError: cannot fold"
    ) as caught:
        run.wait(60)
    assert isinstance(caught.value.__cause__, RefusalError)
    assert caught.value.state == "split"
    assert contents(run.store) == {}


def refuse_to_fold(total, value):
    """Fail on any value."""
    raise RefusalError("cannot fold")


def test_a_reduce_that_fails_on_what_waited_says_so_too(shared_pool, tmp_path):
    """Values that waited behind a failed or a cut branch are folded later; what fails then is named as well."""
    place = str(tmp_path)
    behind_failed = [Act("fail", place, after=("1.ended",)), Act()]
    behind_cut = [Act("hang"), Act()]
    for tasks, strategy in ((behind_failed, partial_timeout()), (behind_cut, any_)):
        flow = split_of(tasks, strategy, place=tmp_path, timeout=LONG, into="v", reduce=(refuse_to_fold, 0))
        with pytest.raises(WorkflowError, match="state 'split': reduce failed on branch 1: RefusalError") as caught:
            flow.orchestrate("split", pool=shared_pool)
        assert isinstance(caught.value.__cause__, RefusalError)


# -- counts in the store


@pytest.mark.parametrize(
    ("tasks", "strategy", "counts"),
    [
        ([Act(), Act(), Act()], all_, (3, 0, 0)),
        ([Act(), Act("fail"), Act()], partial_timeout(), (2, 1, 0)),
        (
            [Act("fail"), Act("die"), Act("hang", config=TaskConfig(attempt_timeout=0.2)), Act()],
            partial_timeout(),
            (1, 3, 0),
        ),
        ([Act("hang"), Act("hang"), Act()], any_, (1, 0, 2)),
    ],
)
def test_counts_are_stored_when_asked_for(tasks, strategy, counts, shared_pool):
    """store_partial_results writes one line of text and three counts: succeeded, failed, cancelled."""
    final, run = ran(split_of(tasks, strategy, timeout=LONG, store_partial_results=True), shared_pool)
    assert final == "joined"
    succeeded, failed, cancelled = counts
    assert contents(run.store) == {
        "split_results_summary": f"Split results: {succeeded} succeeded, {failed} failed, {cancelled} cancelled",
        "split_successes_count": succeeded,
        "split_errors_count": failed,
        "split_cancelled_count": cancelled,
    }
    assert run.store.get("split_errors_count", expect=int) == failed


def test_partial_results_in_the_store_are_those_so_far(shared_pool, tmp_path):
    """partial_results(2) of one failure, two successes and one that still runs stores 2, 1 and 1."""
    place = str(tmp_path)
    tasks = [Act(), Act("fail"), Act(place=place, after=("0.ended", "1.ended", "3.1")), Act("hang", place)]
    final, run = ran(split_of(tasks, partial_results(2), place=tmp_path, store_partial_results=True), shared_pool)
    assert final == "joined"
    assert run.store.get("split_results_summary") == "Split results: 2 succeeded, 1 failed, 1 cancelled"


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


# -- the order of arrival (promise 6)


def test_the_order_of_arrival_does_not_matter(shared_pool):
    """For the same accepted tasks the store after a split is the same, in whatever order they end."""

    def write(ctx, item):
        time.sleep(random.random() * 0.01)  # the order, not a wait
        ctx.store.put("last", item)
        ctx.store.put(f"own {item}", item)
        ctx.store.append("list", item)
        ctx.store.add("sum", item)
        # Neither of these can change places with another.
        ctx.store.update("text", lambda text: f"({text}{item})", default="")
        ctx.store.update("number", lambda number: number * 3 + item, default=1)
        if item % 3 == 0:
            ctx.store.remove(f"own {item - 1}")
            ctx.store.put("list", ctx.store.get("list")[-1:])
        if item == 4:
            raise RefusalError("not accepted")
        return item

    expected = {"last": 7, "list": [6, 7], "sum": 24, "text": "", "number": 1, "v": [0, 1, 2, 3, 5, 6, 7]}
    expected |= {f"own {n}": n for n in (0, 1, 3, 5, 6, 7)}
    for n in expected["v"]:
        expected["text"] = f"({expected['text']}{n})"
        expected["number"] = expected["number"] * 3 + n
    del expected["own 5"]
    flow = map_of(write, range(8), partial_timeout(), timeout=LONG, into="v")
    orders = set()
    for _ in range(25):
        final, run = ran(flow, shared_pool)
        assert final == "joined"
        assert contents(run.store) == expected
        branches = run.report().splits["split"]
        orders.add(tuple(b.index for b in sorted(branches, key=lambda b: b.started_at + timedelta(seconds=b.duration))))
    # They did end in different orders, or nothing was shown.
    assert len(orders) > 1


def test_chosen_orders_of_arrival_give_the_same_store(shared_pool, tmp_path):
    """For each of many orders that are enforced one by one, the store is that of branch order."""

    def write(ctx, item):
        place, before = item
        branch = str(ctx.branch)
        if before is not None:
            await_marks(place, f"{before}.ended")
        ctx.store.append("list", ctx.branch)
        ctx.store.update("text", lambda text: text + branch, default="")
        mark(place, f"{ctx.branch}.ended")

    for number, order in enumerate(itertools.permutations(range(4))):
        if number % 3:
            continue
        place = tmp_path / str(number)
        place.mkdir()
        before = {index: previous for previous, index in itertools.pairwise(order)}
        items = [(str(place), before.get(index)) for index in range(4)]
        final, run = ran(map_of(write, items, all_), shared_pool)
        assert final == "joined"
        assert contents(run.store) == {"list": [0, 1, 2, 3], "text": "0123"}


def test_a_commit_that_cannot_be_applied_fails_the_run(shared_pool):
    """When branches' writes do not go together the run fails, naming branch and key, and the store is as before."""

    def write(ctx, item):
        if item == 1:
            ctx.store.put("k", "text")
        else:
            ctx.store.append("k", item)

    store = SharedStore()
    store.put("before", 1)
    flow = map_of(write, range(3), all_, into="v", workflow={"store": store})
    with pytest.raises(
        WorkflowError, match="state 'split': append of key 'k' by branch 2 cannot be committed"
    ) as caught:
        flow.orchestrate("split", pool=shared_pool)
    assert isinstance(caught.value.__cause__, TypeError)
    assert contents(store) == {"before": 1}


def test_branches_do_not_see_each_other(shared_pool, tmp_path):
    """A branch sees the store as of the split's entry plus its own writes, not what others did meanwhile."""

    def write(ctx, place):
        ctx.store.append("list", ctx.branch)
        seen = ctx.store.get("list")
        mark(place, f"{ctx.branch}.wrote")
        await_marks(place, "0.wrote", "1.wrote")
        return seen, ctx.store.get("list")

    store = SharedStore()
    store.put("list", ["base"])
    final, _ = ran(map_of(write, [str(tmp_path)] * 2, all_, into="v", workflow={"store": store}), shared_pool)
    assert final == "joined"
    assert store.get("v") == [(["base", 0],) * 2, (["base", 1],) * 2]
    assert store.get("list") == ["base", 0, 1]
