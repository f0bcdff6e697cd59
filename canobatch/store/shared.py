"""SharedStore: the store of runs with worker processes."""

from canobatch import segments
from canobatch.errors import ConfigurationError
from canobatch.store.base import IndexedStore


class SharedStore(IndexedStore):
    """Keeps values where worker processes read them: each version reaches a worker once.

    Works before any run; `put` copies at once. Several runs may share one: commits are serialised, each
    is atomic, and a task's view is one version. Values of 1 MiB and more lie in shared memory, and are freed
    when they are replaced or removed, or the store is dropped; arrays in them are read in place.

    Args:
        max_bytes: Shared memory that its values, and the results of its runs, may take; what is more lies on disk
            (`TMPDIR`, else `/var/tmp`), and raises `StoreFullError` when there is no room either. None: half of
            the memory that is available, together with all stores that set nothing.

    Raises:
        ConfigurationError: ``max_bytes`` is not a positive whole number.

    Example:
        >>> store = SharedStore()
        >>> store.put("threshold", 3)
        >>> store.add("threshold", 2)
        >>> store["threshold"]
        5
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        if max_bytes is not None and (not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 1):
            problem = f"max_bytes must be a whole number of at least 1, got {max_bytes!r}; leave it out for the default"
            raise ConfigurationError(f"SharedStore: {problem}", [problem])
        super().__init__(segments.default() if max_bytes is None else segments.Segments(max_bytes))
