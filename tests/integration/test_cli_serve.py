"""`serve` and the commands that talk to it."""

from __future__ import annotations

import json
import select
import signal
import socket
import sqlite3
import threading
from types import SimpleNamespace

import pytest

from canobatch.cli.serve import _watchdog
from tests.support.launched import Place
from tests.support.watch import await_that, is_alive

FLOWS = """
from canobatch.scheduler import Scheduler

def work(ctx):
    with (HERE / "ran").open("a") as file:
        file.write(f"{ctx.run_id} {dict(ctx.params)}\\n")
    print("worked")
    return "done"

def long(ctx):
    hold("long")
    return "done"

def named(ctx):
    hold(ctx.params["name"])
    return "done"

def fail():
    raise ValueError("no luck\\nat all")

quick = Workflow("quick").register("work", work).add_exit_state("done")
slow = Workflow("slow").register("long", long).add_exit_state("done")
many = Workflow("many").register("named", named).add_exit_state("done")
bad = Workflow("bad").register("fail", fail).add_exit_state("done")
flows = (
    Scheduler()
    .every("often", quick, "work", 0.5)
    .cron("nightly", quick, "work", "30 1 * * *", "Europe/Paris")
    .manual("hand", quick, "work")
    .manual("slow", slow, "long")
    .manual("many", many, "named", overlap="allow")
    .manual("line", many, "named", overlap="queue_all")
    .manual("bad", bad, "fail", pause_on_failure=True)
)
"""


@pytest.fixture
def place(tmp_path):
    """A directory with flows."""
    place = Place(tmp_path)
    place.write("flows.py", FLOWS)
    yield place
    place.close()


def serve(place, *args, **options):
    """Start a server and wait until it serves."""
    process = place.start("serve", "flows.py", *args, **options)
    for line in process.stderr:
        if "canobatch.serve" in line and "serving" in line:
            return process
    raise AssertionError("it ended")


def ran(place):
    path = place.path / "ran"
    return path.read_text().splitlines() if path.exists() else []


def test_flows_are_served_listed_triggered_and_paused(place):
    """Another process sees the flows, runs one with parameters, pauses and unpauses one; runs are remembered."""
    process = serve(place)
    await_that(lambda: ran(place), "a tick should have run")
    flows = {flow["id"]: flow for flow in json.loads(place.run("flows", "--json").stdout)}
    assert set(flows) == {"often", "nightly", "hand", "slow", "many", "line", "bad"}
    assert flows["nightly"]["schedule"] == "cron '30 1 * * *' in Europe/Paris"
    assert "often" in place.run("flows").stdout
    done = place.run("trigger", "hand", "-p", "n=3")
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.strip()
    await_that(lambda: f"{run_id} {{'n': 3}}" in ran(place), "the trigger should have run")
    assert place.run("pause", "hand").returncode == 0
    refused = place.run("trigger", "hand")
    assert refused.returncode == 1
    assert "paused" in refused.stderr
    assert place.run("unpause", "hand").returncode == 0
    assert place.run("trigger", "hand").returncode == 0
    shown = place.run("show", run_id)
    assert shown.returncode == 0, shown.stderr
    assert place.run("logs", run_id).stdout == "== 'work', attempt 1\nworked\n"
    process.terminate()
    assert process.wait(60) == 143


def test_a_misspelt_flow_is_told(place):
    """Its name, and those that there are."""
    process = serve(place)
    done = place.run("trigger", "hnad")
    assert done.returncode == 2
    assert "hand" in done.stderr
    for command in ("pause", "unpause", "reset", "next"):
        assert place.run(command, "nothing").returncode == 2
    process.terminate()
    process.wait(60)
    nobody = place.run("trigger", "hand", "--timeout", "0.2")
    assert nobody.returncode == 1
    assert "no scheduler" in nobody.stderr


def test_a_failure_pauses_and_reset_and_unpause_let_it_run_again(place):
    """What the flow failed with is told in the list."""
    process = serve(place)
    assert place.run("trigger", "bad").returncode == 0

    def bad():
        return next(flow for flow in json.loads(place.run("flows", "--json").stdout) if flow["id"] == "bad")

    await_that(lambda: bad()["status"] == "paused", "the failure should pause it")
    told = next(line for line in process.stderr if "flow bad: run" in line and "begins" not in line)
    assert "ERROR" in told
    assert "failed after" in told
    assert "no luck at all" in told
    assert "no luck" in bad()["last_error"]
    assert "last error of bad: TaskError" in place.run("flows").stdout
    assert place.run("reset", "bad").returncode == 0
    assert bad()["failure_streak"] == 0
    process.terminate()
    process.wait(60)


def statuses(place):
    return {run["run_id"]: run["status"] for run in json.loads(place.run("runs", "--json", "-n", "1000").stdout)}


def test_one_run_of_a_server_is_cancelled(place):
    """That run's process dies, and it is told when it has ended; other runs, of its flow too, and the server go on."""
    process = serve(place)
    stays = place.run("trigger", "many", "-p", "name=stays").stdout.strip()
    pid = place.await_told("stays")
    # Of a flow whose runs may overlap, and of one whose may not; one at a time, as there may be only two workers.
    for flow, name in (("many", "goes"), ("slow", "long")):
        run_id = place.run("trigger", flow, "-p", f"name={name}").stdout.strip()
        cancelled = place.await_told(name)
        done = place.run("cancel", run_id)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines() == [
            f"run {run_id} of flow {flow} is being cancelled; its scheduler goes on",
            f"run {run_id} has ended: cancelled",
        ]
        assert not is_alive(cancelled)
        again = place.run("cancel", run_id)
        assert again.returncode == 1
        assert "does not run: cancelled" in again.stderr
    assert is_alive(pid)
    assert statuses(place)[stays] == "running"
    place.release("stays")
    await_that(lambda: statuses(place)[stays] == "completed", "the other run should come to its end")
    before = len(ran(place))
    await_that(lambda: len(ran(place)) > before, "ticks should go on")
    process.terminate()
    assert process.wait(60) == 143


def test_a_run_that_waits_for_its_turn_is_cancelled(place):
    """It never begins; what runs goes on, and so does what waits behind it."""
    process = serve(place)
    first, second, third = (
        place.run("trigger", "line", "-p", f"name={name}").stdout.strip() for name in ("first", "second", "third")
    )
    place.await_told("first")
    done = place.run("cancel", second)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"run {second} of flow line is being cancelled; its scheduler goes on",
        f"run {second} has ended: cancelled",
    ]
    assert statuses(place)[first] == "running"
    place.release("first")
    place.await_told("third")
    place.release("third")
    await_that(lambda: statuses(place)[third] == "completed", "the last in line should come to its end")
    process.terminate()
    assert process.wait(60) == 143


def test_a_server_that_does_not_hear_cancels_nothing_later(place):
    """What was not taken in time is reported and withdrawn; --now kills the server, and says what else it ran."""
    process = serve(place)
    ids = {}
    for name in ("one", "two"):
        ids[name] = place.run("trigger", "many", "-p", f"name={name}").stdout.strip()
        place.await_told(name)
    process.send_signal(signal.SIGSTOP)
    deaf = place.run("cancel", ids["one"])
    assert deaf.returncode == 1
    assert f"process {process.pid} has not heard of it in 5 s; --now kills it" in deaf.stderr
    process.send_signal(signal.SIGCONT)
    assert place.run("trigger", "hand").returncode == 0
    assert {statuses(place)[run_id] for run_id in ids.values()} == {"running"}
    done = place.run("cancel", ids["one"], "--now")
    assert done.returncode == 0, done.stderr
    assert f"process {process.pid} killed, and with it " in done.stderr
    assert ids["two"] in done.stderr
    assert process.wait(60) == -signal.SIGKILL
    assert {statuses(place)[run_id] for run_id in ids.values()} == {"interrupted"}


def test_a_run_beside_a_server_hears_its_own_cancel_only(place):
    """What wakes schedulers of the home does not touch a run of `canobatch run` in it, which can be cancelled too."""
    place.write(
        "beside.py",
        "def held():\n    hold('beside')\n    return 'done'\n"
        "flow = Workflow('beside').register('held', held).add_exit_state('done')\n",
    )
    server = serve(place)
    process = place.start("run", "beside.py")
    run_id = process.stdout.readline().split()[1]
    place.await_told("beside")
    for command in (("trigger", "hand"), ("pause", "hand"), ("unpause", "hand")):
        assert place.run(*command).returncode == 0
    assert place.run("doctor", "--fix").returncode == 0
    assert statuses(place)[run_id] == "running"
    done = place.run("cancel", run_id)
    assert done.returncode == 0, done.stderr
    assert f"run {run_id} has ended: cancelled" in done.stderr
    assert process.wait(60) == 1
    assert server.poll() is None
    server.terminate()
    assert server.wait(60) == 143


def test_a_signal_drains(place):
    """What runs may come to its end; then the exit code is the signal's."""
    process = serve(place)
    assert place.run("trigger", "slow").returncode == 0
    pid = place.await_told("long")
    process.send_signal(signal.SIGTERM)
    for line in process.stderr:
        if "stopping" in line:
            break
    assert is_alive(pid)
    place.release("long")
    assert process.wait(60) == 143
    runs = {run["workflow"]: run["status"] for run in json.loads(place.run("runs", "--json", "-n", "1000").stdout)}
    assert runs["slow"] == "completed"


def test_what_does_not_end_in_time_is_killed(place):
    """--drain is the time it has."""
    process = serve(place, "--drain", "1")
    assert place.run("trigger", "slow").returncode == 0
    pid = place.await_told("long")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    await_that(lambda: not is_alive(pid), "the task should be dead")


def test_a_reload_is_refused(place):
    """SIGHUP is answered with the reason, and everything goes on."""
    process = serve(place)
    process.send_signal(signal.SIGHUP)
    for line in process.stderr:
        if "reload is not possible" in line:
            break
    before = len(ran(place))
    await_that(lambda: len(ran(place)) > before, "it should go on")
    process.terminate()
    assert process.wait(60) == 143


def test_two_servers_share_the_ticks(place):
    """Each tick of a flow is run once, whoever runs it."""
    first, second = serve(place), serve(place)
    await_that(lambda: len(ran(place)) >= 6, "ticks should run")
    for process in (first, second):
        process.terminate()
    for process in (first, second):
        assert process.wait(60) == 143
    records = sqlite3.connect(place.home / "flows.db")
    try:
        ticks = [tick for (tick,) in records.execute("SELECT tick FROM records WHERE flow='often' AND kind='fired'")]
    finally:
        records.close()
    assert len(ticks) == len(set(ticks))


@pytest.fixture
def systemd(place, monkeypatch):
    """The socket over which systemd is told, named as it names it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(place.path / "notify"))
        channel.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(place.path / "notify"))
        yield channel


def test_systemd_is_told(place, systemd):
    """READY once it serves, STOPPING at the end, and nothing else: it has not asked for a watchdog."""
    process = serve(place)
    assert systemd.recv(1000).decode().startswith("READY=1\nSTATUS=7 flows")
    process.terminate()
    assert systemd.recv(1000) == b"STOPPING=1"
    assert process.wait(60) == 143


def test_the_watchdog_of_systemd_is_told_as_long_as_the_scheduler_answers(place, systemd, monkeypatch):
    """WATCHDOG comes again and again, while it drains too; not if it was asked of another process."""
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    process = serve(place)
    assert systemd.recv(1000).startswith(b"READY=1")
    assert [systemd.recv(1000) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    assert place.run("trigger", "slow").returncode == 0
    place.await_told("long")
    process.terminate()
    while (told := systemd.recv(1000)) != b"STOPPING=1":
        assert told == b"WATCHDOG=1"
    assert systemd.recv(1000) == b"WATCHDOG=1"
    place.release("long")
    assert process.wait(60) == 143
    while select.select([systemd], [], [], 0)[0]:
        systemd.recv(1000)
    monkeypatch.setenv("WATCHDOG_PID", "1")
    other = serve(place)
    assert systemd.recv(1000).startswith(b"READY=1")
    other.terminate()
    assert systemd.recv(1000) == b"STOPPING=1"
    assert other.wait(60) == 143


def test_the_watchdog_of_systemd_is_not_told_of_a_scheduler_that_hangs(systemd, monkeypatch):
    """As long as it does not answer nothing is said; when it does again, so is the watchdog told."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    asked, answers = threading.Event(), threading.Event()

    def hangs():
        asked.set()
        answers.wait(60)

    with _watchdog(SimpleNamespace(list=hangs)):
        assert asked.wait(60)
        assert not select.select([systemd], [], [], 0)[0]
        answers.set()
        assert systemd.recv(1000) == b"WATCHDOG=1"
    await_that(
        lambda: all(thread.name != "canobatch-watchdog" for thread in threading.enumerate()), "its thread should end"
    )


def test_logs_can_be_json(place):
    """Each line of standard error is an object then."""
    process = place.start("serve", "flows.py", "--log-format", "json")
    facts = json.loads(process.stderr.readline())
    assert {"time", "level", "logger", "message"} <= set(facts)
    process.terminate()
    process.wait(60)


def test_next_marks_the_days_on_which_clocks_change(place):
    """Coming ticks in local time, UTC, and the zone of the schedule."""
    process = serve(place)
    process.terminate()
    process.wait(60)
    ticks = json.loads(place.run("next", "nightly", "-n", "400", "--json").stdout)
    changes = [tick for tick in ticks if tick["clocks_change"]]
    assert 2 <= len(changes) <= 3
    assert all(tick["zone"][11:19] == "01:30:00" for tick in ticks)
    assert "clocks change on this day" in place.run("next", "nightly", "-n", "400").stdout
    by_hand = place.run("next", "hand")
    assert (by_hand.returncode, by_hand.stdout) == (0, "")
    assert "not due by itself" in by_hand.stderr


@pytest.mark.parametrize(("target", "words"), [("flows.py:quick", "not a scheduler"), ("flows.py:flwos", "flows?")])
def test_a_target_that_is_no_scheduler_is_3(place, target, words):
    """A line says what it is instead."""
    done = place.run("serve", target)
    assert done.returncode == 3
    assert words in done.stderr
