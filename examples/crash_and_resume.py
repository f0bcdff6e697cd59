"""A run that is killed halfway and goes on: what was recorded is kept, the rest is done.

The script starts itself as a process of its own, which kills itself with SIGKILL in the midst of a map, its
workers with it. Then it resumes that run here. Each execution of a task leaves a line in a file, so that
nobody has to believe what is printed.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from canobatch import JoinConfig, JoinStrategy, TaskContext, Workflow
from canobatch.journal import SqliteJournal
from canobatch.observe import Event

NUMBERS = 60


class S(Enum):
    """The states."""

    PREPARE = auto()
    FACTOR = auto()
    REPORT = auto()
    DONE = auto()


@dataclass(frozen=True)
class Parameters:
    """Where executions leave their lines."""

    log: str = ""


def note(ctx: TaskContext, text: str) -> None:
    """Add a line to the log, whole."""
    with open(ctx.params.log, "a", encoding="utf-8") as file:  # noqa: PTH123
        file.write(f"{text}\n")


def prepare(ctx: TaskContext) -> S:
    note(ctx, "prepare")
    ctx.store.put("numbers", [number_of(branch) for branch in range(NUMBERS)])
    return S.FACTOR


def number_of(branch: int) -> int:
    """Return what a branch is to factor."""
    return 10**12 + 39 + 2 * branch


def factor(ctx: TaskContext, number: int) -> int:
    """Return the number's smallest factor, the slow way."""
    note(ctx, f"factor {number}")
    return next((divisor for divisor in range(3, 200_000, 2) if number % divisor == 0), number)


def report(ctx: TaskContext) -> S:
    note(ctx, "report")
    factors = ctx.store.get("factors")
    print(f"{len(factors)} factors, the largest of the smallest: {max(f for f in factors if f < 200_000)}")
    return S.DONE


def workflow(home: Path) -> Workflow:
    """Return the workflow, which keeps its runs below ``home``."""
    return (
        Workflow("factors", journal=SqliteJournal(home), params=Parameters)
        .register(S.PREPARE, prepare)
        .register_map(S.FACTOR, factor, "numbers", JoinConfig(JoinStrategy.all(), S.REPORT, into="factors"))
        .register(S.REPORT, report)
        .add_exit_state(S.DONE)
    )


class Killer:
    """Kills this process when half of the branches are through."""

    def __init__(self) -> None:
        self.finished = 0

    def on_event(self, event: Event) -> None:
        self.finished += event.kind == "branch_finished"
        if self.finished >= NUMBERS // 2:
            os.kill(os.getpid(), signal.SIGKILL)


def begin(home: Path, log: Path) -> None:
    """Run, and die halfway."""
    workflow(home).with_observer(Killer()).orchestrate(S.PREPARE, run_id="demo", params={"log": str(log)})


def main(home: Path, log: Path) -> None:
    """Let a process die, resume its run, and say what was kept and what was redone."""
    died = subprocess.run([sys.executable, __file__, str(home), str(log)], check=False)  # noqa: S603 - itself
    print(f"the first process ended with {signal.Signals(-died.returncode).name}")
    journal = SqliteJournal(home)
    (summary,) = journal.runs()
    attempts = journal.run("demo").attempts
    kept = [attempt.branch for attempt in attempts if attempt.status == "succeeded" and attempt.branch is not None]
    print(f"run {summary.run_id} is {summary.status}; recorded: {len(kept)} of {NUMBERS} branches")

    final = workflow(home).resume("demo")
    executions = Counter(log.read_text("utf-8").splitlines())
    again = [name for name, count in executions.items() if count > 1]
    assert executions["prepare"] == 1, "a committed state is not entered again"
    assert all(executions[f"factor {number_of(branch)}"] == 1 for branch in kept), "nor is a recorded branch run again"
    print(f"resumed to {final.name}: {len(kept)} branches kept, {NUMBERS - len(kept)} done, {len(again)} of them again")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        begin(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "home", Path(place) / "log")
