"""The home: where the launcher keeps what it must know of a run besides its journal.

::

    runs/<run>/run.db         the journal's
    runs/<run>/launch.json    what it takes to go on with it: the target, where, with which settings
    output/<run>/             what its tasks printed
    bells/<run>               a FIFO: a byte in it cancels the run; gone once it is heard
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click

from canobatch._locks import is_held
from canobatch.errors import RunNotFoundError
from canobatch.journal import SqliteJournal
from canobatch.journal.home import name_of

if TYPE_CHECKING:
    from pathlib import Path

    from canobatch.journal import RunSummary


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """How a run was launched."""

    #: "run" or "map".
    command: str
    target: str
    directory: str = field(default_factory=os.getcwd)
    options: dict[str, Any] = field(default_factory=dict)
    #: What everything that the run started carries in its environment.
    token: str = ""


class Home:
    """One home; nothing of it need exist."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.journal = SqliteJournal(directory)

    def run(self, run_id: str) -> Path:
        """Return the directory of a run."""
        return self.directory / "runs" / name_of(run_id)

    def output(self, run_id: str) -> Path:
        """Return where it is kept what the tasks of a run print."""
        return self.directory / "output" / name_of(run_id)

    def has_output(self, run_id: str) -> bool:
        """Return whether a task of the run has printed something that is kept."""
        with suppress(OSError):
            return any(path.stat().st_size for path in self.output(run_id).glob("*.out"))
        return False

    def bell(self, run_id: str) -> Path:
        """Return the FIFO by which a run is cancelled."""
        return self.directory / "bells" / name_of(run_id)

    def is_running(self, run_id: str) -> bool:
        """Return whether a process has the run."""
        return is_held(self.directory / "locks" / f"{name_of(run_id)}.lock")

    def remember(self, run_id: str, record: LaunchRecord) -> None:
        """Keep how a run was launched; a run of a journal elsewhere is not remembered here."""
        with suppress(FileNotFoundError):
            path = self.run(run_id) / "launch.json"
            path.with_suffix(".new").write_text(json.dumps(asdict(record)))
            path.with_suffix(".new").rename(path)

    def launch_of(self, run_id: str) -> LaunchRecord | None:
        """Return how a run was launched, if the launcher did."""
        try:
            return LaunchRecord(**json.loads((self.run(run_id) / "launch.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def find(self, text: str) -> RunSummary:
        """Return the run of this id, or the only one whose id begins or ends so; "last" is the latest.

        Raises:
            RunNotFoundError: There is none.
            UsageError: There are several.
        """
        if not text:
            raise click.UsageError("RUN is empty; give an id, the beginning or end of one, or last")
        runs = self.journal.runs()
        exact = [run for run in runs if run.run_id == text] or (runs[:1] if text == "last" else [])
        found = exact or [run for run in runs if run.run_id.startswith(text) or run.run_id.endswith(text)]
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(run.run_id for run in found[:5])
            raise click.UsageError(f"{len(found)} runs are called like {text!r}: {some}; give more of its id")
        hint = f"the latest is {runs[0].run_id}" if runs else "it has no runs"
        raise RunNotFoundError(
            f"there is no run {text!r} in {self.directory}; {hint}", run_id=text, path=str(self.directory)
        )


class Bell:
    """The FIFO of one run, in the process that has the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unseen = path.with_name(f".{path.name}")
        unseen.unlink(missing_ok=True)
        os.mkfifo(unseen, 0o600)
        # For writing too: so that it is never at its end.
        self._fd = os.open(unseen, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        # Whoever finds it finds somebody who hears it; one that is there was left by a life that was killed.
        unseen.rename(path)

    def has_rung(self) -> bool:
        """Return whether somebody wants the run cancelled; says so to whoever rang."""
        try:
            has_rung = bool(os.read(self._fd, 64))
        except BlockingIOError:
            return False
        self._path.unlink(missing_ok=True)
        return has_rung

    def close(self) -> None:
        """Take it away."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


def ring(path: Path) -> bool:
    """Ring a bell; returns whether there is somebody to hear it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, b"c")
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
