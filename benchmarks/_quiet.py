"""Waits until nothing else uses the machine: what others do in the middle of a repeat is measured with it."""

from __future__ import annotations

import os
import time
from pathlib import Path

#: Seconds of one look.
_LOOK = 0.1
#: Cores that others may keep busy, in a quiet machine.
_QUIET = 0.15


def _idle() -> float:
    """Return the seconds that all cores together have been idle."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(patience: float) -> bool:
    """Wait up to ``patience`` seconds for a quiet machine; return whether it was. Elsewhere than on Linux, do not."""
    if patience <= 0 or not Path("/proc/stat").exists():
        return True
    deadline = time.monotonic() + patience
    while True:
        idle, begun = _idle(), time.monotonic()
        time.sleep(_LOOK)
        busy = (os.cpu_count() or 1) - (_idle() - idle) / (time.monotonic() - begun)
        if busy <= _QUIET:
            return True
        if time.monotonic() >= deadline:
            return False
