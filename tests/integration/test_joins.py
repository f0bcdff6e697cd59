"""Splits over real processes: every strategy, what is accepted and cut, and where a run goes then."""

from __future__ import annotations

import itertools
import random
import time
from datetime import timedelta

import pytest

from canobatch import (
    JoinError,
    JoinStrategy,
    Retry,
    RunCancelledError,
    TaskConfig,
)
from canobatch.errors import ConfigurationError
from tests.support.branches import (
    Act,
    RefusalError,
    await_marks,
    contents,
    failing,
    map_of,
    marks,
    ran,
    split_of,
    statuses,
)

all_, any_ = JoinStrategy.all(), JoinStrategy.any()
quorum, percentage = JoinStrategy.quorum, JoinStrategy.percentage
partial_results, partial_timeout = JoinStrategy.partial_results, JoinStrategy.partial_timeout

#: What a branch is when it was cut, depending on whether it had begun.
CUT = {"cancelled", "not_started"}
#: A limit that is never reached.
LONG = 1000.0


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
