"""Reducing as values come: in branch order, or on arrival."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canobatch.engine.fold import Fold
from canobatch.errors import PayloadError


def follow(folded, value):
    """Keep what was folded, in order."""
    return [*folded, value]


def keep(folded, value):
    """Change the folded value in place, as users do."""
    folded.append(value)
    return folded


def test_values_in_order_are_folded_at_once():
    """A value whose turn it is does not wait."""
    fold = Fold(follow, [], ordered=True)
    for index in range(3):
        assert fold.next == index
        fold.add(index, index * 10)
    assert fold.finish() == [0, 10, 20]


def test_a_value_waits_for_those_before_it():
    """Whatever comes early is folded when its turn has come."""
    fold = Fold(follow, [], ordered=True)
    fold.add(2, "c")
    fold.add(1, "b")
    assert fold.next == 0
    fold.add(0, "a")
    assert fold.next == 3
    assert fold.finish() == ["a", "b", "c"]


def test_a_failed_branch_holds_up_none():
    """A branch that failed is skipped, whether it fails early or late."""
    fold = Fold(follow, [], ordered=True)
    fold.skip(2)
    fold.add(1, "b")
    fold.skip(0)
    assert fold.next == 3
    fold.add(3, "d")
    assert fold.finish() == ["b", "d"]


def test_what_waits_behind_a_cut_branch_is_folded_at_the_end():
    """A branch that a join has cut is missing for good: what waited behind it is folded in order."""
    fold = Fold(follow, [], ordered=True)
    fold.add(4, "e")
    fold.add(1, "b")
    fold.skip(3)
    assert fold.finish() == ["b", "e"]


def test_nothing_to_fold_is_the_initial_value():
    """Without values the result is what was given to begin with."""
    assert Fold(follow, ["start"], ordered=True).finish() == ["start"]
    assert Fold(follow, ["start"], ordered=False).finish() == ["start"]


def test_without_order_values_are_folded_on_arrival():
    """ordered=False folds each value when it comes, and counts skipped ones."""
    fold = Fold(follow, [], ordered=False)
    for index in (2, 0, 3):
        fold.add(index, index)
    fold.skip(1)
    assert fold.next == 4
    assert fold.finish() == [2, 0, 3]


@pytest.mark.parametrize("ordered", [True, False])
def test_the_initial_value_stays_the_caller_s(ordered):
    """A function that changes the folded value in place does not change what the join was given."""
    initial = []
    fold = Fold(keep, initial, ordered=ordered)
    fold.add(0, 1)
    assert fold.finish() == [1]
    assert initial == []


def test_an_initial_value_that_does_not_pickle_is_refused():
    """It is copied by pickle, so it must pickle."""
    with pytest.raises(PayloadError):
        Fold(keep, threading.Lock(), ordered=True)


@given(
    outcomes=st.lists(st.one_of(st.none(), st.integers()), max_size=30),
    cut=st.sets(st.integers(0, 29), max_size=5),
    data=st.data(),
)
def test_the_order_of_arrival_does_not_matter(outcomes, cut, data):
    """For any order of arrival, failures and cut branches, an ordered fold gives the values in branch order."""
    fold = Fold(follow, [], ordered=True)
    arrivals = [index for index in data.draw(st.permutations(range(len(outcomes)))) if index not in cut]
    for index in arrivals:
        if outcomes[index] is None:
            fold.skip(index)
        else:
            fold.add(index, outcomes[index])
    assert fold.finish() == [outcomes[i] for i in sorted(arrivals) if outcomes[i] is not None]
