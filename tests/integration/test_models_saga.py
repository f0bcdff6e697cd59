"""Sagas: what is undone, in which order, when it fails, when it hangs, when nobody knows, and when it must wait."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from canobatch import JoinConfig, JoinError, JoinStrategy, Retry, RunCancelledError, TaskConfig, TaskError, WorkerPool
from canobatch.errors import (
    CompensationError,
    PayloadError,
    TaskTimeoutError,
    WorkerLostError,
    WorkflowError,
    WorkflowTimeoutError,
)
from canobatch.models import CompensatableTask
from canobatch.workflow import Workflow
from tests.support.branches import FOREVER, await_marks, mark, marks
from tests.support.models import SOON, WORKER, Recorder, began
from tests.support.tasks import assert_works
from tests.support.watch import Scene, Witness, await_that

EITHER = pytest.mark.parametrize("config", [None, WORKER], ids=["here", "worker"])


class Deed(CompensatableTask):
    """Does and undoes lines in a file outside; both in a way of their own.

    Ways: ok, fail, hang, die, wait (for the mark "go").
    """

    def __init__(self, book, name, following, *, do="ok", undo="ok", **settings):
        self.book = str(book)
        self.name = name
        self.following = following
        self.do_how = do
        self.undo_how = undo
        self.__dict__.update(settings)

    def write(self, line):
        with Path(self.book).open("a") as book:
            book.write(f"{line}\n")

    def go(self, how, what):
        if how == "fail":
            raise OSError(f"cannot {what} {self.name}")
        if how == "die":
            os._exit(6)
        if how == "hang":
            time.sleep(FOREVER)
        if how == "wait":
            await_marks(str(Path(self.book).parent), "go")

    def run(self, ctx):
        self.write(f"do {self.name}")
        ctx.store.append("done", self.name)
        self.go(self.do_how, "do")
        return self.following, {"made": self.name, "attempt": ctx.attempt}

    def compensate(self, ctx, output):
        self.write(f"undo {self.name} {output and output['made']}")
        ctx.store.append("undone", self.name)
        self.go(self.undo_how, "undo")


def refuse():
    """A task that fails."""
    raise ValueError("refused")


def read(book):
    """Return what was done outside."""
    return Path(book).read_text().splitlines() if Path(book).exists() else []


def chain(*deeds, then=refuse, config=None, seen=None, **options):
    """Return a workflow of these deeds, in states A, B, C, and then of a task in state Z."""
    flow = Workflow("saga", **options)
    for state, deed in zip("ABC", deeds, strict=False):
        flow.register_with_compensation(state, deed, config=config)
    flow.register("Z", then).add_exit_states(["end", "failed"])
    return flow if seen is None else flow.with_observer(seen)


def three(book, **ways):
    """Return three deeds in a row; ``ways`` are settings by name."""
    followings = {"A": "B", "B": "C", "C": "Z"}
    return [Deed(book, name, following, **ways.get(name, {})) for name, following in followings.items()]


# -- order and scope


@EITHER
def test_a_failure_undoes_everything_the_last_first(config, shared_pool, tmp_path):
    """After a clean roll-back the run fails with what it failed with; started and finished always balance."""
    seen = Recorder()
    run = began(chain(*three(tmp_path / "book"), config=config, seen=seen), shared_pool, "A")
    with pytest.raises(TaskError, match="refused") as caught:
        run.wait(30)
    assert isinstance(caught.value.__cause__, ValueError)
    assert read(tmp_path / "book") == ["do A", "do B", "do C", "undo C C", "undo B B", "undo A A"]
    assert run.store.get("undone") == ["C", "B", "A"]
    assert [event.state for event in seen.of("compensation_started")] == ["C", "B", "A"]
    assert [(event.state, event.detail) for event in seen.of("compensation_finished")] == [
        ("C", None),
        ("B", None),
        ("A", None),
    ]
    assert seen.kinds()[-1] == "run_failed"


def test_a_success_undoes_nothing(shared_pool, tmp_path):
    """A run that ends in an exit state keeps what it did."""
    flow = chain(*three(tmp_path / "book"), then=lambda: "end")
    assert began(flow, shared_pool, "A").wait(30) == "end"
    assert read(tmp_path / "book") == ["do A", "do B", "do C"]


@pytest.mark.parametrize(("failing", "undone"), [("A", []), ("B", ["A"]), ("C", ["B", "A"])])
def test_what_failed_itself_is_not_undone(failing, undone, shared_pool, tmp_path):
    """Exactly the prefix that was done is undone: an error from run means that nothing was done."""
    flow = chain(*three(tmp_path / "book", **{failing: {"do": "fail"}}))
    with pytest.raises(TaskError, match=f"cannot do {failing}"):
        began(flow, shared_pool, "A").wait(30)
    assert [line.split()[1] for line in read(tmp_path / "book") if "undo" in line] == undone


def test_w4_one_task_at_two_states_is_undone_at_both(shared_pool, tmp_path):
    """Deeds are kept by state: one instance in two states, and a state entered twice, are two deeds."""

    class Twice(Deed):
        def run(self, ctx):
            self.write(f"do {ctx.state}")
            count = ctx.store.get("count", 0)
            ctx.store.put("count", count + 1)
            return {0: "B", 1: "A", 2: "Z"}[count], {"made": f"{ctx.state}{count}"}

        def compensate(self, ctx, output):
            self.write(f"undo {ctx.state} {output['made']}")

    task = Twice(tmp_path / "book", "T", None)
    with pytest.raises(TaskError, match="refused"):
        began(chain(task, task), shared_pool, "A").wait(30)
    assert read(tmp_path / "book")[3:] == ["undo A A2", "undo B B1", "undo A A0"]


def test_a_deep_stack_is_undone_to_its_bottom(shared_pool, tmp_path):
    """A state that was entered many times is undone as often, the last visit first."""

    class Loop(Deed):
        def run(self, ctx):
            ctx.store.add("count")
            count = ctx.store.get("count")
            return "A" if count < 40 else "Z", count

        def compensate(self, ctx, output):
            self.write(output)

    with pytest.raises(TaskError, match="refused"):
        began(chain(Loop(tmp_path / "book", "A", None)), shared_pool, "A").wait(30)
    assert read(tmp_path / "book") == [str(n) for n in range(40, 0, -1)]


def test_going_to_on_error_undoes_nothing(shared_pool, tmp_path):
    """A failure that the workflow answers is no failure of the run."""
    flow = Workflow("saga").register_with_compensation("A", Deed(tmp_path / "book", "A", "Z"))
    flow.register("Z", refuse, on_error="failed").add_exit_state("failed")
    assert began(flow, shared_pool, "A").wait(30) == "failed"
    assert read(tmp_path / "book") == ["do A"]


def test_a_split_that_fails_rolls_back(shared_pool, tmp_path):
    """Whatever fails the run undoes what was done, a join too."""
    flow = Workflow("saga").register_with_compensation("A", Deed(tmp_path / "book", "A", "Z"))
    flow.register_split("Z", [refuse, refuse], JoinConfig(JoinStrategy.any(), "end")).add_exit_state("end")
    with pytest.raises(JoinError):
        began(flow, shared_pool, "A").wait(30)
    assert read(tmp_path / "book") == ["do A", "undo A A"]


def test_a_missing_handler_rolls_back(shared_pool, tmp_path):
    """A state that does not exist is a failure like any other; the deed that named it is undone too."""
    flow = chain(Deed(tmp_path / "book", "A", "nowhere"))
    with pytest.raises(WorkflowError, match="returned 'nowhere'"):
        began(flow, shared_pool, "A").wait(30)
    assert read(tmp_path / "book") == ["do A", "undo A A"]


def test_a_list_of_states_rolls_back(shared_pool, tmp_path):
    """W17: so is a list of states, whose deed is undone."""
    flow = chain(Deed(tmp_path / "book", "A", ["B", "C"]))
    with pytest.raises(WorkflowError, match="use register_split"):
        began(flow, shared_pool, "A").wait(30)
    assert read(tmp_path / "book") == ["do A", "undo A A"]


# -- failures inside the roll-back


@EITHER
def test_a_failing_compensation_stops_none_of_the_others(config, shared_pool, tmp_path):
    """Its error is collected; the run's own failure is the cause and an attribute."""
    seen = Recorder()
    deeds = three(tmp_path / "book", B={"undo": "fail"})
    run = began(chain(*deeds, config=config, seen=seen), shared_pool, "A")
    with pytest.raises(CompensationError, match="cannot undo B") as caught:
        run.wait(30)
    error = caught.value
    assert isinstance(error.original, TaskError)
    assert "refused" in str(error.original)
    assert error.__cause__ is error.original
    assert [(each.state, str(each.__cause__)) for each in error.errors] == [("B", "cannot undo B")]
    assert "'made': 'B'" in "".join(error.errors[0].__notes__)
    assert read(tmp_path / "book")[3:] == ["undo C C", "undo B B", "undo A A"]
    assert run.store.get("undone") == ["C", "A"]
    assert run.report().error is error
    assert [event.detail is None for event in seen.of("compensation_finished")] == [True, False, True]


def test_a_compensation_is_tried_once(shared_pool, tmp_path):
    """Retries are for the way forward."""
    deed = Deed(tmp_path / "book", "A", "Z", undo="fail")
    with pytest.raises(CompensationError):
        began(chain(deed, config=TaskConfig(retry=Retry.fixed(3, 0))), shared_pool, "A").wait(30)
    assert read(tmp_path / "book") == ["do A", "undo A A"]


def test_a_dying_and_a_hanging_compensation_stop_none_of_the_others(shared_pool, tmp_path):
    """One that takes its worker along is lost, one that hangs is killed at its attempt timeout."""
    deeds = three(tmp_path / "book", B={"undo": "hang"}, C={"undo": "die"})
    with pytest.raises(CompensationError) as caught:
        began(chain(*deeds, config=TaskConfig(attempt_timeout=3.0)), shared_pool, "A").wait(30)
    assert [type(error) for error in caught.value.errors] == [WorkerLostError, TaskTimeoutError]
    assert read(tmp_path / "book")[3:] == ["undo C C", "undo B B", "undo A A"]


def test_the_roll_back_as_a_whole_is_bounded(shared_pool, tmp_path):
    """Past the compensation timeout the running one is killed, and the rest are listed with their outputs."""
    deeds = three(tmp_path / "book", C={"undo": "hang"})
    with pytest.raises(CompensationError) as caught:
        began(chain(*deeds, compensation_timeout=3.0), shared_pool, "A").wait(30)
    killed, second, first = caught.value.errors
    assert isinstance(killed, TaskTimeoutError)
    assert (second.state, first.state) == ("B", "A")
    assert "was not compensated" in str(first)
    assert "'made': 'A'" in str(first)
    assert read(tmp_path / "book")[3:] == ["undo C C"]


def test_an_output_that_cannot_be_read_again_is_that_deed_s_error(shared_pool, tmp_path):
    """The others are undone all the same."""

    class Sour:
        def __reduce__(self):
            return _sour, ()

    class Odd(Deed):
        def run(self, ctx):
            return "B", Sour()

    deeds = [Odd(tmp_path / "book", "A", "B"), Deed(tmp_path / "book", "B", "Z")]
    with pytest.raises(CompensationError, match="this output cannot be read"):
        began(chain(*deeds), shared_pool, "A").wait(30)
    assert read(tmp_path / "book") == ["do B", "undo B B"]


def _sour():
    raise RuntimeError("this output cannot be read")


# -- outputs that cannot be kept


class Unkept(Deed):
    """Returns an output that does not pickle."""

    def run(self, ctx):
        self.write(f"do {self.name}")
        self.lock = threading.Lock()
        return self.following, self.lock

    def compensate(self, ctx, output):
        assert output is self.lock
        self.write(f"undo {self.name} at once")
        self.go(self.undo_how, "undo")


@EITHER
def test_an_output_that_cannot_be_kept_is_undone_at_once(config, shared_pool, tmp_path):
    """It is undone with the live output, where it was made; the run fails, and it is not retried."""
    where = config and config.where
    flow = chain(Unkept(tmp_path / "book", "A", "Z"), config=TaskConfig(retry=Retry.fixed(2, 0), where=where))
    with pytest.raises(PayloadError, match="it was compensated at once"):
        began(flow, shared_pool, "A").wait(30)
    assert read(tmp_path / "book") == ["do A", "undo A at once"]


class StubbornError(Exception):
    """An error that does not pickle."""

    def __init__(self):
        super().__init__("stubborn")
        self.lock = threading.Lock()


def test_an_error_that_cannot_travel_is_listed_all_the_same(shared_pool, tmp_path):
    """What compensating at once raised is there by its text."""

    class Odd(Unkept):
        def compensate(self, ctx, output):
            raise StubbornError

    with pytest.raises(CompensationError, match="stubborn") as caught:
        began(chain(Odd(tmp_path / "book", "A", "Z"), config=WORKER), shared_pool, "A").wait(30)
    (error,) = caught.value.errors
    assert error.state == "A"


@EITHER
def test_if_that_fails_too_both_errors_are_there(config, shared_pool, tmp_path):
    """What could not be undone at once is in the CompensationError, beside what the roll-back adds."""
    deeds = [Deed(tmp_path / "book", "A", "B", undo="fail"), Unkept(tmp_path / "book", "B", "Z", undo="fail")]
    with pytest.raises(CompensationError) as caught:
        began(chain(*deeds, config=config), shared_pool, "A").wait(30)
    assert [str(error).rpartition(": ")[2] for error in caught.value.errors] == ["cannot undo B", "cannot undo A"]


# -- in doubt


@pytest.mark.parametrize(
    ("how", "config"),
    [("die", WORKER), ("hang", TaskConfig(attempt_timeout=3.0))],
    ids=["died", "timed out"],
)
@pytest.mark.parametrize("declares", [True, False])
def test_a_killed_deed_is_in_doubt(how, config, declares, shared_pool, tmp_path):
    """Nobody knows what it did: it is undone without an output if it says that it can be, else listed."""
    deeds = three(tmp_path / "book", B={"do": how, "compensates_in_doubt": declares})
    expected = (WorkerLostError, TaskTimeoutError) if declares else CompensationError
    with pytest.raises(expected) as caught:
        began(chain(*deeds, config=config), shared_pool, "A").wait(30)
    if declares:
        assert read(tmp_path / "book") == ["do A", "do B", "undo B None", "undo A A"]
    else:
        (doubt,) = caught.value.errors
        assert "in doubt" in str(doubt)
        assert doubt.state == "B"
        assert isinstance(caught.value.original, (WorkerLostError, TaskTimeoutError))
        assert read(tmp_path / "book") == ["do A", "do B", "undo A A"]


def test_an_attempt_in_doubt_stays_so_when_the_next_succeeds(shared_pool, tmp_path):
    """Both the lost attempt and the one that ended are undone."""

    class Second(Deed):
        def run(self, ctx):
            self.do_how = "die" if ctx.attempt == 1 else "ok"
            return super().run(ctx)

    deed = Second(tmp_path / "book", "A", "Z", compensates_in_doubt=True)
    with pytest.raises(TaskError, match="refused"):
        began(chain(deed, config=TaskConfig(retry=Retry.fixed(1, 0), where="worker")), shared_pool, "A").wait(30)
    assert read(tmp_path / "book") == ["do A", "do A", "undo A A", "undo A None"]


@EITHER
def test_a_deed_that_returns_no_pair_is_in_doubt(config, shared_pool, tmp_path):
    """It has ended, but what it made is unknown."""

    class Odd(Deed):
        def run(self, ctx):
            self.write("do A")
            return "Z"

    deed = Odd(tmp_path / "book", "A", "Z", compensates_in_doubt=True)
    with pytest.raises(WorkflowError, match=r"must return \(state, output\)"):
        began(chain(deed, config=config), shared_pool, "A").wait(30)
    assert read(tmp_path / "book") == ["do A", "undo A None"]


# -- cancels and timeouts


@EITHER
def test_a_cancel_waits_for_a_deed_and_undoes_it(config, shared_pool, tmp_path):
    """A deed is not killed midway: it ends, its effect is known, and it is rolled back with the rest."""
    flow = chain(*three(tmp_path / "book", B={"do": "wait"}), config=config)
    run = began(flow, shared_pool, "A")
    await_that(lambda: "do B" in read(tmp_path / "book"), "B should begin")
    run.cancel("enough")
    mark(tmp_path, "go")
    with pytest.raises(RunCancelledError, match="enough"):
        run.wait(30)
    assert read(tmp_path / "book") == ["do A", "do B", "undo B B", "undo A A"]


class Staged(Deed):
    """Enters the scene and hangs."""

    def run(self, ctx):
        scene = Scene(str(Path(self.book).parent))
        scene.enter(self.name)
        scene.runs(self.name)
        return super().run(ctx)


@pytest.mark.parametrize("declares", [True, False])
def test_past_the_compensation_timeout_a_deed_is_killed(declares, tmp_path):
    """A cancel waits no longer than that: then the deed is dead, and in doubt."""
    with WorkerPool(2) as pool, Witness(tmp_path, "B") as witness:
        deeds = [
            Deed(tmp_path / "book", "A", "B"),
            Staged(tmp_path / "book", "B", "Z", do="hang", compensates_in_doubt=declares),
        ]
        run = began(chain(*deeds, compensation_timeout=SOON), pool, "A")
        witness.scene.await_runs("B")
        run.cancel("enough")
        with pytest.raises(RunCancelledError if declares else CompensationError) as caught:
            run.wait(30)
        assert witness.survivors() == []
        assert read(tmp_path / "book")[2:] == (["undo B None"] if declares else []) + ["undo A A"]
        if not declares:
            assert isinstance(caught.value.original, RunCancelledError)
        assert_works(pool)


@pytest.mark.parametrize("last", ["A", "B"])
def test_w8_the_total_timeout_waits_for_a_deed_and_is_seen_after_it(last, shared_pool, tmp_path):
    """The deed ends after the run's time is up: no other state is entered, and the roll-back has its own time."""
    flow = chain(*three(tmp_path / "book", **{last: {"do": "wait"}}), total_timeout=SOON, compensation_timeout=20)
    run = began(flow, shared_pool, "A")
    up = time.monotonic() + SOON
    await_that(lambda: f"do {last}" in read(tmp_path / "book"), f"{last} should begin")
    await_that(lambda: time.monotonic() > up, "the run's time should be up")
    mark(tmp_path, "go")
    with pytest.raises(WorkflowTimeoutError):
        run.wait(30)
    done = "AB"[: "AB".index(last) + 1]
    assert read(tmp_path / "book") == [f"do {name}" for name in done] + [f"undo {name} {name}" for name in done[::-1]]


@EITHER
def test_a_roll_back_is_not_cancelled(config, shared_pool, tmp_path):
    """A cancel that comes while rolling back changes nothing."""
    flow = chain(*three(tmp_path / "book", C={"undo": "wait"}), config=config)
    run = began(flow, shared_pool, "A")
    await_that(lambda: "undo C C" in read(tmp_path / "book"), "the roll-back should begin")
    run.cancel("too late")
    mark(tmp_path, "go")
    with pytest.raises(TaskError, match="refused"):
        run.wait(30)
    assert read(tmp_path / "book")[3:] == ["undo C C", "undo B B", "undo A A"]


def test_a_cancel_between_attempts_does_not_wait(shared_pool, tmp_path):
    """While a deed waits for its next attempt nothing is under way that a cancel would have to spare."""
    seen = Recorder()
    deed = Deed(tmp_path / "book", "A", "Z", do="fail")
    run = began(chain(deed, config=TaskConfig(retry=Retry.fixed(1, FOREVER)), seen=seen), shared_pool, "A")
    seen.await_kind("retry")
    run.cancel("enough")
    with pytest.raises(RunCancelledError, match="enough"):
        run.wait(30)
    assert read(tmp_path / "book") == ["do A"]


def test_a_cancel_with_a_failing_compensation_says_both(shared_pool, tmp_path):
    """The CompensationError has the cancel as its cause, and the run counts as cancelled."""
    seen = Recorder()
    flow = chain(
        Deed(tmp_path / "book", "A", "Z", undo="fail"), then=lambda ctx: _until_cancelled(ctx, tmp_path), seen=seen
    )
    run = began(flow, shared_pool, "A")
    await_marks(tmp_path, "runs")
    run.cancel("enough")
    with pytest.raises(CompensationError) as caught:
        run.wait(30)
    assert isinstance(caught.value.original, RunCancelledError)
    assert seen.kinds()[-1] == "run_cancelled"


def _until_cancelled(ctx, place):
    mark(place, "runs")
    await_that(lambda: ctx.cancelled, "the run should be cancelled")
    return "Z"


def test_deeds_share_nothing_between_runs(shared_pool, tmp_path):
    """Runs side by side roll back their own deeds only."""

    class Own(Deed):
        def write(self, line):
            pass

        def run(self, ctx):
            mark(str(tmp_path), f"do-{ctx.run_id}")
            return "Z", {"made": ctx.run_id}

        def compensate(self, ctx, output):
            mark(str(tmp_path), f"undo-{output['made']}")

    flow = chain(Own(tmp_path / "book", "A", "Z"), then=lambda ctx: refuse() if ctx.params.fails else "end")
    runs = [began(flow, shared_pool, "A", params={"fails": n % 2 == 0}, run_id=f"r{n}") for n in range(6)]
    for n, run in enumerate(runs):
        if n % 2 == 0:
            with pytest.raises(TaskError):
                run.wait(30)
        else:
            assert run.wait(30) == "end"
    assert {name for name in marks(tmp_path) if name.startswith("undo")} == {"undo-r0", "undo-r2", "undo-r4"}


@EITHER
def test_what_a_deed_wrote_stays_in_the_store_until_it_is_undone(config, shared_pool, tmp_path):
    """The store is not rolled back: compensations see it as the failed run left it, and write to it themselves."""

    class Looks(Deed):
        def compensate(self, ctx, output):
            ctx.store.put("seen", ctx.store.get("done"))

    flow = chain(Looks(tmp_path / "book", "A", "B"), Deed(tmp_path / "book", "B", "Z"), config=config)
    run = began(flow, shared_pool, "A")
    with pytest.raises(TaskError, match="refused"):
        run.wait(30)
    assert run.store.get("seen") == ["A", "B"]
