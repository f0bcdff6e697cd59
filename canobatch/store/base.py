"""What every store is: an index with one writer at a time, atomic commits, and immutable snapshots."""

from __future__ import annotations

import itertools
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from canobatch.errors import CommitError, StoreError
from canobatch.task import TaskStore
from canobatch.view import Draft, KeyValues, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from canobatch.effects import Entry, Operation

_names = itertools.count(1)


class Store(TaskStore, Protocol):
    """What a run needs of a store, beside what tasks do with it."""

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
    """The index: key -> entry, replaced as a whole by each commit that changes it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._name = next(_names)
        self._version = 0
        self._is_published = False

    def keys(self) -> list[str]:
        """Return all keys, sorted."""
        with self._lock:
            return sorted(self._entries)

    def snapshot(self) -> Snapshot:
        """Return the present version; it never changes."""
        with self._lock:
            self._is_published = True
            return Snapshot((self._name, self._version), self._entries)

    def commit(
        self,
        writes: Sequence[tuple[str, Sequence[Operation]]],
        keep: Callable[[bool, Mapping[str, Entry | None]], None] | None = None,
    ) -> None:
        """Apply all operations, writer by writer, or none; see `Store`."""
        with self._lock:
            draft = Draft(self._entries)
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
            draft = Draft(self._entries)
            draft.apply(operation)
            self._replace(draft)

    def _replace(self, draft: Draft) -> None:
        is_cleared, changes = draft.changes()
        if not is_cleared and not changes:
            return
        if self._is_published:
            # Somebody holds the present version: leave it alone.
            self._entries = {} if is_cleared else dict(self._entries)
            self._is_published = False
        elif is_cleared:
            self._entries.clear()
        for key, entry in changes.items():
            if entry is None:
                with suppress(KeyError):
                    del self._entries[key]
            else:
                self._entries[key] = entry
        self._version += 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _StoreElsewhere, ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._entries)} keys>"


class _StoreElsewhere:
    """What a store becomes in another process: a hint to use the task's view."""

    def __getattr__(self, name: str) -> Any:
        raise StoreError(f"a store object cannot be used in another process (.{name}); use ctx.store in the task")
