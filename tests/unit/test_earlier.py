"""What an earlier life of a run accepted is known by the digests of its items."""

from __future__ import annotations

import pytest

from canobatch.engine.earlier import Earlier
from canobatch.engine.scribe import item_digest
from canobatch.errors import VersionMismatchError


def test_branches_of_an_earlier_life_are_known_by_their_items():
    """In whatever order they come, with gaps, and without an item."""
    earlier = Earlier("work", "r")
    assert (earlier.has(0, b"item"), earlier.end) == (False, 0)
    earlier.add(5, item_digest(b"e"))
    earlier.add(2, None)
    earlier.add(0, item_digest(b"a"))
    assert earlier.end == 6
    assert [earlier.has(index, b"") for index in (1, 3, 4, 6)] == [False] * 4
    assert [earlier.has(index, data) for index, data in ((0, b"a"), (2, b"any"), (5, b"e"))] == [True] * 3
    with pytest.raises(VersionMismatchError, match="state 'work', branch 5: its item is not the one"):
        earlier.has(5, b"a")


def test_more_branches_than_there_are_now_are_refused():
    """Of the last one it is said that it is missing."""
    earlier = Earlier("work", "r")
    earlier.add(4, None)
    earlier.check_total(5)
    with pytest.raises(VersionMismatchError, match="branch 4 was recorded, and there are only 4 now"):
        earlier.check_total(4)


def test_branches_that_failed_are_known_too():
    """They were among the branches."""
    earlier = Earlier("work", "r")
    earlier.attempts[3] = 0
    assert not earlier.has(3, b"item")
    with pytest.raises(VersionMismatchError, match="branch 3 was recorded"):
        earlier.check_total(0)
