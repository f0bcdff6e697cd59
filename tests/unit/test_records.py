"""What is kept of very many branches: counts, failures, and the first records."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canobatch.engine import records
from canobatch.engine.records import Records
from canobatch.errors import TaskError, WorkflowError
from canobatch.join import BranchResult, BranchStatus

ENDS = st.lists(st.sampled_from(["ok", "failed", "cut", "retrying", "waiting"]), max_size=30)


@pytest.fixture
def few(monkeypatch):
    """Let ten records be very many."""
    monkeypatch.setattr(records, "KEPT", 10)


def fill(ends, *, keeps_values=False):
    """Return the records of branches that came to ``ends``, and the attempts of those that are open."""
    kept, attempts = Records(keeps_values=keeps_values), {}
    for index, end in reversed(list(enumerate(ends))):
        if end == "ok" and kept.wants(index, index * index):
            kept.add(BranchResult(index, BranchStatus.SUCCEEDED, index * index))
        elif end == "failed":
            kept.add(BranchResult(index, BranchStatus.FAILED, error=TaskError("no", state="S", branch=index)))
        elif end == "cut":
            kept.add(BranchResult(index, BranchStatus.CANCELLED, attempts=1))
        elif end == "retrying":
            attempts[index] = 3
        elif end == "waiting":
            attempts[index] = 1
    return kept, attempts


@pytest.mark.usefixtures("few")
@given(ENDS)
def test_counts_are_exact_however_many_there_are(ends):
    """Every branch is counted once, whether it has a record or not."""
    kept, attempts = fill(ends)
    result = kept.collect(len(ends), attempts)
    assert result.counts == {
        "succeeded": ends.count("ok"),
        "failed": ends.count("failed"),
        "cancelled": ends.count("cut") + ends.count("retrying") + ends.count("waiting"),
    }
    assert result.is_whole == (len(ends) <= 10)
    assert [b.index for b in result[:10]] == list(range(min(10, len(ends))))
    late = [index for index, end in enumerate(ends) if index >= 10 and end == "failed"][:10]
    assert [b.index for b in result[10:]][: len(late)] == late or len(late) > 10
    assert pickle.loads(pickle.dumps(result)).counts == result.counts


@pytest.mark.usefixtures("few")
@given(ENDS)
def test_values_are_whole_where_they_are_wanted(ends):
    """With `into`, every accepted value is there, in branch order."""
    kept, _ = fill(ends, keeps_values=True)
    assert kept.values() == [index * index for index, end in enumerate(ends) if end == "ok"]


@pytest.mark.usefixtures("few")
def test_what_would_be_short_is_refused():
    """A result without all records says so, instead of giving a part for the whole."""
    kept, attempts = fill(["ok"] * 12 + ["failed"])
    result = kept.collect(13, attempts)
    for read in (lambda: result.values, lambda: result.successes, lambda: result.cancelled):
        with pytest.raises(WorkflowError, match="only 11 of 13 branches have a record; use counts"):
            read()
    assert [b.index for b in result.errors] == [12]
    assert result.summary == "Split results: 12 succeeded, 1 failed, 0 cancelled"
    assert result.to_dict()["succeeded"] == 12


@pytest.mark.usefixtures("few")
def test_failures_are_kept_up_to_a_number_too():
    """A million failures are counted, not kept."""
    kept, attempts = fill(["failed"] * 50)
    result = kept.collect(50, attempts)
    assert result.counts["failed"] == 50
    assert len(result.branches) == 20
