"""What branches and the peers' tasks do. Imported by every worker, so it imports next to nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from enum import Enum, auto
from pathlib import Path


class Race(Enum):
    """The states of the kill benchmark; here, because a fresh worker imports the module that its state is from."""

    RACE = auto()
    NOTE = auto()
    MUSTER = auto()
    DONE = auto()


def nothing(_item: int) -> None:
    """Do nothing with an item."""


def nothing_at_all() -> None:
    """Do nothing."""


def wait_for_files(directory: str, count: int, timeout: float = 30.0) -> None:
    """Wait until ``directory`` has ``count`` files.

    Raises:
        TimeoutError: It does not: fewer tasks than that run at the same time.
    """
    deadline = time.monotonic() + timeout
    while (found := len(os.listdir(directory))) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {found} of {count} tasks ran at the same time within {timeout:.0f} s")
        time.sleep(0.002)


def resident() -> int:
    """Return the resident bytes of this process."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def lose(directory: str, megabytes: int) -> None:
    """Grow to ``megabytes`` of resident memory, leave this process's id in ``directory``, and hang."""
    ballast = b"\x01" * max(0, (megabytes << 20) - resident())
    Path(directory, str(os.getpid())).touch()
    time.sleep(60.0)
    raise TimeoutError(f"a loser with {len(ballast)} bytes was not killed within 60 s")


def win(directory: str, losers: int) -> float:
    """Wait until all losers hang; return the instant of the end."""
    wait_for_files(directory, losers)
    time.sleep(0.02)
    return time.monotonic()


def show_up(directory: str, count: int) -> float:
    """Note the instant of the start, then wait until ``count`` such tasks run at the same time."""
    started = time.monotonic()
    Path(directory, str(os.getpid())).touch()
    wait_for_files(directory, count)
    return started


def pids_in(directory: str) -> list[int]:
    """Return the processes that left their id in ``directory``."""
    return [int(name) for name in os.listdir(directory)]


def alive(pids: Iterable[int]) -> list[int]:
    """Return which of these processes can still run; a zombie cannot."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            found.append(pid)
    return found
