"""Patience: from when a run is seen to be over, and for how long that is borne."""

from canobatch.engine.patience import Patience


def test_it_begins_when_the_run_is_seen_to_be_over():
    """The grace counts from the first question, not from when it was made."""
    patience = Patience(5.0)
    assert patience.until is None
    assert patience.bears(100.0)
    assert patience.until == 105.0
    assert patience.bears(104.9)
    assert not patience.bears(105.0)


def test_without_a_limit_it_lasts():
    """None bears everything, for ever."""
    patience = Patience(None)
    assert patience.bears(0.0)
    assert patience.bears(1e9)
    assert patience.until is None
