"""What only views and drafts do: own writes over a base that never changes, kept as operations."""

from __future__ import annotations

import pickle
from types import MappingProxyType

import pytest

from canobatch.effects import entry_of, loads
from canobatch.errors import StoreKeyError, StoreTypeError
from canobatch.view import Draft, StoreView


def base_of(**values):
    """Return entries that nothing can change."""
    return MappingProxyType({key: entry_of(value) for key, value in values.items()})


def kinds(view):
    """Return the recorded operations' names and keys."""
    return [operation[:2] for operation in view.operations]


def plus_one(value):
    """Add one."""
    return value + 1


calls = []


def counted(value):
    """Add one and remember the call."""
    calls.append(value)
    return value + 1


def test_a_view_shows_its_base():
    """Without writes a view is its base, and reading records nothing."""
    view = StoreView(base_of(a=1, b=[2]))
    assert dict(view) == {"a": 1, "b": [2]}
    assert view.get("c", 5) == 5
    assert view.operations == []


def test_a_view_sees_its_own_writes():
    """Every operation is seen by the reads that follow it in the same view."""
    view = StoreView(base_of(n=1, log=["x"], old=0))
    view.put("new", "value")
    view.add("n", 2)
    view.append("log", "y")
    view.update("n", plus_one)
    view.remove("old")
    assert dict(view) == {"new": "value", "n": 4, "log": ["x", "y"]}
    view.clear()
    assert dict(view) == {}


def test_two_views_of_one_base_do_not_see_each_other():
    """A write is seen in its own view only, until it is committed."""
    base = base_of(log=[])
    one, two = StoreView(base), StoreView(base)
    one.append("log", 1)
    two.put("other", 2)
    assert dict(one) == {"log": [1]}
    assert dict(two) == {"log": [], "other": 2}


def test_writes_are_recorded_in_their_order_as_what_they_are():
    """An append stays an append, an addition an addition, an update its function: none becomes a put."""
    view = StoreView(base_of(n=1))
    view.put("a", 1)
    view.append("b", 2)
    view.add("n", 3)
    view.update("n", plus_one)
    view.get("n")
    view.remove("a")
    view.clear()
    assert kinds(view) == [("put", "a"), ("append", "b"), ("add", "n"), ("update", "n"), ("remove", "a"), ("clear",)]
    assert loads(view.operations[0][2][0]) == 1
    assert loads(view.operations[1][2]) == 2
    assert view.operations[2][2] == 3
    assert loads(view.operations[3][2]) is plus_one


def test_operations_are_plain_data():
    """What a view records is made of what marshal can carry, so that it travels without a pickle of its own."""
    import marshal

    view = StoreView({})
    view.put("a", object)
    view.append("b", {1, 2})
    view.add("c", 0.5)
    view.add("c", True + 1)
    view.update("d", plus_one, 0)
    view.remove("a")
    view.clear()
    operations = tuple(view.operations)
    assert marshal.loads(marshal.dumps(operations)) == operations


def test_what_is_refused_is_not_recorded():
    """An operation that raises leaves neither a change nor an operation behind."""
    view = StoreView(base_of(text="t", flag=True))
    for refused in (
        lambda: view.append("text", 1),
        lambda: view.add("flag"),
        lambda: view.add("text"),
        lambda: view.put(5, 1),
        lambda: view.put("k", (n for n in ())),
        lambda: view.update("k", 5),
    ):
        with pytest.raises(TypeError):
            refused()
    assert view.operations == []
    assert dict(view) == {"text": "t", "flag": True}


def test_types_are_those_of_the_view():
    """Whether an append or addition fits is judged by the view's own state, own writes included."""
    view = StoreView(base_of(k="text"))
    view.put("k", [])
    view.append("k", 1)
    view.remove("k")
    view.add("k", 1)
    with pytest.raises(StoreTypeError, match="holds a number, not a list"):
        view.append("k", 1)
    view.clear()
    view.append("k", 2)
    with pytest.raises(StoreTypeError, match="holds a list, not a number"):
        view.add("k", 1)
    assert view.get("k") == [2]


def test_an_update_is_not_made_before_it_is_needed():
    """A task that updates without reading does not run the function; one that reads runs it once."""
    calls.clear()
    view = StoreView(base_of(n=1))
    view.update("n", counted)
    view.put("other", 1)
    assert calls == []
    assert [view.get("n"), view.get("n"), view["n"]] == [2, 2, 2]
    assert calls == [1]


def test_an_update_of_what_is_not_there_may_still_become_right():
    """A missing key is no error before it is read: an earlier branch may have made it by the commit."""
    view = StoreView({})
    view.update("n", plus_one)
    assert view.keys() == ["n"]
    with pytest.raises(StoreKeyError):
        view.get("n")
    assert kinds(view) == [("update", "n")]


def test_appending_does_not_read_the_list():
    """An append to a list that cannot even be read is recorded; the commit will see."""
    entry = entry_of([1])._replace(data=b"not a pickle")
    view = StoreView({"k": entry})
    view.append("k", 1)
    assert kinds(view) == [("append", "k")]


def test_a_base_is_never_changed():
    """A draft keeps its base as it is, whatever is applied."""
    base = base_of(a=1, b=[1])
    draft = Draft(base)
    for operation in (("add", "a", 1), ("append", "b", pickle.dumps(2)), ("remove", "a"), ("clear",)):
        draft.apply(operation)
        draft.changes()
    assert {key: loads(entry.data) for key, entry in base.items()} == {"a": 1, "b": [1]}


def test_changes_are_what_differs_from_the_base():
    """A draft tells whether the base goes first, and then each changed key with its entry, or None if removed."""
    draft = Draft(base_of(a=1, b=2, c=3))
    draft.apply(("add", "a", 5))
    draft.apply(("remove", "b"))
    is_cleared, changed = draft.changes()
    assert not is_cleared
    assert {key: entry and loads(entry.data) for key, entry in changed.items()} == {"a": 6, "b": None}
    draft.apply(("clear",))
    draft.apply(("put", "d", tuple(entry_of(4))))
    is_cleared, changed = draft.changes()
    assert is_cleared
    assert {key: loads(entry.data) for key, entry in changed.items()} == {"d": 4}
