"""The default pool of this process, and what becomes of every pool at exit and after a fork."""

from __future__ import annotations

import atexit
import os
import threading

from canobatch.pool.pool import WorkerPool, pools

_default: WorkerPool | None = None
_lock = threading.Lock()


def default_pool() -> WorkerPool:
    """Return this process's default pool, made when first asked for."""
    global _default  # noqa: PLW0603 - the one pool that scripts share
    with _lock:
        if _default is None or not _default.is_usable:
            _default = WorkerPool()
        return _default


def close_default_pool() -> None:
    """Close the default pool, if there is one; the next use makes another."""
    global _default
    with _lock:
        pool, _default = _default, None
    if pool is not None:
        pool.close()


@atexit.register
def _close_all() -> None:
    for pool in list(pools):
        pool.close()


def _forget_all_in_child() -> None:
    global _default, _lock
    _default, _lock = None, threading.Lock()
    for pool in list(pools):
        pool.forget_in_child()


os.register_at_fork(after_in_child=_forget_all_in_child)
