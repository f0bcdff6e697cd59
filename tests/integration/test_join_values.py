"""What a split writes to the store: values, folds, counts; and promise 6, that the order of arrival does not matter."""

from __future__ import annotations

import itertools
import random
import time
from datetime import timedelta

import pytest

from canobatch import (
    JoinConfig,
    JoinStrategy,
    SharedStore,
    TaskConfig,
    Workflow,
    WorkflowError,
)
from tests.support.branches import (
    Act,
    RefusalError,
    await_marks,
    contents,
    map_of,
    mark,
    ran,
    split_of,
)

all_, any_ = JoinStrategy.all(), JoinStrategy.any()
quorum, percentage = JoinStrategy.quorum, JoinStrategy.percentage
partial_results, partial_timeout = JoinStrategy.partial_results, JoinStrategy.partial_timeout

#: What a branch is when it was cut, depending on whether it had begun.
CUT = {"cancelled", "not_started"}
#: A limit that is never reached.
LONG = 1000.0


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
