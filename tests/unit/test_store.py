"""Stores and views through one body, and what only stores do: snapshots, commits, blame."""

from __future__ import annotations

import contextlib
import enum
import pickle
import threading
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canobatch import MemoryStore, SharedStore
from canobatch.errors import CommitError, PayloadError, StoreError, StoreKeyError, StoreTypeError
from canobatch.view import StoreView

STORES = [MemoryStore, SharedStore]


def view_of_nothing():
    """Return a view as of an empty store."""
    return StoreView({})


def view_of_a_store():
    """Return a view of a store in which everything was removed, so that its base is not empty."""
    store = MemoryStore()
    store.put("gone", 1)
    view = StoreView(store.snapshot().entries)
    view.remove("gone")
    return view


@pytest.fixture(params=[*STORES, view_of_nothing, view_of_a_store], ids=lambda make: make.__name__)
def kv(request):
    """A store or a view: all share one protocol."""
    return request.param()


@pytest.fixture(params=STORES, ids=lambda make: make.__name__)
def store(request):
    """A store of each kind."""
    return request.param()


def twice(value):
    """Double a number, or repeat a list."""
    return value * 2


def plus_one(value):
    """Add one; fails on anything but a number."""
    return value + 1


def fail(value):
    """Raise."""
    raise RuntimeError(f"cannot update {value!r}")


class Key(enum.StrEnum):
    """Keys of a tidy user."""

    COUNT = "count"


class Point:
    """An importable class with a value."""

    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return self.x == other.x

    __hash__ = None


# -- one body for all


@pytest.mark.parametrize(
    "value",
    [
        "text",
        "",
        3,
        2.5,
        True,
        None,
        b"bytes",
        [1, [2]],
        (1,),
        {"a": {1: 2}},
        {1, 2},
        Point(3),
        Decimal("0.1"),
        list(range(10_000)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_put_is_got(kv, value):
    """Any value that pickles comes back equal and of its type, by method and by index."""
    kv.put("k", value)
    assert kv.get("k") == kv["k"] == value
    assert type(kv.get("k")) is type(value)


def test_put_replaces_a_value_of_any_type(kv):
    """A key holds what was put last, of whatever type."""
    kv.put("k", [1])
    kv["k"] = "text"
    kv.put("k", 5)
    assert kv.get("k") == 5
    assert kv.keys() == ["k"]


def test_a_missing_key_is_named_with_those_there_are(kv):
    """get of a missing key is a StoreKeyError, a KeyError too, that has the key and lists the others."""
    kv.put("b", 1)
    kv.put("a", 1)
    for read in (lambda: kv.get("c"), lambda: kv["c"]):
        with pytest.raises(StoreKeyError) as caught:
            read()
        assert isinstance(caught.value, KeyError)
        assert caught.value.key == "c"
        assert str(caught.value) == "no key 'c' in the store; keys: 'a', 'b'"


def test_a_default_stands_in_for_a_missing_key(kv):
    """get with a default gives it for a missing key, None included, and never for one that is there."""
    assert kv.get("k", 7) == 7
    assert kv.get("k", None) is None
    assert kv.get("k", default=[]) == []
    kv.put("k", None)
    assert kv.get("k", 7) is None
    assert "k" in kv


def test_an_expected_type_is_checked(kv):
    """expect passes instances of the type or types; anything else is a StoreTypeError that names both types."""
    kv.put("k", [1])
    assert kv.get("k", expect=list) == kv.get("k", expect=(dict, list)) == [1]
    with pytest.raises(StoreTypeError) as caught:
        kv.get("k", expect=dict)
    assert str(caught.value) == "'k' holds a list, not a dict"
    assert caught.value.key == "k"
    assert isinstance(caught.value, TypeError)
    with pytest.raises(StoreTypeError, match="holds a list, not a int or str"):
        kv.get("k", expect=(int, str))


def test_an_expected_type_does_not_concern_the_default(kv):
    """expect is about what the store holds, so a default of another type is given."""
    assert kv.get("k", None, expect=int) is None


def test_removing(kv):
    """remove takes a key away; a missing one is fine, but for del."""
    kv.put("k", 1)
    kv.put("other", 2)
    kv.remove("k")
    kv.remove("k")
    assert kv.keys() == ["other"]
    del kv["other"]
    assert kv.keys() == []
    with pytest.raises(StoreKeyError, match="no key 'other'"):
        del kv["other"]


def test_clearing(kv):
    """clear takes every key away; what is put afterwards is there."""
    kv.put("a", 1)
    kv.append("b", 1)
    kv.clear()
    assert (len(kv), kv.keys(), "a" in kv) == (0, [], False)
    kv.append("b", 2)
    assert dict(kv) == {"b": [2]}


def test_mapping_syntax(kv):
    """Keys are sorted, and a store can be measured, searched, iterated over and made a dict."""
    for key in "cab":
        kv[key] = ord(key)
    assert kv.keys() == list(kv) == ["a", "b", "c"]
    assert len(kv) == 3
    assert "a" in kv
    assert "z" not in kv
    assert 5 not in kv
    assert kv.contains("a")
    assert not kv.contains("z")
    assert dict(kv) == {"a": 97, "b": 98, "c": 99}
    assert bool(kv)


def test_appending(kv):
    """append makes the list when it is missing, and adds one item each time, a list being one item."""
    kv.append("k", 1)
    kv.append("k", [2])
    kv.append("k", None)
    assert kv.get("k") == [1, [2], None]
    kv.put("k", ["fresh"])
    kv.append("k", 1)
    assert kv.get("k") == ["fresh", 1]


@pytest.mark.parametrize("value", ["text", (1,), {"a": 1}, 5, None])
def test_appending_to_what_is_no_list(kv, value):
    """append to anything but a list is a StoreTypeError that names key and type, and leaves the value untouched."""
    kv.put("k", value)
    with pytest.raises(StoreTypeError) as caught:
        kv.append("k", 1)
    assert str(caught.value) == f"cannot append to 'k': it holds a {type(value).__name__}, not a list"
    assert caught.value.key == "k"
    assert kv.get("k") == value


def test_adding(kv):
    """add begins at 0, by default adds 1, and takes whole and decimal numbers of any sign."""
    kv.add("k")
    kv.add("k", 5)
    kv.add("k", -2)
    assert kv.get("k") == 4
    assert type(kv.get("k")) is int
    kv.add("k", 0.5)
    assert kv.get("k") == 4.5
    kv.add("new", 0.25)
    assert kv.get("new") == 0.25
    kv.put("huge", 10**30)
    kv.add("huge", 1)
    assert kv.get("huge") == 10**30 + 1


@pytest.mark.parametrize("value", ["5", [1], None, True, {}])
def test_adding_to_what_is_no_number(kv, value):
    """add to anything but a number, a bool included, is a StoreTypeError and leaves the value untouched."""
    kv.put("k", value)
    with pytest.raises(StoreTypeError) as caught:
        kv.add("k", 1)
    assert str(caught.value) == f"cannot add to 'k': it holds a {type(value).__name__}, not a number"
    assert kv.get("k") == value


@pytest.mark.parametrize("n", ["1", None, True, [1], 2j])
def test_adding_what_is_no_number(kv, n):
    """The number to add must be one; a bool is none."""
    with pytest.raises(StoreTypeError, match=r"add to 'k' needs a number, got"):
        kv.add("k", n)
    assert "k" not in kv


def test_adding_numbers_of_numpy(kv):
    """A sum made by numpy is a number like others."""
    numpy = pytest.importorskip("numpy")
    kv.add("k", numpy.arange(4).sum())
    kv.add("k", numpy.float64(0.5))
    assert kv.get("k") == 6.5


def test_updating(kv):
    """update replaces a value by what the function makes of it, or of the default when there is none."""
    kv.put("k", 3)
    kv.update("k", twice)
    assert kv.get("k") == 6
    kv.update("k", lambda n: f"{n} as text")
    assert kv.get("k") == "6 as text"
    kv.update("new", twice, [1])
    kv.update("new", twice, default=[])
    assert kv.get("new") == [1, 1, 1, 1]


def test_updating_a_missing_key(kv):
    """update of a missing key without default is a StoreKeyError that says so."""
    with pytest.raises(StoreKeyError, match="cannot update 'k': no such key, and no default was given"):  # noqa: PT012
        kv.update("k", twice)
        kv.get("k")


def test_updating_with_what_is_no_function(kv):
    """The function of an update must be callable, which is said at once."""
    with pytest.raises(StoreTypeError, match="update of 'k' needs a function, got 5"):
        kv.update("k", 5)


def test_updates_appends_and_additions_follow_each_other(kv):
    """Each operation works on what the ones before it made."""
    kv.put("k", 1)
    kv.add("k", 2)
    kv.update("k", twice)
    kv.add("k", 1)
    kv.update("k", lambda n: [n])
    kv.append("k", "end")
    assert kv.get("k") == [7, "end"]
    with pytest.raises(StoreTypeError, match="holds a list, not a number"):
        kv.add("k")
    kv.update("k", len)
    with pytest.raises(StoreTypeError, match="holds a int, not a list"):
        kv.append("k", 1)
    assert kv.get("k") == 2


def test_a_removed_key_begins_anew(kv):
    """After a removal append, add and update find nothing."""
    kv.put("k", [1])
    kv.remove("k")
    kv.append("k", 2)
    assert kv.get("k") == [2]
    kv.remove("k")
    kv.add("k", 3)
    assert kv.get("k") == 3
    kv.remove("k")
    kv.update("k", twice, "x")
    assert kv.get("k") == "xx"


def test_what_is_read_is_the_reader_s_own(kv):
    """Changing a value that was read, put, appended or given as default changes nothing in the store."""
    item, value, default = [1], [[0]], [9]
    kv.put("k", value)
    kv.append("k", item)
    kv.update("d", twice, default)
    value.append("changed")
    item.append("changed")
    default.append("changed")
    kv.get("k").append("changed")
    kv["k"][0].append("changed")
    assert kv.get("k") == [[0], [1]]
    assert kv.get("d") == [9, 9]


@pytest.mark.parametrize("key", [None, 5, b"k", ("a",), ["a"]])
def test_keys_are_strings(kv, key):
    """Any other key is a StoreTypeError that shows it, on every operation."""
    for operation in (
        lambda: kv.put(key, 1),
        lambda: kv.get(key),
        lambda: kv.get(key, None),
        lambda: kv.remove(key),
        lambda: kv.append(key, 1),
        lambda: kv.add(key),
        lambda: kv.update(key, twice, 1),
        lambda: kv.contains(key),
        lambda: kv[key],
    ):
        with pytest.raises(StoreTypeError, match="a store key must be a string, got"):
            operation()
    assert len(kv) == 0


def test_enum_keys_are_their_text(kv):
    """A string Enum may be a key and is the same key as its text."""
    kv.put(Key.COUNT, 1)
    kv.add("count", 1)
    assert kv.get(Key.COUNT) == kv["count"] == 2
    assert Key.COUNT in kv
    assert [type(key) for key in kv] == [str]


@pytest.mark.parametrize(
    "operation",
    [
        lambda kv, bad: kv.put("k", bad),
        lambda kv, bad: kv.append("k", bad),
        lambda kv, bad: kv.update("k", twice, bad),
        lambda kv, bad: kv.update("k", lambda value: bad),
        lambda kv, bad: kv.__setitem__("k", bad),
    ],
    ids=["put", "append", "default", "function", "index"],
)
def test_what_does_not_pickle_is_refused_at_once(kv, operation):
    """A value or function that does not pickle is a PayloadError that names the key, and the key stays as it was."""
    kv.put("k", [0])
    with pytest.raises(PayloadError, match="'k'"):
        operation(kv, threading.Lock())
    assert kv.get("k") == [0]


class Unreadable:
    """Pickles; does not load."""

    def __reduce__(self):
        return fail, (1,)


def test_what_cannot_be_read_is_named(kv):
    """A value that does not load is a StoreError with its key, and does not disturb the others."""
    kv.put("bad", Unreadable())
    kv.put("good", 1)
    with pytest.raises(StoreError, match="the value under 'bad' cannot be read here: RuntimeError") as caught:
        kv.get("bad")
    assert caught.value.key == "bad"
    assert kv.get("good") == 1
    assert kv.keys() == ["bad", "good"]


# -- stores


@pytest.mark.parametrize(
    ("function", "error"), [(fail, RuntimeError), (plus_one, TypeError), (lambda value: threading.Lock(), PayloadError)]
)
def test_an_update_that_fails_changes_nothing(store, function, error):
    """What an update's function raises is raised, and the value is untouched."""
    store.put("k", [1])
    with pytest.raises(error):
        store.update("k", function)
    assert dict(store) == {"k": [1]}


def test_each_store_is_its_own():
    """Two stores share nothing, not even the names of their versions."""
    one, two = MemoryStore(), SharedStore()
    one.put("k", 1)
    assert "k" not in two
    assert one.snapshot().name != two.snapshot().name


def test_a_snapshot_never_changes(store):
    """What a snapshot holds stays as it is, whatever is done to the store afterwards."""
    store.put("a", [1])
    store.put("b", 2)
    snapshot = store.snapshot()
    before = dict(snapshot.entries)
    store.append("a", 2)
    store.remove("b")
    store.clear()
    store.put("c", 3)
    store.commit([("branch 0", [("put", "d", snapshot.entries["b"])])])
    assert dict(snapshot.entries) == before
    assert dict(StoreView(snapshot.entries)) == {"a": [1], "b": 2}
    assert dict(store) == {"c": 3, "d": 2}


def test_a_version_has_one_name(store):
    """A snapshot has the same name as long as nothing changes, and another after every change."""
    names = [store.snapshot().name]
    for change in (
        lambda: store.put("a", 1),
        lambda: store.add("a"),
        lambda: store.append("b", 1),
        lambda: store.remove("a"),
        lambda: store.commit([("x", [("remove", "b")])]),
        store.clear,
    ):
        change()
        assert store.snapshot().name == store.snapshot().name
        names.append(store.snapshot().name)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("writes", [[], [("branch 0", [])], [("branch 0", ()), ("branch 1", ())]])
def test_a_commit_of_nothing_is_no_new_version(store, writes):
    """Where nothing was written the workers need nothing new."""
    store.put("a", 1)
    name = store.snapshot().name
    store.commit(writes)
    assert store.snapshot().name == name


def operations(entries, *steps):
    """Return what a task records that does these steps on a view."""
    view = StoreView(entries)
    for step in steps:
        step(view)
    return view.operations


def test_a_commit_applies_writer_by_writer(store):
    """Operations are applied in the order of the writers, each to what those before made."""
    store.put("log", ["base"])
    store.put("n", 10)
    entries = store.snapshot().entries
    store.commit(
        [
            ("branch 0", operations(entries, lambda v: v.append("log", 0), lambda v: v.add("n", 1))),
            ("branch 1", operations(entries, lambda v: v.update("n", twice), lambda v: v.put("who", "one"))),
            ("branch 2", operations(entries, lambda v: v.append("log", 2), lambda v: v.put("who", "two"))),
        ]
    )
    assert dict(store) == {"log": ["base", 0, 2], "n": 22, "who": "two"}


def test_writers_do_not_lose_each_other_s_changes(store):
    """Many writers that saw the same version append, add and update: everything is there afterwards."""
    entries = store.snapshot().entries
    writes = [
        (
            f"branch {index}",
            operations(
                entries,
                lambda v, index=index: v.append("items", index),
                lambda v: v.add("count"),
                lambda v: v.update("steps", plus_one, 0),
            ),
        )
        for index in range(50)
    ]
    store.commit(writes)
    assert dict(store) == {"items": list(range(50)), "count": 50, "steps": 50}


def test_what_a_writer_read_does_not_bind_its_writes(store):
    """Reading in between does not turn an append, an addition or an update into a put."""
    store.put("log", [])
    entries = store.snapshot().entries

    def step(view):
        view.append("log", "x")
        assert view.get("log") == ["x"]
        view.add("n")
        assert view.get("n") == 1
        view.update("u", plus_one, 0)
        assert view.get("u") == 1

    store.commit([("branch 0", operations(entries, step)), ("branch 1", operations(entries, step))])
    assert dict(store) == {"log": ["x", "x"], "n": 2, "u": 2}


@pytest.mark.parametrize(
    ("make", "key", "words"),
    [
        (lambda v: v.append("k", 1), "k", "append of key 'k' by branch 1 cannot be committed: StoreTypeError"),
        (lambda v: v.update("k", plus_one, 0), "k", "update of key 'k' by branch 1 cannot be committed: TypeError"),
        (
            lambda v: v.update("other", fail, 0),
            "other",
            "update of key 'other' by branch 1 cannot be committed: RuntimeError",
        ),
        (lambda v: v.add("k"), "k", "add of key 'k' by branch 1 cannot be committed: StoreTypeError"),
        (
            lambda v: v.update("gone", twice),
            "gone",
            "update of key 'gone' by branch 1 cannot be committed: StoreKeyError",
        ),
    ],
)
def test_a_commit_that_cannot_be_applied_changes_nothing(store, make, key, words):
    """One operation that fails fails the commit; the error names writer and key, the store is as before."""
    store.put("before", 1)
    store.put("gone", 1)
    entries = store.snapshot().entries
    good = operations(entries, lambda v: v.put("good", 1), lambda v: v.put("k", "text"), lambda v: v.remove("gone"))
    bad = operations(entries, lambda v: v.put("early", 1), make)
    late = operations(entries, lambda v: v.put("late", 1))
    name = store.snapshot().name
    with pytest.raises(CommitError) as caught:
        store.commit([("branch 0", good), ("branch 1", bad), ("branch 2", late)])
    assert words in str(caught.value)
    assert (caught.value.writer, caught.value.key) == ("branch 1", key)
    assert caught.value.__cause__ is not None
    assert dict(store) == {"before": 1, "gone": 1}
    assert store.snapshot().name == name


def test_a_result_that_does_not_pickle_fails_the_commit(store):
    """An update whose function makes what does not pickle is blamed like one that raises."""
    bad = operations({}, lambda v: v.update("k", lambda value: threading.Lock(), 0))
    with pytest.raises(CommitError, match="update of key 'k' by branch 7"):
        store.commit([("branch 7", bad)])
    assert len(store) == 0


def test_an_update_that_fails_is_blamed_though_overwritten(store):
    """An update whose function raises fails the commit also when a later writer replaces the value anyway."""
    entries = store.snapshot().entries
    bad = operations(entries, lambda v: v.update("k", fail, 0))
    for later in (lambda v: v.put("k", 1), lambda v: v.remove("k"), lambda v: v.clear()):
        with pytest.raises(CommitError, match="update of key 'k' by branch 0"):
            store.commit([("branch 0", bad), ("branch 1", operations(entries, later))])
    assert len(store) == 0


def test_removals_and_clearing_are_committed_in_their_order(store):
    """What comes before a clear or removal goes, what comes after stays."""
    store.put("old", 1)
    entries = store.snapshot().entries
    store.commit(
        [
            ("a", operations(entries, lambda v: v.put("early", 1), lambda v: v.append("list", 0))),
            ("b", operations(entries, lambda v: v.clear(), lambda v: v.put("kept", 1), lambda v: v.append("list", 1))),
            (
                "c",
                operations(
                    entries, lambda v: v.append("list", 2), lambda v: v.put("gone", 1), lambda v: v.remove("gone")
                ),
            ),
        ]
    )
    assert dict(store) == {"kept": 1, "list": [1, 2]}


def test_threads_lose_nothing(store):
    """Appends, additions and commits of many threads at once are all there."""
    store.put("base", 0)

    def work(number):
        for index in range(25):
            store.append("items", (number, index))
            store.add("count")
            store.commit([("x", operations(store.snapshot().entries, lambda v: v.append("committed", number)))])
            assert store.get("base") == 0

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("count") == 200
    assert sorted(store.get("items")) == [(number, index) for number in range(8) for index in range(25)]
    assert Counter(store.get("committed")) == dict.fromkeys(range(8), 25)


def test_each_thread_s_items_stay_in_order(store):
    """What one thread appends stays in the order in which it appended it."""
    threads = [threading.Thread(target=lambda: [store.append("k", n) for n in range(50)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    items = store.get("k")
    assert Counter(items) == dict.fromkeys(range(50), 2)
    assert [items.index(n) for n in range(50)] == sorted(items.index(n) for n in range(50))


def test_a_store_does_not_travel(store):
    """A store object in another process is a hint to use the task's view, and drags nothing along."""
    store.put("k", "x" * 100_000)
    packed = pickle.dumps(store)
    assert len(packed) < 1000
    with pytest.raises(StoreError, match=r"\.get\); use ctx\.store in the task"):
        pickle.loads(packed).get("k")


def test_a_store_says_what_it_is(store):
    """The text of a store has its kind and size."""
    store.put("k", 1)
    assert repr(store) == f"<{type(store).__name__} 1 keys>"


# -- against a plain dict

KEYS = st.sampled_from("abc")
VALUES = st.one_of(st.integers(-9, 9), st.lists(st.integers(0, 3), max_size=2), st.text(max_size=2))
OPERATIONS = st.one_of(
    st.tuples(st.just("put"), KEYS, VALUES),
    st.tuples(st.just("remove"), KEYS),
    st.tuples(st.just("append"), KEYS, st.integers(0, 9)),
    st.tuples(st.just("add"), KEYS, st.integers(-9, 9)),
    st.tuples(st.just("update"), KEYS, st.sampled_from([twice, plus_one])),
    st.tuples(st.just("update"), KEYS, st.sampled_from([twice, plus_one]), VALUES),
    st.tuples(st.just("clear")),
    st.tuples(st.just("get"), KEYS),
)
WRITERS = st.lists(st.lists(OPERATIONS, max_size=5), max_size=5)


class RefusedError(Exception):
    """The reading of the rules on a plain dict says that this cannot be done."""


def apply(values, operation):
    """Do on a plain dict what an operation means; raise RefusedError where it cannot be done."""
    kind, *arguments = operation
    if kind == "clear":
        values.clear()
        return
    key, *arguments = arguments
    if kind == "put":
        values[key] = arguments[0]
    elif kind == "remove":
        values.pop(key, None)
    elif kind == "append":
        if not isinstance(values.get(key, []), list):
            raise RefusedError(key)
        values[key] = [*values.get(key, []), arguments[0]]
    elif kind == "add":
        if not isinstance(values.get(key, 0), int):
            raise RefusedError(key)
        values[key] = values.get(key, 0) + arguments[0]
    elif kind == "update":
        function, *default = arguments
        if key not in values and not default:
            raise RefusedError(key)
        try:
            values[key] = function(values[key] if key in values else default[0])
        except TypeError:
            raise RefusedError(key) from None


@pytest.mark.parametrize("make", STORES)
@given(base=st.dictionaries(KEYS, VALUES), writers=WRITERS, data=st.data())
def test_a_commit_is_a_direct_reading_of_its_operations(make, base, writers, data):
    """Whatever writers do, and whoever ends first, the store is what doing it all on a dict in branch order gives.

    Where that cannot be done, the commit fails, names writer and key, and the store is as before.
    """
    store = make()
    for key, value in base.items():
        store.put(key, value)
    entries = store.snapshot().entries
    recorded = {}
    for index in data.draw(st.permutations(range(len(writers)))):
        view = StoreView(entries)
        for kind, *arguments in writers[index]:
            # A task goes on after what its view refuses; what it refuses is not recorded.
            with contextlib.suppress(StoreTypeError, StoreKeyError, TypeError):
                getattr(view, kind)(*arguments)
        recorded[index] = view.operations
    writes = [(f"branch {index}", recorded[index]) for index in range(len(writers))]

    expected, blamed = dict(base), None
    for index in range(len(writers)):
        for operation in as_done(recorded[index]):
            try:
                apply(expected, operation)
            except RefusedError as refused:
                blamed = (f"branch {index}", refused.args[0])
                break
        if blamed:
            break
    if blamed is None:
        store.commit(writes)
        assert dict(store) == expected
    else:
        with pytest.raises(CommitError) as caught:
            store.commit(writes)
        assert (caught.value.writer, caught.value.key) == blamed
        assert dict(store) == base


def as_done(recorded):
    """Return recorded operations as what was called, with values in place of their bytes."""
    for kind, *arguments in recorded:
        if kind == "put":
            yield "put", arguments[0], pickle.loads(arguments[1][0])
        elif kind == "append":
            yield "append", arguments[0], pickle.loads(arguments[1])
        elif kind == "update":
            key, function, default = arguments
            yield "update", key, pickle.loads(function), *([] if default is None else [pickle.loads(default)])
        else:
            yield kind, *arguments


@pytest.mark.parametrize("make", [*STORES, view_of_nothing])
@given(operations=st.lists(OPERATIONS, max_size=12))
def test_a_store_is_a_dict_with_rules(make, operations):
    """Any sequence of operations on a store or view reads like the same on a dict; what is refused changes nothing."""
    kv, values = make(), {}
    for operation in operations:
        kind, *arguments = operation
        before = dict(values)
        try:
            apply(values, operation)
            refused = False
        except RefusedError:
            values, refused = before, True
        if refused and kind == "update" and make is view_of_nothing:
            # A view cannot know yet: the key may be there, and another type, by the time of the commit.
            continue
        try:
            getattr(kv, kind)(*arguments)
            assert not refused
        except (StoreTypeError, StoreKeyError, TypeError):
            assert refused or kind == "get"
        assert dict(kv) == values
        assert len(kv) == len(values)
