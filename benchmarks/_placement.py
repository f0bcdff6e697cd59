"""Puts processes on cores: a round trip between two cores costs ten times one within a core."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def _threads(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def _place(pid: int, wanted: set[int]) -> None:
    for thread in _threads(pid):
        # A thread may end meanwhile; new ones follow the one that starts them.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, wanted)


@contextlib.contextmanager
def placed(worker: int, *, together: bool) -> Iterator[None]:
    """Keep all threads of this process on one core, and those of ``worker`` on the same or on another one."""
    cores = sorted(os.sched_getaffinity(0))
    processes = {os.getpid(): {cores[0]}, worker: {cores[0] if together else cores[1]}}
    for pid, wanted in processes.items():
        _place(pid, wanted)
    try:
        yield
    finally:
        for pid in processes:
            _place(pid, set(cores))


def placements() -> list[str]:
    """Return the placements that this machine can have: of the figures of the round trip."""
    if not hasattr(os, "sched_getaffinity"):
        return ["free"]
    return ["free", "together", "apart"] if len(os.sched_getaffinity(0)) > 1 else ["free", "together"]
