"""What every store is: an index with one writer at a time, atomic commits, and immutable snapshots."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any, Protocol

from canobatch.effects import Placed
from canobatch.errors import CommitError, StoreError
from canobatch.snapshot import Layer, Snapshot, stacked
from canobatch.task import TaskStore
from canobatch.view import Draft, KeyValues

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from canobatch.effects import Entry, Operation
    from canobatch.segments import Segments

_names = itertools.count(1)


class Store(TaskStore, Protocol):
    """What a run needs of a store, beside what tasks do with it."""

    @property
    def segments(self) -> Segments:
        """Where large values of its runs lie."""

    def snapshot(self) -> Snapshot:
        """Return the present version; it never changes."""

    def commit(
        self,
        writes: Sequence[tuple[str, Sequence[Operation]]],
        keep: Callable[[bool, Mapping[str, Entry | None]], None] | None = None,
    ) -> None:
        """Apply all operations, writer by writer, or none.

        Args:
            writes: Who writes, and what.
            keep: Called before anything is visible, with whether the store loses all first, and each key that
                changes with its new entry (None: removed). What it raises is raised, and nothing has changed.

        Raises:
            CommitError: An operation cannot be applied; it names the writer and the key.
        """


class IndexedStore(KeyValues):
    """The index, key -> entry, and the layers of the versions that were published."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self._place = segments.place
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._name = next(_names)
        self._version = 0
        self._layers: tuple[Layer, ...] = (Layer({}),)
        #: What changed since the last version was published.
        self._changes: dict[str, Entry | None] = {}
        self._large: dict[str, Placed] = {}
        self._snapshot: Snapshot | None = None

    def keys(self) -> list[str]:
        """Return all keys, sorted."""
        with self._lock:
            return sorted(self._entries)

    def snapshot(self) -> Snapshot:
        """Return the present version; it never changes."""
        with self._lock:
            if self._snapshot is None:
                if self._changes:
                    self._layers = stacked(self._layers, Layer(self._changes))
                    self._changes = {}
                self._snapshot = Snapshot((self._name, self._version), self._layers, tuple(self._large.values()))
            return self._snapshot

    def commit(
        self,
        writes: Sequence[tuple[str, Sequence[Operation]]],
        keep: Callable[[bool, Mapping[str, Entry | None]], None] | None = None,
    ) -> None:
        """Apply all operations, writer by writer, or none; see `Store`."""
        with self._lock:
            draft = Draft(self._entries, self._place)
            try:
                for _, operations in writes:
                    for operation in operations:
                        draft.settle(operation)
                        draft.apply(operation)
                is_cleared, changes = draft.changes()
            except Exception as error:
                raise self._blame(writes) from error
            if keep is not None:
                keep(is_cleared, changes)
            self._replace(draft)

    def _blame(self, writes: Sequence[tuple[str, Sequence[Operation]]]) -> CommitError:
        """Apply the writes again, settling each at once, to find the one that fails."""
        draft = Draft(self._entries)
        for writer, operations in writes:
            for operation in operations:
                key = operation[1] if len(operation) > 1 else None
                try:
                    draft.apply(operation)
                    if key is not None:
                        draft.find(key)
                except Exception as error:  # noqa: BLE001 - a user's function may raise anything
                    what = f"{operation[0]} of key {key!r} by {writer} cannot be committed"
                    return CommitError(f"{what}: {type(error).__name__}: {error}", writer=writer, key=key)
        return CommitError("the writes cannot be committed")

    def _find(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def _take(self, operation: Operation) -> None:
        with self._lock:
            draft = Draft(self._entries, self._place)
            draft.apply(operation)
            self._replace(draft)

    def _replace(self, draft: Draft) -> None:
        is_cleared, changes = draft.changes()
        if not is_cleared and not changes:
            return
        if is_cleared:
            self._entries.clear()
            self._large.clear()
            self._layers, self._changes = (Layer({}),), {}
        for key, entry in changes.items():
            self._large.pop(key, None)
            if entry is None:
                self._entries.pop(key, None)
            else:
                self._entries[key] = entry
                if isinstance(entry.data, Placed):
                    self._large[key] = entry.data
        self._changes.update(changes)
        self._snapshot = None
        self._version += 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _StoreElsewhere, ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._entries)} keys>"


class _StoreElsewhere:
    """What a store becomes in another process: a hint to use the task's view."""

    def __getattr__(self, name: str) -> Any:
        raise StoreError(f"a store object cannot be used in another process (.{name}); use ctx.store in the task")
