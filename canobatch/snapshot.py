"""Versions of a store, as layers: each holds what changed since the one below, and reaches a worker once.

A layer is never changed. When one grows to half the size of the layer below, both become one, so there are
few, and publishing a small change costs little however large the store is.
"""

from __future__ import annotations

import marshal
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from canobatch.effects import LARGE, Data, Entry, Placed, loads, stream_of
from canobatch.segments import arrived, crossing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from canobatch.effects import Place

#: A list of numbers or strings, say, is loaded once in a worker and copied for each reader, from this many bytes on.
_WORTH_KEEPING = 1 << 16


class Layer:
    """What one version changed: key -> entry, None for a key that was removed.

    Large values are held weakly: a snapshot that can see one holds it, and one that was replaced is freed.
    """

    __slots__ = ("__weakref__", "entries")

    def __init__(self, changes: Mapping[str, Entry | None]) -> None:
        self.entries: dict[str, Entry | None] = {key: _lightened(entry) for key, entry in changes.items()}

    def find(self, key: str) -> Entry | None:
        """Return the entry of a key that it has; None: removed."""
        entry = self.entries[key]
        if entry is not None and isinstance(entry.data, weakref.ref):
            placed = entry.data()
            return None if placed is None else entry._replace(data=placed)
        return entry

    def over(self, below: Layer, *, is_lowest: bool) -> Layer:
        """Return one layer for two."""
        merged = Layer({})
        merged.entries = below.entries | self.entries
        if is_lowest:
            merged.entries = {key: entry for key, entry in merged.entries.items() if entry is not None}
        return merged


def _lightened(entry: Entry | None) -> Entry | None:
    if entry is not None and isinstance(entry.data, Placed):
        light: Any = weakref.ref(entry.data)
        return entry._replace(data=light)
    return entry


def stacked(layers: Sequence[Layer], top: Layer) -> tuple[Layer, ...]:
    """Return ``layers`` with ``top`` on them, merged where that keeps them few."""
    stack = [*layers, top]
    while len(stack) > 1 and 2 * len(stack[-1].entries) >= len(stack[-2].entries):
        upper, below = stack.pop(), stack.pop()
        stack.append(upper.over(below, is_lowest=not stack))
    return tuple(stack)


class Layers(Mapping[str, Entry]):
    """Layers seen as one mapping, the last on top. Those of a worker are dictionaries too, see `decode_layer`."""

    __slots__ = ("_layers",)

    def __init__(self, layers: Sequence[Layer | ReceivedLayer]) -> None:
        self._layers = layers[::-1]

    def get(self, key: str, default: Any = None) -> Any:
        """Return the entry of ``key``."""
        for layer in self._layers:
            if key in layer.entries:
                entry = layer.find(key)
                return default if entry is None else entry
        return default

    def __getitem__(self, key: str) -> Entry:
        entry = self.get(key)
        if entry is None:
            raise KeyError(key)
        found: Entry = entry
        return found

    def __iter__(self) -> Iterator[str]:
        if len(self._layers) == 1:
            # The lowest layer has no removals.
            return iter(self._layers[0].entries)
        seen: dict[str, bool] = {}
        for layer in self._layers:
            for key, entry in layer.entries.items():
                seen.setdefault(key, entry is not None)
        return iter([key for key, is_there in seen.items() if is_there])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Snapshot(NamedTuple):
    """One version of a store: immutable, and named so that it need not be published twice."""

    name: tuple[int, int]
    layers: tuple[Layer, ...]
    #: The large values that it can see, which live as long as it does.
    pins: tuple[Data, ...]

    @property
    def entries(self) -> Layers:
        """Its entries."""
        return Layers(self.layers)

    def changed(
        self, name: tuple[int, int], changes: Mapping[str, Entry | None], *, is_cleared: bool = False
    ) -> Snapshot:
        """Return what it would be with ``changes``; ``is_cleared``: and with nothing else."""
        below = (Layer({}),) if is_cleared else self.layers
        large = (entry.data for entry in changes.values() if entry is not None and isinstance(entry.data, Placed))
        return Snapshot(name, (*below, Layer(changes)), (*self.pins, *large))


# -- between processes

_INLINE, _PLACED = 0, 1


def encode_layer(layer: Layer, place: Place) -> bytes | Placed:
    """Return the bytes by which a worker gets a layer: a table, then the small values."""
    table: dict[str, tuple[Any, ...] | None] = {}
    values: list[Any] = []
    at = 0
    for key in layer.entries:
        entry = layer.find(key)
        if entry is None:
            # Removed; or replaced, and no version that could see it is left.
            table[key] = None
        elif isinstance(entry.data, Placed):
            table[key] = (_PLACED, crossing(entry.data), entry.category, entry.type_name)
        else:
            size = len(stream_of(entry.data))
            table[key] = (_INLINE, (at, at + size), entry.category, entry.type_name)
            values.append(entry.data)
            at += size
    index = marshal.dumps(table)
    pieces = [len(index).to_bytes(8, "little"), index, *values]
    if len(index) + at < LARGE:
        return b"".join(pieces)
    return place(pieces)


class ReceivedLayer:
    """A layer in a worker: small values are read where they lie, large ones mapped when first read."""

    __slots__ = ("_data", "_found", "entries")

    def __init__(self, data: Data) -> None:
        view = memoryview(stream_of(data))
        end = 8 + int.from_bytes(view[:8], "little")
        self.entries: dict[str, tuple[Any, ...] | None] = marshal.loads(view[8:end])  # noqa: S302 - our own
        self._data = view[end:]
        self._found: dict[str, Entry] = {}

    def find(self, key: str) -> Entry | None:
        """Return the entry of a key that it has; None: removed."""
        entry = self._found.get(key)
        if entry is None:
            packed = self.entries[key]
            if packed is None:
                return None
            kind, where, category, type_name = packed
            data: Data = arrived(where) if kind == _PLACED else self._data[where[0] : where[1]]
            if kind == _INLINE and where[1] - where[0] < _WORTH_KEEPING:
                return Entry(data, category, type_name)
            entry = self._found[key] = Entry(Kept(data), category, type_name)
        return entry


class Kept:
    """A value that is loaded once for all readers, where a shallow copy of it is a whole one."""

    __slots__ = ("_copy", "_data")

    def __init__(self, data: Data) -> None:
        self._data = data
        self._copy: Callable[[], Any] | None = None

    def load(self) -> Any:
        """Return the reader's own value."""
        if self._copy is None:
            value = loads(self._data)
            copy = _copier(value)
            if copy is None:
                return value
            self._copy = copy
        return self._copy()


def _copier(value: Any) -> Callable[[], Any] | None:
    """Return what makes a reader's own value of one that is kept; None if that takes more than a shallow copy."""
    kind = type(value)
    if kind in _ATOMS:
        return lambda: value
    if kind not in _FLAT or not (_is_flat(value.values()) if kind is dict else True) or not _is_flat(value):
        return None
    return (lambda: value) if kind in {tuple, frozenset} else value.copy


def _is_flat(items: Iterable[Any]) -> bool:
    return _ATOMS.issuperset(map(type, items))


#: What cannot be changed, and what is copied by its method.
_ATOMS = frozenset({bool, bytes, complex, float, int, str, type(None)})
_FLAT = frozenset({dict, frozenset, list, set, tuple})
