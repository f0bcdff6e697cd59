"""Runs with a journal: what it adds to a state and to a branch, what it keeps, and how long a resume takes."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks._books import library as library_of_books
from benchmarks._peers import library
from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Sample, Side, Target
from benchmarks._work import nothing
from benchmarks.bench_book import analyse_branch

if TYPE_CHECKING:
    from canobatch import TaskContext, WorkerPool, Workflow
    from canobatch.journal import SqliteJournal


NO_JOURNAL = "canobatch, no journal"


def counts(options: Options) -> tuple[int, int]:
    """Return how many transitions a repeat makes, and how many branches."""
    return (500, 2_000) if options.quick else (2_000, 10_000)


def resumed(options: Options) -> tuple[int, ...]:
    """Return how many accepted branches the runs have that are resumed."""
    return (1_000,) if options.quick else (1_000, 10_000, 100_000)


def branch(_ctx: TaskContext, item: tuple[int, str]) -> int:
    """Return an item's number; the one that names a file fails until there is one."""
    number, needed = item
    if needed and not Path(needed).exists():
        raise FileNotFoundError(needed)
    return number


def loop_of(journal: SqliteJournal | None, count: int) -> Workflow:
    """Return a workflow of ``count`` transitions in the parent."""
    from canobatch import Workflow

    left = [count]

    def again() -> str:
        left[0] -= 1
        return "again" if left[0] else "done"

    return Workflow("loop", journal=journal).register("again", again).add_exit_state("done")


def split_of(journal: SqliteJournal | None, count: int, needed: str = "") -> Workflow:
    """Return a workflow of one split; its last branch needs a file."""
    from canobatch import JoinConfig, JoinStrategy, Workflow

    items = [(number, needed if number == count - 1 else "") for number in range(count)]
    join = JoinConfig(JoinStrategy.all(), "done", into="values")
    return Workflow("split", journal=journal).register_map("map", branch, items, join).add_exit_state("done")


def books_of(journal: SqliteJournal | None, paths: list[str]) -> Workflow:
    """Return a workflow that analyses books, one branch each."""
    from canobatch import JoinConfig, JoinStrategy, Workflow

    join = JoinConfig(JoinStrategy.all(), "done", into="analyses")
    return (
        Workflow("books", journal=journal).register_map("analyse", analyse_branch, paths, join).add_exit_state("done")
    )


def timed(workflow: Workflow, initial: str, run_id: str, pool: WorkerPool) -> float:
    """Return the seconds of a run."""
    started = time.perf_counter()
    workflow.orchestrate(initial, run_id=run_id, pool=pool)
    return time.perf_counter() - started


def seconds_to_resume(journal: SqliteJournal, count: int, run_id: str, pool: WorkerPool) -> float:
    """Return how long a run takes from its resume to its end that has all its branches but one."""
    from canobatch import JoinError

    needed = journal.directory / f"{run_id}.needed"
    workflow = split_of(journal, count + 1, str(needed))
    run = workflow.start("map", run_id=run_id, pool=pool)
    with suppress(JoinError):
        run.wait()
    assert run.report().splits["map"].counts["succeeded"] == count
    needed.touch()
    started = time.perf_counter()
    run = workflow.start_resume(run_id, pool=pool)
    run.wait()
    elapsed = time.perf_counter() - started
    assert run.store.get("values") == list(range(count + 1))
    return elapsed


def side(durable: Literal["process", "power"] | None) -> Callable[[Options], AbstractContextManager[Measure]]:
    """Return a side with a journal that is as durable as said, or with none."""

    @contextmanager
    def prepare(options: Options) -> Iterator[Measure]:
        from canobatch import WorkerPool
        from canobatch.journal import SqliteJournal

        transitions, branches = counts(options)
        directory = tempfile.mkdtemp()
        journal = None if durable is None else SqliteJournal(directory, durable=durable)
        numbers = itertools.count()

        def measure() -> Sample:
            number = next(numbers)
            sample = {
                "transition": timed(loop_of(journal, transitions), "again", f"loop-{number}", pool) / transitions * 1e6,
                "branch": timed(split_of(journal, branches), "map", f"split-{number}", pool) / branches * 1e6,
            }
            if journal is not None:
                kept = journal.directory / "runs" / f"split-{number}"
                size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
                sample["size"] = size / branches
            if journal is not None and durable == "process":
                for count in resumed(options):
                    elapsed = seconds_to_resume(journal, count, f"resumed-{count}-{number}", pool)
                    sample[f"resume_{count}"] = elapsed * 1e3
                journal.prune()
            if durable == "process":
                # On one pool: from pool to pool the same work differs by more than a journal costs.
                pair = [journal, None] if number % 2 else [None, journal]
                took = {each: timed(books_of(each, paths), "analyse", f"books-{number}", pool) for each in pair}
                sample |= {"books": took[journal], "cost": took[journal] / took[None]}
            return sample

        try:
            copies = options.workers * (1 if options.quick else 5)
            with library_of_books(copies) as paths, WorkerPool(options.workers, spares=0) as pool:
                pool.warm_up()
                yield measure
        finally:
            shutil.rmtree(directory)

    return prepare


@contextmanager
def dbos_side(options: Options) -> Iterator[Measure]:
    """DBOS on SQLite: a workflow of steps in its own process; a step is what a transition is here."""
    dbos = library("dbos")
    count = counts(options)[0] // 5
    directory = tempfile.mkdtemp()
    url = f"sqlite:///{directory}/dbos.sqlite"
    dbos.DBOS(config={"name": "bench", "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"})
    step = dbos.DBOS.step()(nothing)

    def steps() -> int:
        return sum(1 for number in range(count) if step(number) is None)

    workflow = dbos.DBOS.workflow()(steps)
    dbos.DBOS.launch()

    def measure() -> Sample:
        started = time.perf_counter()
        assert workflow() == count
        return {"transition": (time.perf_counter() - started) / count * 1e6}

    try:
        yield measure
    finally:
        dbos.DBOS.destroy()
        shutil.rmtree(directory)


ROW = Row(
    name="journaled",
    title="a run with a journal",
    figures=(
        Figure("transition", "per transition", "µs", (Target(100.0),)),
        Figure("branch", "per no-op branch", "µs"),
        Figure("books", "all books analysed", "s"),
        Figure("cost", "the same, over a run without a journal", "×", (Target(1.03),)),
        Figure("size", "on disk, per branch", "bytes"),
        *(Figure(f"resume_{count}", f"resume with {count} accepted branches", "ms") for count in (10**3, 10**4, 10**5)),
    ),
    sides=(
        Side(OURS, side("process"), Kind.OURS),
        Side(NO_JOURNAL, side(None), Kind.VARIANT),
        Side("canobatch, against power loss", side("power"), Kind.VARIANT, every=3),
        Side("DBOS on SQLite", dbos_side, needs="dbos", every=3),
    ),
    rounds=9,
    quick_rounds=3,
    remark="A resume is timed to the end of the run, of which one branch is left to do. DBOS is asked for steps only.",
)
