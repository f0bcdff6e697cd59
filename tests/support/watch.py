"""How a test knows that a process runs, and that it and all it started are dead."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

#: Seconds after which something that was waited for will never come.
NEVER = 60.0


def state_of(pid: int) -> str:
    """Return the state letter of a process; "X" when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "X"
    return text[text.rindex(")") + 2]


def is_alive(pid: int) -> bool:
    """Return whether a process lives; a zombie is dead."""
    return state_of(pid) not in "ZX"


def await_that(condition, what: str, timeout: float = NEVER) -> None:
    """Wait until ``condition()`` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain: {what}"
        time.sleep(0.002)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process, which may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Scene:
    """A directory through which tasks and test see each other.

    A task *enters* under a name, which opens the writing end of a FIFO: every process that it forks, or
    hands the descriptor to, holds it too, so its end of file says that all of them are gone. It then says
    that it *runs*, with the pids that must be dead later.
    """

    def __init__(self, place: Path | str) -> None:
        self.place = str(place)

    # -- in a task

    def enter(self, name: object) -> int:
        """Return a descriptor that only the caller and what it starts hold."""
        return os.open(f"{self.place}/{name}.fifo", os.O_WRONLY)

    def runs(self, name: object, *pids: int) -> None:
        """Say that ``name`` runs, by this process and ``pids``."""
        new = Path(f"{self.place}/{name}.new")
        new.write_text(" ".join(map(str, (os.getpid(), *pids))))
        new.rename(f"{self.place}/{name}.runs")

    # -- in a test, or in a task that waits for others

    def pids(self, name: object) -> list[int]:
        """Return the pids that ``name`` gave; [] while it does not run."""
        try:
            return [int(pid) for pid in Path(f"{self.place}/{name}.runs").read_text().split()]
        except FileNotFoundError:
            return []

    def await_runs(self, *names: object, state: str = "") -> None:
        """Wait until these run, and with ``state`` until their first process is in that state."""
        for name in names:
            await_that(lambda: self.pids(name), f"{name} should run")
            await_that(lambda: not state or state_of(self.pids(name)[0]) == state, f"{name} should be {state}")


class Witness:
    """The test's end of a scene. Makes the FIFOs, so it must be there before the tasks."""

    def __init__(self, place: Path, *names: object) -> None:
        self.scene = Scene(place)
        self.names = names
        self._ends = {}
        for name in names:
            os.mkfifo(place / f"{name}.fifo")
            self._ends[name] = os.open(place / f"{name}.fifo", os.O_RDONLY | os.O_NONBLOCK)

    def survivors(self) -> list[str]:
        """Say what lives of those who entered, at this very moment."""
        found = []
        for name, end in self._ends.items():
            found += [f"{name}: process {pid} lives" for pid in self.scene.pids(name) if is_alive(pid)]
            with suppress(BlockingIOError):
                if os.read(end, 1) == b"":
                    continue
            found.append(f"{name}: something that it started lives")
        return found

    def absent(self) -> list[object]:
        """Return the names that never ran."""
        return [name for name in self.names if not self.scene.pids(name)]

    def close(self) -> None:
        """Close the FIFOs."""
        for end in self._ends.values():
            os.close(end)
        self._ends.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
