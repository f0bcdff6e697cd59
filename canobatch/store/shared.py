"""SharedStore: the store of runs with worker processes."""

from canobatch.store.base import IndexedStore


class SharedStore(IndexedStore):
    """Keeps values where worker processes read them: each version reaches a worker once.

    Works before any run; `put` copies at once. Several runs may share one: commits are serialised, each
    is atomic, and a task's view is one version.

    Example:
        >>> store = SharedStore()
        >>> store.put("threshold", 3)
        >>> store.add("threshold", 2)
        >>> store["threshold"]
        5
    """
