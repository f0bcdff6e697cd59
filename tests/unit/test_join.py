"""Strategies, tallies and results of splits, without any process."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canobatch import BranchResult, BranchStatus, JoinConfig, JoinStrategy, SplitResult
from canobatch.join import JoinTally, Verdict

PENDING, SATISFIED, FAILED = Verdict.PENDING, Verdict.SATISFIED, Verdict.FAILED

all_, any_ = JoinStrategy.all(), JoinStrategy.any()
quorum, percentage = JoinStrategy.quorum, JoinStrategy.percentage
partial_results, partial_timeout = JoinStrategy.partial_results, JoinStrategy.partial_timeout


def verdicts(tally, outcomes):
    """Return the verdict before any outcome and after each: "+" is a success, "-" a failure."""
    return [tally.verdict, *(tally.offer(outcome == "+") for outcome in outcomes)]


def after(strategy, total, outcomes, **options):
    """Return the last verdict, which must be the first that is not pending."""
    found = verdicts(JoinTally(strategy, total, **options), outcomes)
    assert set(found[:-1]) <= {PENDING}
    return found[-1]


# -- the table, row by row


@pytest.mark.parametrize(
    ("strategy", "total", "outcomes", "verdict"),
    [
        # every branch succeeded
        (all_, 3, "++", PENDING),
        (all_, 3, "+++", SATISFIED),
        (all_, 3, "-", PENDING),
        (all_, 3, "-++", FAILED),
        (all_, 3, "++-", FAILED),
        (all_, 1, "+", SATISFIED),
        # the first branch succeeded
        (any_, 3, "+", SATISFIED),
        (any_, 3, "--", PENDING),
        (any_, 3, "--+", SATISFIED),
        (any_, 3, "---", FAILED),
        (any_, 1, "-", FAILED),
        # n branches succeeded
        (quorum(2), 3, "+", PENDING),
        (quorum(2), 3, "++", SATISFIED),
        (quorum(2), 3, "+-+", SATISFIED),
        (quorum(2), 3, "--", PENDING),
        (quorum(2), 3, "--+", FAILED),
        (quorum(3), 4, "+++", SATISFIED),
        (quorum(3), 3, "++-", FAILED),
        # at least p of the branches succeeded
        (percentage(0.75), 4, "++", PENDING),
        (percentage(0.75), 4, "+++", SATISFIED),
        (percentage(0.75), 4, "-+++", SATISFIED),
        (percentage(0.75), 4, "--++", FAILED),
        (percentage(0.5), 3, "++", SATISFIED),
        (percentage(0.5), 3, "+-", PENDING),
        (percentage(1.0), 2, "+", PENDING),
        (percentage(1.0), 2, "++", SATISFIED),
        (percentage(0.001), 2, "+", SATISFIED),
        # n branches succeeded, all outcomes so far are kept
        (partial_results(2), 4, "-+", PENDING),
        (partial_results(2), 4, "-++", SATISFIED),
        (partial_results(2), 4, "--", PENDING),
        (partial_results(2), 3, "--+", FAILED),
        # all branches ended, with at least min_successes successes
        (partial_timeout(), 3, "++", PENDING),
        (partial_timeout(), 3, "+++", SATISFIED),
        (partial_timeout(), 3, "+--", SATISFIED),
        (partial_timeout(), 3, "---", FAILED),
        (partial_timeout(2), 3, "+--", FAILED),
        (partial_timeout(2), 3, "++-", SATISFIED),
    ],
)
def test_each_row_of_the_table(strategy, total, outcomes, verdict):
    """A strategy joins with the outcome that meets its row of the table, and fails when all have ended without."""
    assert after(strategy, total, outcomes) is verdict


@pytest.mark.parametrize(
    ("strategy", "outcomes", "verdict"),
    [
        (all_, "++", FAILED),
        (any_, "--", FAILED),
        (quorum(2), "+", FAILED),
        (percentage(0.75), "++", FAILED),
        (partial_results(2), "+", FAILED),
        (partial_timeout(), "", FAILED),
        (partial_timeout(), "--", FAILED),
        (partial_timeout(), "+", SATISFIED),
        (partial_timeout(2), "+", FAILED),
        (partial_timeout(2), "++", SATISFIED),
        (partial_timeout(2), "+-+", SATISFIED),
    ],
)
def test_the_timeout_settles_what_is_pending(strategy, outcomes, verdict):
    """At the timeout only partial_timeout joins with what there is, given its minimum; all else fails."""
    tally = JoinTally(strategy, 4)
    assert set(verdicts(tally, outcomes)) == {PENDING}
    assert tally.expire() is tally.verdict is verdict


@pytest.mark.parametrize("strategy", [any_, quorum(2), percentage(0.5), partial_results(2)])
def test_a_timeout_after_the_verdict_changes_nothing(strategy):
    """A strategy that is satisfied at the timeout joins."""
    tally = JoinTally(strategy, 4)
    verdicts(tally, "++")
    assert tally.expire() is SATISFIED


@pytest.mark.parametrize(
    ("strategy", "needed"), [(any_, 1), (quorum(2), 2), (percentage(0.5), 2), (partial_results(3), 3)]
)
def test_exactly_the_needed_successes_are_accepted(strategy, needed):
    """What comes after the last needed success counts no more, be it a success or a failure."""
    tally = JoinTally(strategy, 4)
    verdicts(tally, "++++")
    tally.offer(False)
    assert (tally.successes, tally.failures, tally.verdict) == (needed, 0, SATISFIED)


@pytest.mark.parametrize(
    ("strategy", "outcomes"),
    [
        (all_, "-"),
        (all_, "+-"),
        (any_, "----"),
        (quorum(3), "--"),
        (quorum(3), "+-+-"),
        (quorum(4), "-"),
        (percentage(0.75), "--"),
        (percentage(1.0), "-"),
        (partial_results(3), "+--"),
        (partial_timeout(3), "--"),
        (partial_timeout(), "----"),
    ],
)
def test_fail_fast_fails_with_the_outcome_that_makes_it_impossible(strategy, outcomes):
    """With fail_fast the verdict is FAILED as soon as the strategy can no longer be met, and not before."""
    assert after(strategy, 4, outcomes, fail_fast=True) is FAILED


@pytest.mark.parametrize("strategy", [all_, quorum(4), percentage(1.0), partial_results(4), partial_timeout(4)])
def test_without_fail_fast_the_branches_run_to_their_end(strategy):
    """Without fail_fast a strategy that can no longer be met stays pending until every branch has ended."""
    assert verdicts(JoinTally(strategy, 4), "-+++") == [PENDING] * 4 + [FAILED]


# -- exact percentages


@pytest.mark.parametrize(
    ("p", "total", "needed"),
    [
        # a double product, rounded up, asks for one more in each of these
        (0.07, 100, 7),
        (0.14, 100, 14),
        (0.28, 100, 28),
        (0.55, 100, 55),
        (0.56, 100, 56),
        (0.28, 25, 7),
        (0.56, 25, 14),
        (0.14, 50, 7),
        (0.28, 50, 14),
        (0.56, 50, 28),
        # and these are rounded up
        (0.5, 3, 2),
        (0.75, 4, 3),
        (0.75, 2, 2),
        (0.66, 3, 2),
        (0.67, 3, 3),
        (1.0, 7, 7),
        (1, 7, 7),
        (0.5, 0, 0),
        (1e-9, 10, 1),
        (0.1, 10**18, 10**17),
        (Fraction(1, 3), 9, 3),
        (Fraction(1, 3), 10, 4),
    ],
)
def test_percentages_are_exact(p, total, needed):
    """A percentage is the decimal number that was written: 7 % of 100 is 7, whatever binary makes of it."""
    assert percentage(p).needed(total) == needed
    assert percentage(p).problems(total) == []


@given(hundredths=st.integers(1, 100), total=st.integers(0, 10_000))
def test_every_whole_percentage_is_exact(hundredths, total):
    """For each whole percentage the need is the product of integers, rounded up."""
    assert percentage(hundredths / 100).needed(total) == -(-hundredths * total // 100)


@given(p=st.floats(0, 1, exclude_min=True), total=st.integers(1, 10**9))
def test_a_percentage_never_needs_none_or_more_than_all(p, total):
    """A percentage of at least one branch needs at least one success and at most all."""
    assert 1 <= percentage(p).needed(total) <= total


# -- numbers of branches that are not known


def test_any_quorum_and_partial_results_do_not_need_the_total():
    """A strategy with a number of its own joins before the number of branches is known."""
    assert after(any_, None, "-+") is SATISFIED
    assert after(quorum(2), None, "+-+") is SATISFIED
    assert after(partial_results(2), None, "-++") is SATISFIED


@pytest.mark.parametrize("strategy", [all_, percentage(0.5), partial_timeout()])
def test_what_depends_on_the_total_waits_for_it(strategy):
    """all, percentage and partial_timeout are pending until the last branch is known, then judged at once."""
    tally = JoinTally(strategy)
    assert set(verdicts(tally, "+++")) == {PENDING}
    assert tally.close(3) is SATISFIED


@pytest.mark.parametrize(
    ("strategy", "outcomes", "total", "verdict"),
    [
        (all_, "+-", 2, FAILED),
        (all_, "++", 3, PENDING),
        (quorum(3), "++", 2, FAILED),
        (quorum(3), "++", 3, PENDING),
        (percentage(0.5), "+--", 3, FAILED),
        (percentage(0.5), "+", 2, SATISFIED),
        (percentage(0.5), "+", 3, PENDING),
        (any_, "--", 2, FAILED),
        (any_, "", 0, FAILED),
        (all_, "", 0, SATISFIED),
        (partial_timeout(), "", 0, FAILED),
        (partial_timeout(), "+", 2, PENDING),
    ],
)
def test_the_verdict_once_the_total_is_known(strategy, outcomes, total, verdict):
    """Learning that no more branches come settles a tally as if the number had been known from the start."""
    tally = JoinTally(strategy)
    assert set(verdicts(tally, outcomes)) == {PENDING}
    assert tally.close(total) is verdict


def test_a_failure_ends_all_at_once_under_fail_fast_even_when_more_may_come():
    """all() with fail_fast fails on the first failure, whether or not the number of branches is known."""
    assert after(all_, None, "+-", fail_fast=True) is FAILED


@pytest.mark.parametrize("strategy", [quorum(5), percentage(1.0), partial_results(5), any_])
def test_nothing_is_out_of_reach_while_more_may_come(strategy):
    """Under fail_fast an unknown number of branches may still bring the successes that are missing."""
    assert after(strategy, None, "-----", fail_fast=True) is PENDING


def test_the_timeout_of_an_unknown_number_of_branches():
    """partial_timeout takes what there is at the timeout although more branches would have come."""
    tally = JoinTally(partial_timeout(2))
    verdicts(tally, "+-+")
    assert tally.expire() is SATISFIED


# -- degenerate cases


@pytest.mark.parametrize("strategy", [all_, percentage(0.5), percentage(1.0)])
def test_nothing_to_do_joins_at_once(strategy):
    """An empty all() joins at once, and so does a part of nothing."""
    assert strategy.problems(0) == []
    assert JoinTally(strategy, 0).verdict is SATISFIED


@pytest.mark.parametrize("strategy", [any_, quorum(1), partial_results(1), partial_timeout()])
def test_a_success_cannot_come_from_nothing(strategy):
    """A strategy that needs a success is impossible without branches, and a tally of none fails at once."""
    assert strategy.problems(0)
    assert JoinTally(strategy, 0).verdict is FAILED


def test_one_branch_is_enough_for_any_strategy():
    """A split of one branch joins by its success under every strategy."""
    for strategy in (all_, any_, quorum(1), percentage(0.01), partial_results(1), partial_timeout()):
        assert strategy.problems(1) == []
        assert after(strategy, 1, "+") is SATISFIED
        assert after(strategy, 1, "-") is FAILED


# -- impossible parameters


@pytest.mark.parametrize(
    ("strategy", "total", "words"),
    [
        (quorum(4), 3, "quorum(4) can never be met by 3 branches"),
        (partial_results(2), 1, "partial_results(2) can never be met by 1 branch;"),
        (partial_timeout(9), 8, "partial_timeout(9) can never be met by 8 branches"),
        (any_, 0, "any() needs at least one branch"),
        (quorum(0), None, "quorum needs a whole number of at least 1, got 0"),
        (quorum(-1), 5, "got -1"),
        (quorum(1.5), 5, "got 1.5"),
        (quorum("2"), 5, "got '2'"),
        (quorum(True), 5, "got True"),
        (quorum(None), 5, "got None"),
        (partial_results(0), 5, "partial_results needs a whole number of at least 1, got 0"),
        (partial_timeout(-1), 5, "partial_timeout needs a whole number"),
        (percentage(0), 5, "above 0 and at most 1, got 0"),
        (percentage(0.0), 5, "got 0.0"),
        (percentage(-0.5), 5, "got -0.5"),
        (percentage(1.5), 5, "got 1.5"),
        (percentage(75), None, "75 % is 0.75"),
        (percentage(float("nan")), 5, "got nan"),
        (percentage(float("inf")), 5, "got inf"),
        (percentage("0.5"), 5, "got '0.5'"),
        (percentage(True), 5, "got True"),
    ],
)
def test_impossible_strategies(strategy, total, words):
    """A parameter that can never be met is one problem, which names it and the number of branches."""
    (problem,) = JoinConfig(strategy, "done", timeout=1.0).problems(total)
    assert words in problem


@pytest.mark.parametrize(
    "strategy", [quorum(10), partial_results(10), partial_timeout(10), any_, all_, percentage(0.1)]
)
def test_nothing_is_impossible_while_the_number_of_branches_is_unknown(strategy):
    """Without a number of branches a large parameter is no problem."""
    assert JoinConfig(strategy, "done", timeout=1.0).problems(None) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timeout": -1}, "timeout must be at least 0 seconds, got -1"),
        ({"timeout": -0.001}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": timedelta(seconds=-1)}, "timeout"),
        ({"bulkhead": 0}, "bulkhead must be a whole number of at least 1, got 0"),
        ({"bulkhead": -2}, "bulkhead"),
        ({"bulkhead": 1.5}, "bulkhead"),
        ({"bulkhead": True}, "bulkhead"),
        ({"into": 5}, "into must be a store key"),
        ({"reduce": (max, 0)}, "reduce needs into="),
        ({"reduce": max, "into": "k"}, "reduce must be (function, initial value)"),
        ({"reduce": (max,), "into": "k"}, "reduce must be"),
        ({"reduce": (0, max), "into": "k"}, "reduce must be"),
    ],
)
def test_impossible_joins(settings, words):
    """Each setting of a join that cannot work is one problem, which names it."""
    (problem,) = JoinConfig(all_, "done", **settings).problems(3)
    assert words in problem


def test_settings_of_a_join_have_names():
    """Behind the strategy and the state nothing is given by its place."""
    with pytest.raises(TypeError, match="positional"):
        JoinConfig(all_, "done", 3.0)


def test_partial_timeout_needs_a_timeout():
    """partial_timeout without a timeout is a problem with its cure."""
    (problem,) = JoinConfig(partial_timeout(), "done").problems(3)
    assert "partial_timeout needs a timeout" in problem
    assert "timeout=" in problem


def test_all_problems_of_a_join_are_found_at_once():
    """Each impossible setting is listed, not only the first."""
    join = JoinConfig(quorum(9), "done", timeout=-1, bulkhead=0, into=7, reduce=3)
    assert len(join.problems(3)) == 5


@pytest.mark.parametrize("strategy", [None, "all", 3, JoinStrategy])
def test_what_is_no_strategy_is_a_problem(strategy):
    """Something else in place of a strategy is a problem that shows how to make one."""
    (problem,) = JoinConfig(strategy, "done").problems(3)
    assert "JoinStrategy.all()" in problem


def test_settings_that_are_fine():
    """A bulkhead larger than the split, a timeout of zero and a full reduce are no problems."""
    join = JoinConfig(all_, "done", timeout=0, bulkhead=100, into="sum", reduce=(max, 0), fail_fast=True)
    assert join.problems(3) == []


def test_a_timeout_may_be_a_timedelta():
    """A timedelta is seconds."""
    assert JoinConfig(all_, "done", timeout=timedelta(minutes=2)).timeout == 120.0


def test_strategies_and_joins_are_values():
    """Strategies and joins with the same settings are equal, also after pickling, and cannot be changed."""
    join = JoinConfig(quorum(2), "done", timeout=1.0, into="k")
    assert pickle.loads(pickle.dumps(join)) == join == JoinConfig(quorum(2), "done", timeout=1.0, into="k")
    with pytest.raises(dataclasses.FrozenInstanceError):
        join.timeout = 5.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        join.strategy.n = 1


def test_a_strategy_reads_as_it_was_written():
    """The text of a strategy is its constructor's name and argument."""
    assert list(map(str, [all_, any_, quorum(2), percentage(0.5), partial_results(3), partial_timeout()])) == [
        "all()", "any()", "quorum(2)", "percentage(0.5)", "partial_results(3)", "partial_timeout(1)",
    ]  # fmt: skip


# -- against the table, read directly


counts = st.integers(1, 12)
STRATEGIES = st.one_of(
    st.just(all_),
    st.just(any_),
    counts.map(quorum),
    st.integers(1, 1000).map(lambda thousandths: percentage(thousandths / 1000)),
    counts.map(partial_results),
    counts.map(partial_timeout),
)


def reading(strategy, total, outcomes, *, fail_fast, expires):
    """Return the verdict and the accepted successes, by the words of the table and no state of a tally.

    ``outcomes`` are those that came before the timeout, in their order; ``expires`` says that it passed.
    """
    need = {
        "all": lambda: total,
        "any": lambda: 1,
        "percentage": lambda: next(k for k in itertools.count() if Fraction(k) >= Fraction(str(strategy.p)) * total),
    }.get(strategy.kind, lambda: strategy.n)()
    for ended in range(len(outcomes) + 1):
        successes = sum(outcomes[:ended])
        everything_ended = ended == total
        if successes >= need and (everything_ended or strategy.kind != "partial_timeout"):
            return SATISFIED, successes
        if everything_ended or (fail_fast and successes + (total - ended) < need):
            return FAILED, successes
    if expires:
        return (SATISFIED if strategy.kind == "partial_timeout" and sum(outcomes) >= need else FAILED), sum(outcomes)
    return PENDING, sum(outcomes)


@given(
    strategy=STRATEGIES,
    outcomes=st.lists(st.booleans(), max_size=12),
    still_running=st.integers(0, 5),
    fail_fast=st.booleans(),
    expires=st.booleans(),
)
def test_a_tally_is_a_reading_of_the_table(strategy, outcomes, still_running, fail_fast, expires):
    """For any strategy, outcomes and order of arrival the verdict is what the table says, and it never changes."""
    total = len(outcomes) + still_running
    tally = JoinTally(strategy, total, fail_fast)
    seen = [tally.verdict, *map(tally.offer, outcomes)]
    if expires:
        seen.append(tally.expire())
    settled = [verdict for verdict in seen if verdict is not PENDING]
    expected, accepted = reading(strategy, total, outcomes, fail_fast=fail_fast, expires=expires)
    assert tally.verdict is expected
    assert tally.successes == accepted
    assert set(settled) <= {expected}
    if expected is not PENDING:
        assert {tally.offer(True), tally.offer(False), tally.close(99), tally.expire()} == {expected}


@given(strategy=STRATEGIES, outcomes=st.lists(st.booleans(), max_size=12), known_after=st.integers(0, 12))
def test_learning_the_total_late_makes_no_difference_in_the_end(strategy, outcomes, known_after):
    """Whenever the number of branches becomes known, the verdict after the last branch is the same."""
    late = JoinTally(strategy)
    for number, outcome in enumerate(outcomes):
        if number == known_after:
            late.close(len(outcomes))
        late.offer(outcome)
    late.close(len(outcomes))
    early = JoinTally(strategy, len(outcomes))
    for outcome in outcomes:
        early.offer(outcome)
    assert late.verdict is early.verdict is not PENDING


@given(strategy=STRATEGIES, outcomes=st.lists(st.booleans(), min_size=1, max_size=8), data=st.data())
def test_the_order_of_arrival_does_not_decide(strategy, outcomes, data):
    """Whether a split joins depends on how many branches succeed, not on when they do."""
    shuffled = data.draw(st.permutations(outcomes))
    tallies = [JoinTally(strategy, len(outcomes)) for _ in range(2)]
    for first, second in zip(outcomes, shuffled, strict=True):
        tallies[0].offer(first)
        tallies[1].offer(second)
    assert tallies[0].verdict is tallies[1].verdict


# -- results


def result_of(*statuses):
    """Return a result with one branch per status; values are the index times ten."""
    return SplitResult(
        [
            BranchResult(
                index,
                BranchStatus(status),
                value=index * 10 if status == "succeeded" else None,
                error=ValueError(index) if status in {"failed", "timed_out", "lost"} else None,
            )
            for index, status in enumerate(statuses)
        ]
    )


EVERY = ("succeeded", "failed", "timed_out", "lost", "cancelled", "not_started", "succeeded")


def test_a_result_is_a_sequence_in_branch_order():
    """A result has a length, indices, slices and an order: those of the branches."""
    result = result_of(*EVERY)
    assert len(result) == 7
    assert [branch.index for branch in result] == list(range(7))
    assert result[2] is result.branches[2]
    assert result[-1].value == 60
    assert [branch.index for branch in result[1:3]] == [1, 2]
    assert result[0] in result


def test_every_branch_is_counted_once():
    """Successes, errors and cancelled share out all branches: lost is an error, not started is cancelled."""
    result = result_of(*EVERY)
    assert [b.index for b in result.successes] == [0, 6]
    assert [b.index for b in result.errors] == [1, 2, 3]
    assert [b.index for b in result.cancelled] == [4, 5]
    assert result.values == [0, 60]
    assert result.summary == "Split results: 2 succeeded, 3 failed, 2 cancelled"


def test_an_empty_result():
    """A split without branches has a result with nothing in it."""
    result = SplitResult([])
    assert (len(result), result.successes, result.errors, result.cancelled, result.values) == (0, (), (), (), [])
    assert result.summary == "Split results: 0 succeeded, 0 failed, 0 cancelled"


def test_a_status_is_its_text():
    """Statuses compare equal to the words of the documentation."""
    assert [status.value for status in BranchStatus] == [
        "succeeded", "failed", "timed_out", "lost", "cancelled", "not_started",
    ]  # fmt: skip
    assert BranchStatus.TIMED_OUT == "timed_out"


def test_a_result_survives_pickling():
    """A result comes back equal, with every field of its branches."""
    at = datetime(2026, 1, 2, tzinfo=UTC)
    result = SplitResult([BranchResult(0, BranchStatus.SUCCEEDED, [1], None, 2, at, 0.5, 0.25, 1 << 20)])
    back = pickle.loads(pickle.dumps(result))
    assert back == result
    assert back[0] == result[0]


def test_a_result_as_plain_data_is_json():
    """to_dict holds counts and every branch as what JSON can say."""
    at = datetime(2026, 1, 2, tzinfo=UTC)
    result = SplitResult(
        [
            BranchResult(0, BranchStatus.SUCCEEDED, object, None, 1, at, 0.5, 0.25, 1 << 20),
            BranchResult(1, BranchStatus.FAILED, None, ValueError("no"), 3),
            BranchResult(2, BranchStatus.NOT_STARTED),
        ]
    )
    plain = json.loads(json.dumps(result.to_dict()))
    assert (plain["succeeded"], plain["failed"], plain["cancelled"]) == (1, 1, 1)
    assert [branch["status"] for branch in plain["branches"]] == ["succeeded", "failed", "not_started"]
    assert plain["branches"][0]["started_at"] == "2026-01-02T00:00:00+00:00"
    assert plain["branches"][1]["error"] == "ValueError: no"
    assert plain["branches"][1]["attempts"] == 3
