"""What the figures were measured on; no names, no paths."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

PEERS = (
    "joblib",
    "loky",
    "Pebble",
    "mpire",
    "python-statemachine",
    "transitions",
    "cloudpickle",
    "numpy",
    "ray",
    "dbos",
)


def cores() -> int:
    """Return how many cores this process may use."""
    with suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, str]:
    """Return the machine and the versions, as one would tell a reader."""
    about = {
        "cores": str(cores()),
        "processor": _processor(),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for name in PEERS:
        with suppress(metadata.PackageNotFoundError):
            about[name] = metadata.version(name)
    return about


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> str:
    with suppress(OSError, ValueError, AttributeError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return "unknown"
