"""Schedulers in processes of their own on one home: each tick once, no overlap, and what a kill leaves."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from canobatch import TaskConfig, Workflow
from canobatch.errors import ConfigurationError, FlowOverlapError
from canobatch.scheduler import FlowHome, FlowStatus, Scheduler
from canobatch.scheduler._bells import Bells
from canobatch.scheduler.home import SqliteLedger
from canobatch.scheduler.ledger import Claim
from tests.support.watch import NEVER, await_that, is_alive, state_of

#: A scheduler of one flow. Its body proves by a lock of its own that no other body runs, and leaves a line for
#: each beginning and each end; arguments: home, interval, seconds of a body, overlap policy, what else it starts,
#: catch-up policy.
PROGRAM = """
import fcntl, logging, os, subprocess, sys, time
from canobatch import WorkerPool, Workflow
from canobatch.scheduler import Scheduler

home, interval, length, overlap, more, catchup = sys.argv[1:7]
logging.basicConfig(stream=sys.stdout, level=logging.INFO)

def say(text):
    fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (text + "\\n").encode())
    os.close(fd)

def body(ctx):
    lock = os.open("body.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"OVERLAP {ctx.run_id}")
    if more == "daemon":
        child = subprocess.Popen(["sleep", "100000"], start_new_session=True)
        say(f"child {child.pid}")
    say(f"begin {ctx.run_id} {os.getpid()}")
    time.sleep(float(length))
    say(f"end {ctx.run_id}")
    os.close(lock)
    return "done"

workflow = Workflow("w").register("start", body).add_exit_state("done")
with WorkerPool(1, spares=0) as pool:
    pool.warm_up()
    options = {"overlap": overlap, "catchup": catchup}
    scheduler = Scheduler(home, pool=pool).every("f", workflow, "start", float(interval), **options)
    with scheduler.start() as running:
        running.serve(timeout=20)
"""


class Log:
    """What the bodies have written."""

    def __init__(self, place: Path) -> None:
        self._path = place / "log"

    def lines(self, word: str) -> list[list[str]]:
        """The words after ``word`` of the lines that begin with it."""
        text = self._path.read_text() if self._path.exists() else ""
        return [line.split()[1:] for line in text.splitlines() if line.startswith(word)]


@pytest.fixture
def log(tmp_path):
    """The log of the bodies."""
    return Log(tmp_path)


@pytest.fixture
def launch(start_script, tmp_path):
    """Start a scheduler process and wait until it runs."""

    def start(interval, length, overlap="skip", more="", catchup="skip", *, waits=True):
        script = start_script(PROGRAM, tmp_path / "home", interval, length, overlap, more, catchup)
        if waits:
            script.wait_for("serving")
        return script

    return start


def ended(*scripts) -> None:
    """Stop schedulers by SIGTERM; nothing of them may be left."""
    for script in scripts:
        script.process.send_signal(signal.SIGTERM)
    for script in scripts:
        assert script.process.wait(NEVER) == 0, script.stdout + script.stderr
        assert script.stderr == ""
        assert script.survivors(within=3.0) == {}


def share_ticks(launch, log, home, count, interval, bodies, timeout=NEVER):
    """Let some schedulers run a flow until so many bodies have ended; each tick must be in the records once.

    Returns:
        The records.
    """
    scripts = [launch(interval, 0, waits=False) for _ in range(count)]
    for script in scripts:
        script.wait_for("serving")
    await_that(lambda: len(log.lines("end")) >= bodies, f"{bodies} bodies should end", timeout)
    ended(*scripts)
    with FlowHome(home) as flows:
        records = flows.history("f", 1000)
    fired = [record for record in records if record.kind == "fired"]
    assert sorted(run for run, _ in log.lines("begin")) == sorted(record.run_id for record in fired)
    assert log.lines("OVERLAP") == []
    check_grid(records, interval)
    return records


def ticks_of(records, interval):
    """Each tick that the records tell of, with what became of it: None if it was fired, else why it was skipped."""
    step = timedelta(seconds=interval)
    return [
        (record.tick + n * step, None if record.kind == "fired" else record.reason)
        for record in records
        if record.kind in ("fired", "skipped")
        for n in range(record.count)
    ]


def check_grid(records, interval) -> None:
    """Each tick of the grid is in the records, once."""
    ticks = sorted(tick for tick, _ in ticks_of(records, interval))
    assert ticks == [ticks[0] + n * timedelta(seconds=interval) for n in range(len(ticks))]


@pytest.mark.parametrize("count", [2, 4])
def test_several_schedulers_share_the_ticks(launch, log, tmp_path, count):
    """Of 0.2 s ticks each runs exactly once, or is skipped with a reason; none is missing from the grid."""
    share_ticks(launch, log, tmp_path / "home", count, 0.2, 12)


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [2, 4])
def test_several_schedulers_share_the_ticks_of_a_minute(launch, log, tmp_path, count):
    """For 60 s of one-second ticks, every one runs, exactly once."""
    records = share_ticks(launch, log, tmp_path / "home", count, 1.0, 60, 120.0)
    assert [record for record in records if record.kind == "skipped"] == []
    assert len(log.lines("begin")) >= 60


def test_a_killed_holder_frees_its_flow_at_once(launch, log, tmp_path):
    """Killed in the midst of a body, it is recorded as interrupted, and the other's next tick runs."""
    first = launch(0.5, 100_000)
    await_that(lambda: len(log.lines("begin")) == 1, "the first body should run")
    second = launch(0.5, 0)
    ((run_id, pid),) = log.lines("begin")
    first.process.kill()
    await_that(lambda: len(log.lines("end")) >= 1, "the next body should end")
    assert not is_alive(int(pid))
    assert log.lines("OVERLAP") == []
    ended(second)
    with FlowHome(tmp_path / "home") as home:
        (interrupted,) = [record for record in home.history("f", 1000) if record.kind == "interrupted"]
    assert interrupted.run_id == run_id
    assert f"process {first.process.pid}" in interrupted.reason
    assert first.survivors(within=3.0) == {}


def suspend(script, seconds: float):
    """Stop a scheduler and all that it started, as a suspend does, and let them go on; return from when to when."""
    launcher = psutil.Process(script.process.pid)
    launcher.suspend()
    family = [launcher, *launcher.children(recursive=True)]
    for process in family:
        process.suspend()
    await_that(lambda: state_of(launcher.pid) == "T", "it should stand still")
    stood_from = datetime.now(UTC)
    time.sleep(seconds)
    stood_until = datetime.now(UTC)
    for process in family:
        process.resume()
    return stood_from, stood_until


@pytest.mark.parametrize("catchup", ["skip", "last", "all"])
def test_a_suspended_scheduler_accounts_for_every_tick(launch, log, tmp_path, catchup):
    """Ten ticks pass while it stands still: the newest runs and the others were missed, or all run; none twice."""
    script = launch(0.2, 0, catchup=catchup)
    await_that(lambda: len(log.lines("end")) >= 2, "two bodies should end")
    stood_from, stood_until = suspend(script, 2.0)
    count = len(log.lines("begin"))
    await_that(lambda: len(log.lines("end")) > count + (10 if catchup == "all" else 2), "it should go on")
    ended(script)
    with FlowHome(tmp_path / "home") as flows:
        records = flows.history("f", 1000)
    check_grid(records, 0.2)
    assert log.lines("OVERLAP") == []
    assert sorted(run for run, _ in log.lines("begin")) == sorted(r.run_id for r in records if r.kind == "fired")
    stood = [why for tick, why in ticks_of(records, 0.2) if stood_from < tick < stood_until - timedelta(seconds=0.2)]
    assert len(stood) >= 8
    assert set(stood) == ({None} if catchup == "all" else {"missed"})


def test_what_a_suspended_scheduler_missed_is_not_repeated(launch, log, tmp_path):
    """Of two, one stands still for ten ticks, which are the other's; when it goes on it repeats none of them."""
    scripts = [launch(0.2, 0, catchup="all") for _ in range(2)]
    await_that(lambda: len(log.lines("end")) >= 2, "two bodies should end")
    suspend(scripts[0], 2.0)
    count = len(log.lines("begin"))
    await_that(lambda: len(log.lines("end")) > count + 2, "both should go on")
    ended(*scripts)
    with FlowHome(tmp_path / "home") as flows:
        records = flows.history("f", 1000)
    check_grid(records, 0.2)
    assert log.lines("OVERLAP") == []
    runs = [run for run, _ in log.lines("begin")]
    assert len(set(runs)) == len(runs)


def test_what_a_holder_and_its_keeper_left_is_killed(launch, log):
    """With the keeper gone too, a daemon of the body's outlives both, until the flow is taken over."""
    first = launch(0.5, 100_000, "skip", "daemon")
    await_that(lambda: len(log.lines("begin")) == 1, "the first body should run")
    ((child,),) = log.lines("child")
    (keeper,) = psutil.Process(first.process.pid).children()
    keeper.suspend()
    first.process.kill()
    keeper.kill()
    first.process.wait(NEVER)
    second = launch(0.5, 0)
    await_that(lambda: len(log.lines("end")) >= 1, "the next body should end")
    assert not is_alive(int(child))
    assert log.lines("OVERLAP") == []
    ended(second)


def kill_at_random(launch, log, times: int) -> None:
    """Kill one of two schedulers at a random moment, and see that the other goes on; replace it; again."""
    chance = random.Random(times)
    scripts = [launch(0.2, 0.3), launch(0.2, 0.3)]
    for _ in range(times):
        time.sleep(chance.uniform(0.0, 0.5))
        victim = scripts.pop(chance.randrange(2))
        victim.process.kill()
        victim.process.wait(NEVER)
        count = len(log.lines("begin"))
        await_that(lambda: len(log.lines("begin")) > count, "the other should go on", 15.0)
        assert victim.survivors(within=3.0) == {}
        assert victim.stderr == ""
        assert scripts[0].process.poll() is None, scripts[0].stdout
        scripts.append(launch(0.2, 0.3))
    assert log.lines("OVERLAP") == []
    ended(*scripts)
    runs = [run for run, _ in log.lines("begin")]
    assert len(set(runs)) == len(runs)


def test_holders_killed_at_random_moments(launch, log):
    """Five times: no two bodies ever overlap, none runs twice, and nothing is left."""
    kill_at_random(launch, log, 5)


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_holders_killed_at_random_moments_many_times(launch, log):
    """Fifty times the same."""
    kill_at_random(launch, log, 50)


def test_a_tick_waits_for_another_process(launch, log, tmp_path):
    """Under queue_one a tick that one process queued runs when the other's body has ended; still no overlap."""
    scripts = [launch(0.3, 0.5, "queue_one", waits=False) for _ in range(2)]
    for script in scripts:
        script.wait_for("serving")
    await_that(lambda: len(log.lines("end")) >= 4, "four bodies should end")
    ended(*scripts)
    assert log.lines("OVERLAP") == []
    with FlowHome(tmp_path / "home") as home:
        records = home.history("f", 1000)
    queued = {record.tick for record in records if record.kind == "queued"}
    assert queued & {record.tick for record in records if record.kind == "fired"}


def test_what_waits_for_a_killed_holder_begins_at_once(launch, log, tmp_path):
    """A trigger that waits for another process's run begins when that process is killed, though no tick is near."""
    holder = launch(100_000, 100_000, "queue_one")
    await_that(lambda: len(log.lines("begin")) == 1, "the body should run")
    workflow = Workflow("w").register("start", lambda: "done", config=TaskConfig(where="parent")).add_exit_state("done")
    scheduler = Scheduler(tmp_path / "home").every("f", workflow, "start", 100_000, overlap="queue_one")
    with scheduler.start() as running:
        run = running.trigger("f")
        with pytest.raises(TimeoutError):
            run.wait(0.1)
        holder.process.kill()
        assert run.wait(NEVER) == "done"
        kinds = [record.kind for record in running.history("f")]
    assert kinds == ["fired", "queued", "interrupted", "fired", "finished"]


#: A workflow with a journal whose second state ends only when it finds a file; each state leaves a line.
JOURNALED = """
import logging, os, sys, time
from pathlib import Path
from canobatch import Workflow
from canobatch.journal import SqliteJournal
from canobatch.scheduler import Scheduler

place = Path(__file__).parent
logging.basicConfig(stream=sys.stdout, level=logging.INFO)

def say(text):
    with open(place / "log", "a") as log:
        log.write(text + "\\n")

def first(ctx):
    say(f"first {ctx.run_id} {ctx.params.day}")
    return "second"

def second(ctx):
    say(f"second {ctx.run_id} {ctx.params.day}")
    while not (place / "gate").exists():
        time.sleep(0.005)
    return "done"

def scheduler(policy):
    workflow = Workflow("w", journal=SqliteJournal(place / "home"))
    workflow.register("first", first).register("second", second).add_exit_state("done")
    params = {"day": "Monday"}
    return Scheduler(place / "home").manual("f", workflow, "first", params=params, on_interrupted=policy)

with scheduler(sys.argv[1]).start() as running:
    if sys.argv[2] == "first":
        running.trigger("f", {"day": "Friday"})
    running.serve()
"""


@pytest.mark.parametrize(
    ("policy", "states"),
    [
        ("leave", ["first Friday", "second Friday"]),
        ("restart", ["first Friday", "second Friday", "first Monday", "second Monday"]),
        ("resume", ["first Friday", "second Friday", "second Friday"]),
    ],
)
def test_an_interrupted_run_is_left_restarted_or_resumed(start_script, log, tmp_path, policy, states):
    """The next scheduler leaves it, begins a new run, or goes on from the journal without the recorded state."""
    path = tmp_path / "journaled.py"
    path.write_text(JOURNALED)
    first = start_script(path, policy, "first")
    await_that(lambda: len(log.lines("second")) == 1, "the second state should be entered")
    first.process.kill()
    first.process.wait(NEVER)
    assert first.survivors(within=3.0) == {}
    (tmp_path / "gate").touch()
    second = start_script(path, policy, "second")
    last = "interrupted" if policy == "leave" else "finished"
    with FlowHome(tmp_path / "home") as home:
        await_that(lambda: home.history("f")[-1].kind == last, "it should be dealt with")
        records = home.history("f")
    second.wait_for("serving")
    ended(second)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [f"{line.split()[0]} {line.split()[2]}" for line in lines] == states
    runs = {line.split()[1] for line in lines}
    assert len(runs) == (2 if policy == "restart" else 1)
    assert [record.kind for record in records][:2] == ["fired", "interrupted"]


def test_resume_needs_a_journal():
    """Without one it is an error at registration."""
    workflow = Workflow("w").register("start", lambda: "done").add_exit_state("done")
    with pytest.raises(ConfigurationError, match="needs a workflow with a journal"):
        Scheduler().manual("f", workflow, "start", on_interrupted="resume")


def test_a_reused_pid_is_no_holder(tmp_path):
    """A claim's row that names a process that lives, but has not got the lock, holds nothing up."""
    workflow = Workflow("w").register("start", lambda: "done", config=TaskConfig(where="parent")).add_exit_state("done")
    scheduler = Scheduler(tmp_path).manual("f", workflow, "start")
    scheduler.start().stop()
    ledger = SqliteLedger(tmp_path)
    # Written by this process, which is alive, as if it were another one that had this number before.
    ledger.describe_claim("f", Claim("gone", f"process {os.getpid()} on this host"))
    ledger.close()
    with scheduler.start() as running:
        assert running.trigger("f").wait(NEVER) == "done"
        assert running.status("f").status is FlowStatus.COMPLETED
        assert [record.kind for record in running.history("f")] == ["interrupted", "fired", "finished"]


def parent_flow(home, interval, body=lambda: "done", **options) -> Scheduler:
    """A scheduler of the flow "f", whose body runs in this process."""
    workflow = Workflow("w").register("start", body, config=TaskConfig(where="parent")).add_exit_state("done")
    return Scheduler(home).every("f", workflow, "start", interval, **options)


def test_overlapping_runs_of_a_killed_process_are_recorded(launch, log, tmp_path):
    """Runs that need no claim are missed too, at once and once, though no tick is near; those of the living are not."""
    holder = launch(100_000, 100_000, "allow")
    await_that(lambda: len(log.lines("begin")) == 1, "the first body should run")
    ((lost, pid),) = log.lines("begin")
    gate = threading.Event()
    body = lambda: gate.wait(NEVER) and "done"  # noqa: E731
    with (
        parent_flow(tmp_path / "home", 100_000, body, overlap="allow").start() as living,
        parent_flow(tmp_path / "home", 100_000, body, overlap="allow").start(),
    ):
        run = living.trigger("f")
        holder.process.kill()
        await_that(lambda: living.history("f")[-1].kind == "interrupted", "it should be recorded")
        await_that(lambda: not is_alive(int(pid)), "its body should be dead")
        gate.set()
        assert run.wait(NEVER) == "done"
    with FlowHome(tmp_path / "home") as home:
        records = home.history("f")
    assert [record.run_id for record in records if record.kind == "interrupted"] == [lost]
    assert [record.kind for record in records].count("finished") == 1


def test_a_killed_holder_s_run_is_restarted_at_once(launch, log, tmp_path):
    """The other scheduler hears of the end of the process by itself: no tick is near, and nothing waits."""
    holder = launch(100_000, 100_000)
    await_that(lambda: len(log.lines("begin")) == 1, "the body should run")
    ((lost, _),) = log.lines("begin")
    with parent_flow(tmp_path / "home", 100_000, on_interrupted="restart").start() as running:
        holder.process.kill()
        await_that(lambda: running.history("f")[-1].kind == "finished", "a new run should end")
        records = running.history("f")
    assert [record.kind for record in records] == ["fired", "interrupted", "fired", "finished"]
    assert records[1].run_id == lost


#: Listens as a scheduler does, until it is killed.
LISTENER = """
import sys, time
from pathlib import Path
from canobatch.scheduler._bells import Bells

bells = Bells(Path(sys.argv[1]))
bells.listen(lambda: None)
print("listening", flush=True)
time.sleep(100000)
"""


def test_the_end_of_a_later_scheduler_is_heard_too(start_script, tmp_path):
    """Who comes later rings; its end is noticed, told, and what it left of its bell is removed."""
    place = tmp_path / "wake"
    place.mkdir()
    told = threading.Event()
    bells = Bells(place)
    bells.listen(told.set)
    later = start_script(LISTENER, place)
    later.wait_for("listening")
    assert told.wait(NEVER)
    assert len(list(place.iterdir())) == 2
    await_that(lambda: bells._others, "it should be seen")
    told.clear()
    later.process.kill()
    assert told.wait(NEVER)
    assert [path.name for path in place.iterdir()] == [bells.own]
    bells.close()
    assert list(place.iterdir()) == []


#: Starts a script in a pid namespace of its own, with a /proc of its own, as in a container.
APART = """
import os, sys
os.execvp("unshare", [*"unshare --pid --fork --kill-child --mount-proc".split(), sys.executable, *sys.argv[1:]])
"""


def test_a_holder_in_another_pid_namespace(start_script, log, tmp_path):
    """The lock says that it lives, and that it is dead: its pid means somebody else here, who lives on."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]
    if shutil.which("unshare") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("pid namespaces need unshare and root")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    holder = start_script(APART, program, tmp_path / "home", 100_000, 100_000, "skip", "", "skip")
    await_that(lambda: len(log.lines("begin")) == 1, "the body should run")
    ((run_id, _),) = log.lines("begin")
    workflow = Workflow("w").register("start", lambda: "done", config=TaskConfig(where="parent")).add_exit_state("done")
    with Scheduler(tmp_path / "home").every("f", workflow, "start", 100_000).start() as running:
        assert running.status("f").status is FlowStatus.RUNNING
        with pytest.raises(FlowOverlapError):
            running.trigger("f")
        holder.process.kill()
        assert holder.survivors(within=NEVER) == {}
        assert running.trigger("f").wait(NEVER) == "done"
        records = running.history("f")
    assert [record.kind for record in records] == ["fired", "interrupted", "fired", "finished"]
    assert records[1].run_id == run_id
