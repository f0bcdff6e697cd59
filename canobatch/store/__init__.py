"""Stores: shared values with one writer at a time."""

from canobatch.store.base import Store
from canobatch.store.memory import MemoryStore
from canobatch.store.shared import SharedStore

__all__ = ["MemoryStore", "SharedStore", "Store"]
