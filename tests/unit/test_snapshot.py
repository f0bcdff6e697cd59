"""Layers: what a version is made of, how few they stay, how they reach a worker."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canobatch import MemoryStore, SharedStore
from canobatch.effects import Entry, Placed, entry_of, loads
from canobatch.segments import Segments, arrived, crossing
from canobatch.snapshot import Kept, Layer, Layers, ReceivedLayer, encode_layer, stacked
from canobatch.view import StoreView

KEYS = st.sampled_from("abcdef")
CHANGES = st.lists(st.dictionaries(KEYS, st.one_of(st.none(), st.integers()), min_size=1), max_size=12)


def layer_of(changes):
    """Return a layer of packed values."""
    return Layer({key: None if value is None else entry_of(value) for key, value in changes.items()})


def received(layers, place):
    """Return layers as a worker gets them."""
    return Layers([ReceivedLayer(arrived(crossing(encode_layer(layer, place)))) for layer in layers])


@given(CHANGES)
def test_layers_are_one_mapping(changes):
    """However changes are layered and merged, the whole is what one dictionary would be, here and in a worker."""
    expected: dict[str, int] = {}
    layers: tuple[Layer, ...] = (Layer({}),)
    for change in changes:
        layers = stacked(layers, layer_of(change))
        expected.update({key: value for key, value in change.items() if value is not None})
        for key in [key for key, value in change.items() if value is None]:
            expected.pop(key, None)
    for seen in (Layers(layers), received(layers, Segments().place)):
        assert {key: loads(entry.data) for key, entry in seen.items()} == expected
        assert len(seen) == len(expected)
        assert all(
            (key in seen) == (key in expected) and (seen.get(key) is None) == (key not in expected) for key in "abcdef"
        )
        with pytest.raises(KeyError):
            seen["missing"]


def test_a_small_change_to_a_large_store_makes_a_small_layer():
    """Publishing after one put among 100 000 keys packs one key, not all, and the stack stays low."""
    store = SharedStore()
    store.commit([("x", [("put", f"k{n}", tuple(entry_of(n))) for n in range(100_000)])])
    before = store.snapshot()
    for number in range(200):
        store.put("k7", number)
        after = store.snapshot()
        new = [layer for layer in after.layers if layer not in before.layers]
        assert sum(len(layer.entries) for layer in new) < 1000
        assert len(after.layers) < 12
        before = after
    assert StoreView(before.entries).get("k7") == 199


def test_a_snapshot_is_what_the_store_was():
    """A version that is held does not change, neither small nor large values of it."""
    store = SharedStore()
    store.put("small", 1)
    store.put("large", b"x" * 2_000_000)
    held = store.snapshot()
    store.put("small", 2)
    store.put("large", b"y" * 2_000_000)
    store.snapshot()
    store.clear()
    view = StoreView(held.entries)
    assert view.get("small") == 1
    assert view.get("large") == b"x" * 2_000_000


@pytest.mark.parametrize("make", [MemoryStore, lambda: SharedStore(max_bytes=1 << 30)], ids=["memory", "shared"])
@pytest.mark.parametrize("end", ["replace", "remove", "clear", "drop"])
def test_a_large_value_is_freed_when_nothing_can_see_it(make, end):
    """Replaced, removed, cleared or dropped with its store: its memory goes, though layers of its time are kept."""
    store = make()
    for number in range(100):
        store.put(f"k{number}", number)
    store.put("large", b"x" * 2_000_000)
    store.snapshot()
    segments = store.segments
    gc.collect()
    used = segments.used
    data = store._entries["large"].data
    assert isinstance(data, Placed)
    gone = weakref.ref(data)
    del data
    if end == "replace":
        store.put("large", 1)
    elif end == "remove":
        store.remove("large")
    elif end == "clear":
        store.clear()
    if end == "drop":
        del store
    else:
        store.snapshot()
    gc.collect()
    assert gone() is None
    assert used - segments.used >= 2_000_000


def test_large_layers_travel_as_segments():
    """Small values that are many lie in one slab, and are read where they lie."""
    segments = Segments()
    layer = layer_of({f"k{n}": "x" * 1000 + str(n) for n in range(2000)})
    data = encode_layer(layer, segments.place)
    assert isinstance(data, Placed)
    inside = ReceivedLayer(arrived(crossing(data)))
    entry = inside.find("k77")
    assert entry is not None
    assert isinstance(entry.data, memoryview)
    assert loads(entry.data) == "x" * 1000 + "77"


@pytest.mark.parametrize(
    ("value", "is_kept"),
    [
        ("x" * 100_000, True),
        (list(range(50_000)), True),
        (tuple(range(50_000)), True),
        ({n: str(n) for n in range(20_000)}, True),
        (set(range(50_000)), True),
        ([[n] for n in range(30_000)], False),
        ({n: [n] for n in range(30_000)}, False),
    ],
    ids=["str", "list", "tuple", "dict", "set", "nested list", "nested dict"],
)
def test_a_flat_value_is_loaded_once_and_is_each_readers_own(value, is_kept):
    """Flat values are loaded once for all readers; a reader's changes are its own all the same."""

    class Counting:
        loads = 0

        def load(self):
            self.loads += 1
            return loads(entry_of(value).data)

    counting = Counting()
    kept = Kept(counting)
    first, second = kept.load(), kept.load()
    assert first == second == value
    assert counting.loads == (1 if is_kept else 2)
    if isinstance(value, list):
        first.append("mine")
    elif isinstance(value, dict | set):
        first.clear()
    assert kept.load() == value


def test_an_entry_keeps_what_may_be_done_to_it():
    """Category and type name of an entry reach a worker."""
    layer = layer_of({"l": [1], "n": 2, "s": "x"})
    inside = ReceivedLayer(arrived(crossing(encode_layer(layer, Segments().place))))
    found = {key: Entry(*inside.find(key)) for key in "lns"}
    assert {key: (entry.category, entry.type_name) for key, entry in found.items()} == {
        "l": ("list", "list"),
        "n": ("number", "int"),
        "s": ("", "str"),
    }
