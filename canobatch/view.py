"""The read side of a store and a task's own writes.

A `Draft` applies operations to a base without touching it; a task's view and a store's commit use the
same one, so what a task sees of its own writes is what the commit would make of them.
"""

from __future__ import annotations

from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from canobatch.effects import Entry, Operation, dumps, entry_of, loads, pack
from canobatch.errors import PayloadError, StoreError, StoreKeyError, StoreTypeError
from canobatch.task import REQUIRED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from canobatch.effects import Place


class Draft:
    """A base of entries with operations on top; the base is never changed."""

    def __init__(self, base: Mapping[str, Entry], place: Place | None = None) -> None:
        self._base = base
        self._place = place
        self._is_cleared = False
        #: Keys whose entry is known; None: removed.
        self._changed: dict[str, Entry | None] = {}
        #: Operations not yet applied: a long list is not read just to append to it.
        self._pending: dict[str, list[Operation]] = {}

    def apply(self, operation: Operation) -> None:
        """Apply one operation.

        Raises:
            StoreTypeError: The value has a type that the operation cannot work on; nothing has changed.
        """
        kind = operation[0]
        if kind == "put":
            self._set(operation[1], Entry(*operation[2]))
        elif kind == "remove":
            self._set(operation[1], None)
        elif kind == "clear":
            self._is_cleared = True
            self._changed.clear()
            self._pending.clear()
        else:
            self._check(operation)
            self._pending.setdefault(operation[1], []).append(operation)

    def settle(self, operation: Operation) -> None:
        """Apply what waits on the keys that ``operation`` overwrites: an update that fails must not pass unseen."""
        if operation[0] in {"put", "remove"}:
            self.find(operation[1])
        elif operation[0] == "clear":
            for key in list(self._pending):
                self.find(key)

    def find(self, key: str) -> Entry | None:
        """Return the entry of ``key`` with everything applied, or None."""
        if key in self._pending:
            self._changed[key] = self._settle(key)
            del self._pending[key]
        return self._known(key)

    def keys(self) -> list[str]:
        """Return all keys, sorted."""
        present = set() if self._is_cleared else set(self._base)
        for key, entry in self._changed.items():
            present.discard(key) if entry is None else present.add(key)
        return sorted(present | set(self._pending))

    def changes(self) -> tuple[bool, dict[str, Entry | None]]:
        """Return whether the base goes first, and then every changed key; None: removed."""
        for key in list(self._pending):
            self.find(key)
        return self._is_cleared, self._changed

    def _set(self, key: str, entry: Entry | None) -> None:
        self._changed[key] = entry
        self._pending.pop(key, None)

    def _known(self, key: str) -> Entry | None:
        if key in self._changed:
            return self._changed[key]
        return None if self._is_cleared else self._base.get(key)

    def _check(self, operation: Operation) -> None:
        """Refuse an append to a non-list or an addition to a non-number before it is taken."""
        kind, key = operation[0], operation[1]
        wanted = {"append": "list", "add": "number"}.get(kind)
        if wanted is None:
            return
        pending = self._pending.get(key)
        if pending and pending[-1][0] == "update":
            # What an update makes is known only by making it.
            self.find(key)
            pending = None
        if pending:
            category, name = ("list", "list") if pending[-1][0] == "append" else ("number", "number")
        else:
            entry = self._known(key)
            if entry is None:
                return
            category, name = entry.category, entry.type_name
        if category != wanted:
            verb = "append to" if kind == "append" else "add to"
            raise StoreTypeError(f"cannot {verb} {key!r}: it holds a {name}, not a {wanted}", key=key)

    def _settle(self, key: str) -> Entry:
        entry = self._known(key)
        value = REQUIRED if entry is None else loads(entry.data)
        for operation in self._pending[key]:
            if operation[0] == "append":
                value = [] if value is REQUIRED else value
                value.append(loads(operation[2]))
            elif operation[0] == "add":
                value = operation[2] if value is REQUIRED else value + operation[2]
            else:
                value = _updated(key, value, operation)
        return entry_of(value, self._place)


def _updated(key: str, value: Any, operation: Operation) -> Any:
    function, default = operation[2], operation[3]
    if value is REQUIRED:
        if default is None:
            raise StoreKeyError(f"cannot update {key!r}: no such key, and no default was given", key=key)
        value = loads(default)
    return loads(function)(value)


@contextmanager
def _naming(key: Any) -> Iterator[None]:
    """Say which key it was that something could not be packed for."""
    try:
        yield
    except PayloadError as error:
        named = PayloadError(f"the value for key {key!r} cannot be stored: {error}")
        raise named from error.__cause__


def checked_key(key: Any) -> str:
    """Return ``key`` if it can be one."""
    if not isinstance(key, str):
        raise StoreTypeError(f"a store key must be a string, got {key!r}; use str(...)")
    return key if type(key) is str else str.__str__(key)


class KeyValues:
    """The operations that stores and views share, over two hooks: find an entry, take an operation."""

    #: Where large values go; None: nowhere, they stay in one piece.
    _place: Place | None = None

    def _find(self, key: str) -> Entry | None:
        raise NotImplementedError

    def _take(self, operation: Operation) -> None:
        raise NotImplementedError

    def keys(self) -> list[str]:
        """Return all keys, sorted."""
        raise NotImplementedError

    def put(self, key: str, value: Any) -> None:
        """Set ``key``; the value is copied at once.

        Raises:
            PayloadError: The value cannot be pickled.
            StoreFullError: There is no room for it; what was there is intact.
        """
        with _naming(key):
            entry = entry_of(value, self._place)
        self._take(("put", checked_key(key), tuple(entry)))

    def get(self, key: str, default: Any = REQUIRED, *, expect: type | tuple[type, ...] | None = None) -> Any:
        """Return a copy of the value, or ``default``.

        Arrays, and other buffers of 1 MiB and more in it, are not copied: they are read-only and read in place.

        Raises:
            StoreKeyError: The key is missing and no default was given.
            StoreTypeError: The value is not an ``expect``.
        """
        entry = self._find(checked_key(key))
        if entry is None:
            if default is REQUIRED:
                known = ", ".join(map(repr, self.keys()[:8])) or "none"
                raise StoreKeyError(f"no key {key!r} in the store; keys: {known}", key=key)
            return default
        try:
            value = loads(entry.data)
        except Exception as error:
            raise StoreError(
                f"the value under {key!r} cannot be read here: {type(error).__name__}: {error}", key=key
            ) from error
        if expect is not None and not isinstance(value, expect):
            names = expect if isinstance(expect, tuple) else (expect,)
            wanted = " or ".join(t.__name__ for t in names)
            raise StoreTypeError(f"{key!r} holds a {entry.type_name}, not a {wanted}", key=key)
        return value

    def remove(self, key: str) -> None:
        """Remove ``key``; a missing one is fine."""
        self._take(("remove", checked_key(key)))

    def append(self, key: str, item: Any) -> None:
        """Append to the list under ``key``, made when missing.

        Raises:
            StoreTypeError: The value is not a list; it stays as it was.
        """
        with _naming(key):
            data = pack(item, self._place)
        self._take(("append", checked_key(key), data))

    def update(self, key: str, fn: Callable[[Any], Any], default: Any = REQUIRED) -> None:
        """Replace the value by ``fn(value)``, or ``fn(default)`` when missing; ``fn`` must be pure.

        Inside a task the function is applied to the then-current value when the task is committed.
        """
        if not callable(fn):
            raise StoreTypeError(f"update of {key!r} needs a function, got {fn!r}", key=key)
        with _naming(key):
            function, packed = dumps(fn), None if default is REQUIRED else pack(default, self._place)
        self._take(("update", checked_key(key), function, packed))

    def add(self, key: str, n: float = 1) -> None:
        """Add ``n`` to the number under ``key``, 0 when missing.

        Raises:
            StoreTypeError: The value is not a number; it stays as it was.
        """
        if not isinstance(n, Real) or isinstance(n, bool):
            raise StoreTypeError(f"add to {key!r} needs a number, got {n!r}", key=key)
        self._take(("add", checked_key(key), int(n) if isinstance(n, Integral) else float(n)))

    def contains(self, key: str) -> bool:
        """Return whether ``key`` is there."""
        return self._find(checked_key(key)) is not None

    def clear(self) -> None:
        """Remove every key."""
        self._take(("clear",))

    def __len__(self) -> int:
        return len(self.keys())

    def __getitem__(self, key: str) -> Any:
        return self.get(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.contains(key):
            raise StoreKeyError(f"no key {key!r} in the store", key=key)
        self.remove(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


class StoreView(KeyValues):
    """What one attempt sees: a snapshot and its own writes, which are kept as operations."""

    def __init__(self, entries: Mapping[str, Entry], place: Place | None = None) -> None:
        self._entries = entries
        self._place = place
        self._draft: Draft | None = None
        self.operations: list[Operation] = []

    def keys(self) -> list[str]:
        """Return all keys, sorted."""
        return sorted(self._entries) if self._draft is None else self._draft.keys()

    def _find(self, key: str) -> Entry | None:
        return self._entries.get(key) if self._draft is None else self._draft.find(key)

    def _take(self, operation: Operation) -> None:
        if self._draft is None:
            self._draft = Draft(self._entries, self._place)
        self._draft.apply(operation)
        self.operations.append(operation)
