"""`serve` and the commands that talk to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3

import pytest

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

def fail():
    raise ValueError("no luck")

quick = Workflow("quick").register("work", work).add_exit_state("done")
slow = Workflow("slow").register("long", long).add_exit_state("done")
bad = Workflow("bad").register("fail", fail).add_exit_state("done")
flows = (
    Scheduler()
    .every("often", quick, "work", 0.5)
    .cron("nightly", quick, "work", "30 1 * * *", "Europe/Paris")
    .manual("hand", quick, "work")
    .manual("slow", slow, "long")
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
    assert set(flows) == {"often", "nightly", "hand", "slow", "bad"}
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
    assert "no luck" in told
    assert "no luck" in bad()["last_error"]
    assert place.run("reset", "bad").returncode == 0
    assert bad()["failure_streak"] == 0
    process.terminate()
    process.wait(60)


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
    runs = {run["workflow"]: run["status"] for run in json.loads(place.run("runs", "--json").stdout)}
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


def test_systemd_is_told(place):
    """READY once it serves, STOPPING at the end; over the socket that systemd names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(place.path / "notify"))
        channel.settimeout(60)
        os.environ["NOTIFY_SOCKET"] = str(place.path / "notify")
        try:
            process = serve(place)
        finally:
            del os.environ["NOTIFY_SOCKET"]
        assert channel.recv(1000).decode().startswith("READY=1\nSTATUS=5 flows")
        process.terminate()
        assert channel.recv(1000) == b"STOPPING=1"
        assert process.wait(60) == 143


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
