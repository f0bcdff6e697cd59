"""Whatever a workflow is made of, and wherever it is stopped: resumed, it ends as if undisturbed."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from canobatch import JoinConfig, JoinError, JoinStrategy, Retry, Task, TaskConfig, TaskError, Workflow, _faults
from canobatch.engine import driver
from canobatch.errors import RunNotFoundError
from canobatch.journal import MemoryJournal, SqliteJournal
from canobatch.models import BatchTask, CompensatableTask, Done, More, SteppedTask
from canobatch.testing import InlineBackend
from tests.support.dying import DEATHS, Dying, Mortal
from tests.support.journaled import content, mark, marks
from tests.support.log_journal import LogJournal

# -- workflows, as data

numbers = st.lists(st.integers(0, 2), min_size=1, max_size=4)
failing = st.frozensets(st.integers(0, 3), max_size=2)
strategies = st.one_of(
    st.just(JoinStrategy.all()),
    st.just(JoinStrategy.any()),
    st.just(JoinStrategy.partial_results(1)),
    st.just(JoinStrategy.percentage(0.5)),
)


@dataclass(frozen=True)
class State:
    """One state: what kind it is, its numbers, which of them fail, how they are joined, how often a task fails."""

    kind: str
    numbers: list[int]
    fails: frozenset[int]
    strategy: JoinStrategy
    is_folded: bool
    retries: int


states = st.builds(
    State,
    st.sampled_from(["single", "worker", "router", "split", "map", "generator", "stepped", "batch", "deed", "broken"]),
    numbers,
    failing,
    strategies,
    st.booleans(),
    st.integers(0, 1),
)


# -- and as tasks


def work(ctx, place, name, number, *, fails=False):
    """Leave a mark, write in every way, return a number; or fail."""
    mark(place, f"{name}/")
    ctx.store.put(f"put {number}", name)
    ctx.store.append("names", name)
    ctx.store.add("sum", number)
    ctx.store.update("folded", folded, (0,))
    if fails:
        raise ValueError(name)
    return number * 10


def folded(value):
    """Return more of it, so that it tells how often it was called."""
    return (*value, len(value))


@dataclass
class Single(Task):
    """A task that may fail at first."""

    place: str
    name: str
    retries: int
    following: str

    def run(self, ctx):
        """Do it."""
        work(ctx, self.place, self.name, 1, fails=ctx.attempt <= self.retries)
        return self.following


@dataclass
class Branch(Task):
    """A branch."""

    place: str
    name: str
    number: int
    fails: bool

    def run(self, ctx):
        """Do it."""
        return work(ctx, self.place, self.name, self.number, fails=self.fails)


class Steps(SteppedTask):
    """A step a number."""

    def __init__(self, place, name, count, following):
        self.place, self.name, self.count, self.following = place, name, count, following

    def step(self, ctx, cursor):
        """Do one."""
        at = cursor or 0
        work(ctx, self.place, f"{self.name}/{at}", at)
        return Done(self.following) if at + 1 == self.count else More(at + 1)


class Batch(BatchTask):
    """An item a number, some of which fail."""

    def __init__(self, place, name, state, following):
        self.place, self.name, self.state, self.following = place, name, state, following

    def load(self, ctx):
        """Return the items."""
        return self.state.numbers

    def process_item(self, ctx, item):
        """Do one."""
        return work(ctx, self.place, f"{self.name}/{ctx.branch}", item, fails=ctx.branch in self.state.fails)

    def finish(self, ctx, results):
        """Keep the values."""
        ctx.store.put(f"values {self.name}", [one.value for one in results])
        return self.following


class Deed(CompensatableTask):
    """What can be undone."""

    compensates_in_doubt = True

    def __init__(self, place, name, following):
        self.place, self.name, self.following = place, name, following

    def run(self, ctx):
        """Do it."""
        work(ctx, self.place, self.name, 2)
        return self.following, self.name

    def compensate(self, ctx, output):
        """Undo it; what is in doubt leaves nothing."""
        if output is not None:
            ctx.store.append("undone", output)


def summed(value, more):
    """Return the fold, so that order matters."""
    return value * 3 + more


def register(workflow, place, name, state, following):
    """Register a state."""
    into = {"into": f"into {name}"}
    if state.is_folded:
        into["reduce"] = (summed, 1)
    join = JoinConfig(state.strategy, following, on_failure=following, **into)

    def mapped(ctx, item):
        fails = ctx.branch in state.fails
        return work(ctx, place, f"{name}/{ctx.branch}", item, fails=fails)

    config = TaskConfig(retry=Retry.fixed(state.retries, 0.0), where="worker" if state.kind == "worker" else None)
    if state.kind in {"single", "worker"}:
        workflow.register(name, Single(place, name, state.retries, following), config=config)
    elif state.kind == "broken":
        workflow.register(name, Single(place, name, 5, following), config=config, on_error=following)
    elif state.kind == "router":
        workflow.register_router(name, lambda ctx: following)
    elif state.kind == "split":
        branches = [Branch(place, f"{name}/{at}", n, at in state.fails) for at, n in enumerate(state.numbers)]
        workflow.register_split(name, branches, join)
    elif state.kind in {"map", "generator"}:
        items = state.numbers if state.kind == "map" else lambda ctx: iter(state.numbers)
        workflow.register_map(name, mapped, items, join)
    elif state.kind == "stepped":
        workflow.register_stepped(name, Steps(place, name, len(state.numbers), following))
    elif state.kind == "batch":
        workflow.register(name, Batch(place, name, state, following))
    else:
        workflow.register_with_compensation(name, Deed(place, name, following))


def build(place, states, journal, *, fails):
    """Return the workflow: one state after the other, and a last one that fails or not."""
    workflow = Workflow("any", journal=journal)
    names = [*(f"S{number}" for number in range(len(states))), "LAST"]
    for name, state, following in zip(names, states, names[1:], strict=False):
        register(workflow, str(place), name, state, following)

    def last(ctx):
        mark(place, "LAST/")
        if fails:
            raise RuntimeError("at last")
        return "DONE"

    return workflow.register("LAST", last).add_exit_state("DONE")


# -- the property


def outcome(run):
    """Return all that came of a run."""
    try:
        end = run.wait()
    except (TaskError, JoinError) as error:
        end = str(error)
    report = run.report()
    return end, content(run.store), report.path, {state: result.values for state, result in report.splits.items()}


def kept(journal):
    """Return what must not be executed again: prefixes of marks."""
    history = journal.run("r")
    label = {visit.visit: visit.state.strip("'") for visit in history.visits}
    left = {f"{visit.state}/".replace("'", "") for visit in history.visits if visit.next_state is not None}
    done = [one for one in history.attempts if one.status == "succeeded" and one.branch is not None]
    return tuple(left | {f"{label[one.visit]}/{one.branch}/" for one in done})


JOURNALS = {
    "file": lambda place: SqliteJournal(place / "home"),
    "memory": lambda place: MemoryJournal(),
    "log": lambda place: LogJournal(place / "log"),
}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    states=st.lists(states, min_size=1, max_size=4),
    kind=st.sampled_from(sorted(JOURNALS)),
    fails=st.booleans(),
    stops=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3),
)
def test_any_workflow_stopped_anywhere_ends_as_if_undisturbed(states, kind, fails, stops):
    """Final state, store, values, path and executions are those of the undisturbed run, but for what was in flight."""
    with tempfile.TemporaryDirectory() as directory, InlineBackend() as backend, patch.object(driver._log, "exception"):
        wanted_place, place = Path(directory, "wanted"), Path(directory, "run")
        wanted_place.mkdir()
        place.mkdir()
        journal = JOURNALS[kind](place)

        def workflow(death):
            return build(place, states, Mortal(journal, death), fails=fails)

        counter = Dying()
        with patch.object(_faults, "hook", counter):
            undisturbed = build(wanted_place, states, JOURNALS[kind](wanted_place), fails=fails)
            wanted = outcome(undisturbed.start("S0", pool=backend, run_id="r"))
        over, lives = None, 0
        for stop in [*stops, None]:
            dying = Dying(None if stop is None else 1 + int(stop * len(counter.passed)))
            before, frozen = marks(place), ()
            with patch.object(_faults, "hook", dying), suppress(*(() if stop is None else DEATHS)):
                try:
                    frozen = kept(journal)
                    run = workflow(dying).start_resume("r", pool=backend)
                except RunNotFoundError:
                    run = workflow(dying).start("S0", pool=backend, run_id="r")
                except TaskError as error:
                    # It was rolled back before.
                    over = str(error)
                    break
                found = outcome(run)
            # One that was not stopped may have failed, and fails again.
            lives += 1
            after = marks(place)
            again = [name for name in after - before if name in before and name.startswith(frozen)]
            assert again == [], "what was recorded was run again"
        note(f"{lives} lives, {len(counter.passed)} points")
        if over is None:
            assert found == wanted
        else:
            assert (over, fails) == (wanted[0], True)
        once = marks(wanted_place)
        assert once - marks(place) == Counter()
        for name, count in marks(place).items():
            assert count <= once[name] * lives, name
