"""The scheduler over real processes: what it ends is dead, and what it runs by the clock runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from canobatch import JoinConfig, JoinStrategy, RunCancelledError, Task, TaskConfig, TaskError, Workflow
from canobatch.errors import CompensationError, SchedulerError, WorkflowTimeoutError
from canobatch.journal import SqliteJournal
from canobatch.models import BatchTask, CompensatableTask, More, Pending, PollTask, SteppedTask, TimerTask
from canobatch.scheduler import BackoffPolicy, FlowStatus, Scheduler
from tests.support.losers import Loser
from tests.support.watch import NEVER, Scene, Witness, await_that, is_alive


@pytest.fixture
def witness(tmp_path):
    """Sees one loser, "a", and one, "b"."""
    with Witness(tmp_path, "a", "b") as witness:
        yield witness


class Stubborn(Task):
    """Says by the run's parameter ``name`` that it runs, and ignores everything."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def run(self, ctx):
        name = ctx.params.name
        return Loser(name, "ignores_sigterm", self.place).run(ctx)


def stubborn(place: Path) -> Workflow:
    """A workflow that never ends by itself."""
    return Workflow("stubborn").register("start", Stubborn(place)).add_exit_state("done")


def own_pid(ctx):
    """Leave the pid of the process that runs this."""
    ctx.store.put("pid", os.getpid())
    return "done"


def test_single_tasks_run_in_workers(shared_pool):
    """Under a scheduler they can be killed; one that says "parent" stays here."""
    there = Workflow("there").register("start", own_pid).add_exit_state("done")
    here = Workflow("here").register("start", own_pid, config=TaskConfig(where="parent")).add_exit_state("done")
    scheduler = Scheduler(pool=shared_pool).manual("there", there, "start").manual("here", here, "start")
    with scheduler.start() as running:
        runs = {flow: running.trigger(flow) for flow in ("there", "here")}
        assert {run.wait(NEVER) for run in runs.values()} == {"done"}
    assert runs["there"].store.get("pid") in {worker.pid for worker in shared_pool.workers}
    assert runs["here"].store.get("pid") == os.getpid()


def test_an_interval_runs_by_the_real_clock(shared_pool):
    """Every 50 ms, until it is stopped; no tick runs twice, and each is recorded."""
    workflow = Workflow("w").register("start", own_pid).add_exit_state("done")
    with Scheduler(pool=shared_pool).every("f", workflow, "start", 0.05).start() as running:
        await_that(lambda: running.status("f").run_count >= 5, "five runs should begin")
    records = running.history("f", 1000)
    ticks = [record.tick for record in records if record.kind in ("fired", "skipped")]
    assert len(set(ticks)) == len(ticks) >= 5
    assert running.status("f").status is FlowStatus.COMPLETED
    assert sum(record.kind == "finished" for record in records) == running.status("f").run_count


def test_a_cancelled_flow_is_dead(shared_pool, tmp_path, witness):
    """Whatever its task ignores, it is dead when the run has ended, and the flow is idle and runs again."""
    with Scheduler(pool=shared_pool).manual("f", stubborn(tmp_path), "start").start() as running:
        for name in ("a", "b"):
            run = running.trigger("f", {"name": name})
            witness.scene.await_runs(name)
            running.cancel_flow("f")
            with pytest.raises(RunCancelledError):
                run.wait(NEVER)
            assert running.status("f").status is FlowStatus.IDLE
            assert not any(is_alive(pid) for pid in witness.scene.pids(name))
    assert witness.survivors() == []


def test_a_split_under_a_scheduler_is_cancelled_whole(shared_pool, tmp_path, witness):
    """All branches of a running split are dead when the run has ended."""
    losers = [Loser(name, how, str(tmp_path)) for name, how in [("a", "ignores_sigterm"), ("b", "loops_in_c")]]
    workflow = Workflow("w").register_split("s", losers, JoinConfig(JoinStrategy.all(), "done")).add_exit_state("done")
    with Scheduler(pool=shared_pool).every_hours("f", workflow, "s", 1).start() as running:
        witness.scene.await_runs("a", "b")
        running.cancel_flow("f")
        await_that(lambda: running.status("f").status is FlowStatus.IDLE, "it should be idle")
        assert witness.survivors() == []


class Steps(SteppedTask):
    """Goes on for ever."""

    def step(self, ctx, cursor):
        Path(ctx.params.place, "begun").touch()
        time.sleep(0.005)
        return More((cursor or 0) + 1)


class Timed(TimerTask):
    """Waits for an hour."""

    def wait(self, ctx):
        Path(ctx.params.place, "begun").touch()
        return 3600.0

    def after_wait(self, ctx):
        return "done"


class Polled(PollTask):
    """Is never ready."""

    def poll(self, ctx):
        Path(ctx.params.place, "begun").touch()
        return Pending(0.005)


class Items(BatchTask):
    """Whose items do not end."""

    def load(self, ctx):
        return [ctx.params.place] * 3

    def process_item(self, ctx, place):
        Path(place, "begun").touch()
        time.sleep(3600)

    def finish(self, ctx, results):
        return "done"


@pytest.mark.parametrize("is_kept", [False, True], ids=["", "journal"])
@pytest.mark.parametrize("model", [Steps, Timed, Polled, Items])
def test_a_cancel_reaches_every_model(shared_pool, tmp_path, model, is_kept):
    """In whatever it is, the run ends as cancelled, with a journal and without; the flow is idle and runs again."""
    journal = SqliteJournal(tmp_path / "journal") if is_kept else None
    workflow = Workflow("w", journal=journal).register("start", model()).add_exit_state("done")
    params = {"place": str(tmp_path)}
    with Scheduler(pool=shared_pool).every_hours("f", workflow, "start", 1, params=params).start() as running:
        for _ in range(2):
            await_that((tmp_path / "begun").exists, "it should begin")
            running.cancel_flow("f")
            await_that(lambda: running.status("f").status is FlowStatus.IDLE, "it should be idle")
            assert running.history("f")[-1].kind == "cancelled"
            (tmp_path / "begun").unlink()
            running.trigger("f")
        running.cancel_flow("f")


@pytest.mark.parametrize("policy", ["cancel_old", "kill_old"])
def test_the_old_run_is_dead_before_the_new_one_begins(shared_pool, tmp_path, witness, policy):
    """The new run's task starts when no process of the old one's is alive."""

    def look(ctx):
        left = [pid for pid in Scene(str(tmp_path)).pids("a") if is_alive(pid)]
        ctx.store.put("left", left)
        return "done"

    def turn(ctx):
        return "stubborn" if hasattr(ctx.params, "name") else "look"

    workflow = (
        Workflow("w")
        .register("start", turn)
        .register("stubborn", Stubborn(tmp_path))
        .register("look", look)
        .add_exit_state("done")
    )
    with Scheduler(pool=shared_pool).manual("f", workflow, "start", overlap=policy).start() as running:
        old = running.trigger("f", {"name": "a"})
        witness.scene.await_runs("a")
        new = running.trigger("f")
        assert new.wait(NEVER) == "done"
        assert new.store.get("left") == []
        with pytest.raises(RunCancelledError, match="takes its place"):
            old.wait(0)


def test_a_run_that_takes_too_long_has_failed(shared_pool, tmp_path, witness):
    """The flow's timeout kills it; that counts as a failure, and the error says the limit."""
    scheduler = Scheduler(pool=shared_pool).manual("f", stubborn(tmp_path), "start", timeout=0.5)
    with scheduler.start() as running:
        run = running.trigger("f", {"name": "a"})
        with pytest.raises(WorkflowTimeoutError, match=r"within 0\.5 s"):
            run.wait(NEVER)
        info = running.status("f")
        assert (info.status, info.failure_streak) == (FlowStatus.IDLE, 1)
    assert witness.survivors() == []


def test_what_ignores_everything_is_dead_when_stop_returns(shared_pool, tmp_path, witness):
    """The deadline is real: stop kills what is left shortly before it, and returns without error."""
    running = Scheduler(pool=shared_pool).manual("f", stubborn(tmp_path), "start").start()
    run = running.trigger("f", {"name": "a"})
    witness.scene.await_runs("a")
    began = time.monotonic()
    running.stop(1.0)
    assert time.monotonic() - began < 15.0
    assert running.is_stopped
    assert witness.survivors() == []
    with pytest.raises(RunCancelledError, match="the scheduler was stopped"):
        run.wait(0)


class Deed(CompensatableTask):
    """Leaves a file when it is done, and another one when it is undone; waits for a third while it runs."""

    compensates_in_doubt = True

    def __init__(self, place: Path, following: str, gate: str = "") -> None:
        self.place, self.following, self.gate = str(place), following, gate

    def run(self, ctx):
        Path(self.place, "begun").touch()
        while self.gate and not Path(self.place, self.gate).exists():
            time.sleep(0.005)
        Path(self.place, "done").touch()
        return self.following, "output"

    def compensate(self, ctx, output):
        Path(self.place, "undone").write_text(str(output))


def test_what_was_done_is_undone_when_stop_returns(shared_pool, tmp_path, witness):
    """A deed, then a task that ignores everything: dead when stop returns, and the deed has been compensated."""
    workflow = (
        Workflow("saga")
        .register_with_compensation("deed", Deed(tmp_path, "stubborn"))
        .register("stubborn", Stubborn(tmp_path))
        .add_exit_state("done")
    )
    running = Scheduler(pool=shared_pool).manual("f", workflow, "deed").start()
    running.trigger("f", {"name": "a"})
    witness.scene.await_runs("a")
    # As after an error in a with block: cancelled at once, with time to roll back.
    running._stop(time.monotonic(), time.monotonic() + NEVER)
    assert witness.survivors() == []
    assert (tmp_path / "undone").read_text() == "output"
    assert running.status("f").status is FlowStatus.IDLE


def test_a_deed_that_does_not_end_is_killed_before_stop_returns(shared_pool, tmp_path):
    """A cancel waits for it for ever; shortly before the deadline it is killed, and undone in doubt."""
    workflow = Workflow("saga").register_with_compensation("deed", Deed(tmp_path, "done", "gate"))
    running = Scheduler(pool=shared_pool).manual("f", workflow.add_exit_state("done"), "deed").start()
    run = running.trigger("f")
    await_that((tmp_path / "begun").exists, "the deed should begin")
    running._stop(time.monotonic(), time.monotonic() + 10.0)
    with pytest.raises(RunCancelledError):
        run.wait(0)
    assert (tmp_path / "undone").read_text() == "None"
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(("policy", "is_done"), [("cancel_old", True), ("kill_old", False)])
def test_a_deed_is_waited_for_or_killed(shared_pool, tmp_path, policy, is_done):
    """cancel_old lets a deed come to its end, and undoes it; kill_old cuts it short, and undoes it in doubt."""
    workflow = (
        Workflow("saga")
        .register("turn", lambda ctx: "deed" if hasattr(ctx.params, "deed") else "done")
        .register_with_compensation("deed", Deed(tmp_path, "after", "gate"))
        .register("after", lambda: "done")
        .add_exit_state("done")
    )
    with Scheduler(pool=shared_pool).manual("f", workflow, "turn", overlap=policy).start() as running:
        old = running.trigger("f", {"deed": True})
        await_that((tmp_path / "begun").exists, "the deed should begin")
        new = running.trigger("f")
        if is_done:
            with pytest.raises(TimeoutError):
                new.wait(0.3)
            (tmp_path / "gate").touch()
        assert new.wait(NEVER) == "done"
        with pytest.raises(RunCancelledError):
            old.wait(NEVER)
    assert (tmp_path / "done").exists() is is_done
    assert (tmp_path / "undone").read_text() == ("output" if is_done else "None")


class Stuck(Deed):
    """Cannot be undone."""

    def compensate(self, ctx, output):
        raise ValueError("stuck")


@pytest.mark.parametrize(
    ("deed", "status", "streak", "kind"),
    [(Deed, FlowStatus.IDLE, 0, "cancelled"), (Stuck, FlowStatus.BACKOFF, 1, "failed")],
)
def test_a_cancelled_flow_is_rolled_back(shared_pool, tmp_path, witness, deed, status, streak, kind):
    """What could be undone is, and the flow is idle; what could not be undone is a failure, and the flow rests."""
    workflow = (
        Workflow("saga")
        .register_with_compensation("deed", deed(tmp_path, "stubborn"))
        .register("stubborn", Stubborn(tmp_path))
        .add_exit_state("done")
    )
    options = {"params": {"name": "a"}, "backoff": BackoffPolicy(60)}
    with Scheduler(pool=shared_pool).manual("f", workflow, "deed", **options).start() as running:
        run = running.trigger("f")
        witness.scene.await_runs("a")
        running.cancel_flow("f")
        with pytest.raises(RunCancelledError if kind == "cancelled" else CompensationError):
            run.wait(NEVER)
        info = running.status("f")
        assert (info.status, info.failure_streak) == (status, streak)
        assert running.history("f")[-1].kind == kind
    assert (tmp_path / "undone").exists() is (kind == "cancelled")
    assert witness.survivors() == []


def test_a_run_in_time_is_not_cancelled_by_a_stop(shared_pool, tmp_path):
    """What ends within the time that stop is given has finished."""
    (tmp_path / "gate").touch()

    def wait_for_gate():
        while (tmp_path / "gate").exists():
            time.sleep(0.005)
        return "done"

    workflow = Workflow("w").register("start", wait_for_gate).add_exit_state("done")
    running = Scheduler(pool=shared_pool).manual("f", workflow, "start").start()
    run = running.trigger("f")
    opener = threading.Timer(0.1, (tmp_path / "gate").unlink)
    opener.start()
    running.stop(NEVER)
    assert run.wait(0) == "done"
    opener.join()


def test_a_worker_s_death_is_one_failure(shared_pool):
    """The run fails with the signal, the flow goes on, the next run succeeds."""

    def die(ctx):
        if hasattr(ctx.params, "dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    config = TaskConfig(retry_lost_worker=False)
    workflow = Workflow("w").register("start", die, config=config).add_exit_state("done")
    with Scheduler(pool=shared_pool).manual("f", workflow, "start").start() as running:
        with pytest.raises(TaskError):
            running.trigger("f", {"dies": True}).wait(NEVER)
        assert running.status("f").failure_streak == 1
        assert running.trigger("f").wait(NEVER) == "done"


#: A scheduler that serves until a signal, with one flow whose task ends when a file is there.
SERVER = """
import logging, os, sys, time
from pathlib import Path
from canobatch import RunCancelledError, Workflow, WorkerPool
from canobatch.errors import SchedulerError
from canobatch.scheduler import Scheduler

logging.basicConfig(stream=sys.stdout, level=logging.INFO)

def work():
    Path("begun").touch()
    while not Path("gate").exists():
        time.sleep(0.005)
    return "done"

workflow = Workflow("w").register("start", work).add_exit_state("done")
with WorkerPool(1) as pool:
    with Scheduler(pool=pool).every_hours("f", workflow, "start", 1).start() as running:
        while not Path("begun").exists():
            time.sleep(0.005)
        number = running.serve(timeout=float(sys.argv[1]))
        print("stopped by", number, [record.kind for record in running.history("f")], flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_runs_come_to_their_end(start_script, tmp_path, number):
    """The run finishes, serve returns the signal, and the program goes on to its own end."""
    script = start_script(SERVER, 60)
    script.wait_for("serving")
    script.process.send_signal(number)
    (tmp_path / "gate").touch()
    assert script.process.wait(NEVER) == 0
    assert f"stopped by {int(number)} ['fired', 'finished']" in script.stdout
    assert script.survivors(within=3.0) == {}


def test_a_signal_kills_what_does_not_end_in_time(start_script):
    """After the time that it was given, the run is cancelled and nothing of it is left."""
    script = start_script(SERVER, 0.2)
    script.wait_for("serving")
    script.process.send_signal(signal.SIGTERM)
    assert script.process.wait(NEVER) == 0
    assert "['fired', 'cancelled']" in script.stdout
    assert script.survivors(within=3.0) == {}


def test_a_second_signal_kills_at_once(start_script):
    """The process dies of it, long before the time is over, and takes everything along."""
    script = start_script(SERVER, 600)
    script.wait_for("serving")
    script.process.send_signal(signal.SIGTERM)
    # The kernel merges two that are pending.
    script.wait_for("stopping at signal")
    script.process.send_signal(signal.SIGTERM)
    assert script.process.wait(NEVER) == -signal.SIGTERM
    assert script.survivors(within=3.0) == {}


#: Goes before SERVER: another thread takes a signal for each file that the test makes.
TAKER = """
import signal, threading, time
from pathlib import Path

def take():
    for name in ("first", "second"):
        while not Path(name).exists():
            time.sleep(0.005)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

threading.Thread(target=take, daemon=True).start()
"""


def test_a_signal_is_heard_whichever_thread_it_interrupts(start_script, tmp_path):
    """Python notes it and wakes nobody: a main thread that slept in a lock would sleep on."""
    script = start_script(TAKER + SERVER, 60)
    script.wait_for("serving")
    (tmp_path / "first").touch()
    script.wait_for("stopping at signal")
    (tmp_path / "gate").touch()
    assert script.process.wait(NEVER) == 0
    assert f"stopped by {int(signal.SIGTERM)} ['fired', 'finished']" in script.stdout


def test_a_second_signal_kills_whichever_thread_it_interrupts(start_script, tmp_path):
    """It is not for Python to take note of it."""
    script = start_script(TAKER + SERVER, 600)
    script.wait_for("serving")
    (tmp_path / "first").touch()
    script.wait_for("stopping at signal")
    (tmp_path / "second").touch()
    assert script.process.wait(NEVER) == -signal.SIGTERM
    assert script.survivors(within=3.0) == {}


def test_a_server_ends_with_its_scheduler(start_script):
    """Stopped by somebody else, serve returns None."""
    program = SERVER.replace(
        "number = running", "threading.Timer(0.1, running.stop, [0]).start()\n        number = running"
    )
    script = start_script("import threading\n" + program, 60)
    assert script.process.wait(NEVER) == 0
    assert "stopped by None" in script.stdout


def test_a_task_in_this_process_that_ignores_its_end_is_named(tmp_path):
    """stop returns at its deadline with an error; the end of the gate ends the run after all."""
    (tmp_path / "gate").touch()

    def wait_for_gate():
        while (tmp_path / "gate").exists():
            time.sleep(0.005)
        return "done"

    config = TaskConfig(where="parent")
    workflow = Workflow("w").register("start", wait_for_gate, config=config).add_exit_state("done")
    running = Scheduler().manual("f", workflow, "start").start()
    run = running.trigger("f")
    began = time.monotonic()
    with pytest.raises(SchedulerError, match=f"run {run.id} in state 'start'"):
        running.stop(0.2)
    assert time.monotonic() - began < 15.0
    (tmp_path / "gate").unlink()
    running.stop()
    assert run.wait(0) == "done"
