"""MemoryStore: a store for runs without worker processes."""

from canobatch import segments
from canobatch.store.base import IndexedStore


class MemoryStore(IndexedStore):
    """Keeps values in this process's memory.

    Values pass through pickle, so that code behaves as it does with a `SharedStore`.

    Example:
        >>> store = MemoryStore()
        >>> store.append("log", "first")
        >>> store.get("log")
        ['first']
    """

    def __init__(self) -> None:
        super().__init__(segments.default())
