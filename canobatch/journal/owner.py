"""Which process has a run, for messages and for what it leaves: the kernel's lock decides who has it."""

from __future__ import annotations

import functools
import os

from canobatch import _procs
from canobatch.journal.records import Owner


def this_process() -> Owner:
    """Return the description of this process."""
    return _describe(os.getpid())


@functools.lru_cache(maxsize=1)
def _describe(pid: int) -> Owner:
    return Owner(pid, _procs.start_ticks(pid), _procs.boot_id(), _procs.pid_namespace(), os.uname().nodename)
