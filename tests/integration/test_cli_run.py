"""`canobatch run` in processes of its own: streams, exit codes, signals, terminals."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from canobatch.journal.home import Home
from tests.support.launched import Place, Screen
from tests.support.watch import await_that, is_alive

SMALL = """
from dataclasses import dataclass

@dataclass
class Params:
    n: int = 3

def load(ctx):
    print("loading")
    ctx.store.put("items", list(range(ctx.params.n)))
    return "square"

def square(ctx, item):
    print("squaring", item)
    return item * item

def report(ctx):
    told("reported")
    return "done"

print("imported")
flow = (
    Workflow("squares", params=Params)
    .register("load", load)
    .register_map("square", square, "items", JoinConfig(JoinStrategy.all(), "report", into="squares"))
    .register("report", report)
    .add_exit_state("done")
)
"""

LONG = """
def long(ctx):
    hold("long")
    return "done"

flow = Workflow("long").register("long", long).add_exit_state("done")
"""

STUBBORN = """
def stubborn(ctx):
    hold("stubborn")
    return "done"

flow = Workflow("stubborn").register("stubborn", stubborn, config=TaskConfig(where="parent")).add_exit_state("done")
"""

FAILING = """
def one(ctx, n):
    if n % 2:
        raise ValueError(f"number {n} is odd")
    return n
flow = Workflow("failing").register_map("odd", one, range(4), JoinConfig(JoinStrategy.all(), "done"))
flow.add_exit_state("done")
"""


@pytest.fixture
def place(tmp_path):
    """A directory to work in."""
    place = Place(tmp_path)
    yield place
    place.close()


def test_a_run_from_its_id_to_its_summary(place):
    """The id first and a table last on standard output; progress, imports and prints of tasks elsewhere."""
    place.write("small.py", SMALL)
    done = place.run("run", "small.py", "-p", "n=4", "-j", "2")
    assert done.returncode == 0, done.stderr
    first, *table, last = done.stdout.splitlines()
    run_id = first.removeprefix("run ")
    assert last.startswith(f"run {run_id} completed in 'done' after")
    assert table[0].split()[:3] == ["state", "visits", "attempts"]
    assert "4: 4 succeeded" in done.stdout
    assert "imported" not in done.stdout
    assert "imported" in done.stderr
    assert "squaring" not in done.stdout + done.stderr
    assert f"canobatch logs {run_id}" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_the_first_workflow_runs(place):
    """What init writes passes check and runs, with parameters."""
    assert place.run("init", "etl").returncode == 0
    assert place.run("check", "etl.py").returncode == 0
    done = place.run("run", "etl.py", "-p", "texts=4", "-p", "jitter=0")
    assert done.returncode == 0, done.stderr
    assert "4: 4 succeeded" in done.stdout
    run_id = done.stdout.partition("\n")[0].removeprefix("run ")
    assert done.stderr.splitlines()[-1] == f"what its tasks printed: canobatch logs {run_id}"
    assert "4 texts, 4000 words" in place.run("logs", run_id).stdout


def test_a_home_of_a_newer_version_is_told(place):
    """The index of a later version is left alone and named; runs need it only for their list."""
    place.write("small.py", SMALL)
    assert place.run("run", "small.py").returncode == 0
    Home(place.home, "process").index_also({}, [])
    index = sqlite3.connect(place.home / "home.db")
    with index:
        index.execute("UPDATE canobatch_schema SET version = 99 WHERE component = 'runs'")
    index.close()
    assert place.run("run", "small.py").returncode == 0
    done = place.run("runs")
    assert done.returncode == 1
    assert f"{place.home / 'home.db'} has version 99" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_is_one_object_alone(place):
    """Standard output is the object and nothing else."""
    place.write("small.py", SMALL)
    done = place.run("run", "small.py", "--json", "--no-journal")
    facts = json.loads(done.stdout)
    assert (facts["schema"], facts["status"], facts["exit_code"]) == (1, "completed", 0)
    assert facts["path"] == ["'load'", "'square'", "'report'", "'done'"]
    assert facts["splits"]["'square'"]["succeeded"] == 3
    assert facts["run_id"] in done.stderr
    assert not place.home.exists()


def test_a_failed_run_is_1(place):
    """The branches that failed are listed with their errors, the error is one line, and resume is offered."""
    place.write("failing.py", FAILING)
    done = place.run("run", "failing.py")
    assert done.returncode == 1
    assert "failed state 'odd', branch 1, attempt 1: ValueError: number 1 is odd" in done.stderr.replace("  ", " ")
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert "go on with: canobatch resume" in done.stderr
    assert "2 succeeded, 2 failed" in done.stdout
    facts = json.loads(place.run("run", "failing.py", "--json").stdout)
    assert (facts["status"], facts["exit_code"]) == ("failed", 1)
    assert "Traceback" in place.run("run", "failing.py", "-v").stderr


def test_a_failed_rollback_is_5(place):
    """What was done could not be undone: that is told, and has a code of its own."""
    place.write(
        "saga.py",
        "from canobatch.models import CompensatableTask\n"
        "class Book(CompensatableTask):\n"
        "    def run(self, ctx): return 'pay', 'seat 7'\n"
        "    def compensate(self, ctx, output): raise RuntimeError(f'{output} cannot be given back')\n"
        "def pay(): raise ValueError('no money')\n"
        "flow = Workflow('saga').register_with_compensation('book', Book()).register('pay', pay)\n"
        "flow.add_exit_state('done')\n",
    )
    done = place.run("run", "saga.py")
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert "not undone" in done.stderr
    assert "seat 7 cannot be given back" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("no money; and 1 of its effects could not be undone")
    assert json.loads(place.run("runs", "--json").stdout)[0]["status"] == "failed"


def test_a_run_that_takes_too_long_is_6(place):
    """--timeout kills the task in its worker, and the run has timed out."""
    place.write("long.py", LONG)
    # Enough for a worker to boot on a busy machine.
    process = place.start("run", "long.py", "--timeout", "6")
    pid = place.await_told("long")
    assert process.wait(60) == 6
    assert not is_alive(pid)


def test_a_run_can_begin_anywhere(place):
    """--initial names a state."""
    place.write("small.py", SMALL)
    done = place.run("run", "small.py", "--initial", "report", "--json")
    assert json.loads(done.stdout)["path"] == ["'report'", "'done'"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_cancels_and_the_run_can_be_resumed(place, number, code):
    """The task in its worker is killed, the run says how it ended, and goes on from there later."""
    place.write("long.py", LONG)
    process = place.start("run", "long.py")
    pid = place.await_told("long")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert not is_alive(pid)
    run_id = stdout.split()[1]
    assert f"canobatch resume {run_id}" in stderr
    assert "cancelled" in stdout.splitlines()[-1]
    place.release("long")
    again = place.run("resume", run_id)
    assert again.returncode == 0, again.stderr
    assert f"run {run_id} completed" in again.stdout


def test_the_second_signal_kills(place):
    """A task in the launcher's own process that ends for nothing does not keep it."""
    place.write("stubborn.py", STUBBORN)
    process = place.start("run", "stubborn.py")
    assert place.await_told("stubborn") == process.pid
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "once more to kill" in line:
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    (run,) = json.loads(place.run("runs", "--json").stdout)
    assert run["status"] == "interrupted"


def test_what_is_ignored_stays_ignored(place):
    """nohup means it: a hang-up does not end the run."""
    place.write("long.py", LONG)
    ignoring = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    process = place.start("run", "long.py", preexec_fn=ignoring)
    place.await_told("long")
    process.send_signal(signal.SIGHUP)
    place.release("long")
    assert process.wait(60) == 0


def test_a_closed_standard_output_does_not_spoil_a_run(place):
    """`canobatch run | head -1`: the run goes to its end all the same, without a traceback."""
    place.write("small.py", SMALL)
    process = place.start("run", "small.py")
    assert process.stdout.readline().startswith("run ")
    process.stdout.close()
    stderr = process.stderr.read()
    process.wait(60)
    assert (place.path / "reported.told").exists()
    assert "Traceback" not in stderr
    assert "Exception" not in stderr


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_streams_that_were_closed_before_do_not_matter(place, closed):
    """`canobatch run >&-`: what gets their numbers is no file or socket of ours."""
    place.write("small.py", SMALL)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = place.start("run", "small.py", **streams, preexec_fn=lambda: [os.close(number) for number in closed])
    assert process.wait(60) == 0
    assert json.loads(place.run("runs", "--json").stdout)[0]["status"] == "completed"


@pytest.mark.parametrize(("command", "code"), [("run", 0), ("check", 0), ("frobnicate", 2), ("show", 2)])
def test_a_full_log_of_progress_does_not_end_a_run(place, command, code):
    """Nothing depends on standard error but what is told there, not the exit code either."""
    place.write("small.py", SMALL)
    with Path("/dev/full").open("w") as full:
        process = place.start(command, "small.py", stdout=subprocess.DEVNULL, stderr=full)
        assert process.wait(60) == code


def test_ctrl_c_while_it_is_loaded_is_silent(place):
    """There is no traceback of what is just being imported; the shell sees the signal."""
    reader, writer = os.pipe()
    # What python -v has to say of the imports does not fit: it stops among them.
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    place.program = (sys.executable, "-v", "-m", "canobatch")
    process = place.start("runs", stderr=writer)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as told:
        assert any("canobatch/cli/app" in line for line in told)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
        assert "Traceback" not in told.read()


def test_two_runs_of_a_name_do_not_overlap(place):
    """The second is told at once, skips, or waits; and a name is free when its holder was killed."""
    place.write("long.py", LONG)
    place.write("small.py", SMALL)
    name = ("--name", "nächtlich / 1")
    process = place.start("run", "long.py", *name)
    place.await_told("long")
    busy = place.run("run", "small.py", *name)
    assert busy.returncode == 75
    assert "nächtlich / 1" in busy.stderr
    assert place.run("run", "small.py", *name, "--on-overlap", "skip").returncode == 0
    assert not (place.path / "reported.told").exists()
    waiting = place.start("run", "small.py", *name, "--on-overlap", "wait")
    for line in waiting.stderr:
        if "waiting" in line:
            break
    assert not (place.path / "reported.told").exists()
    process.kill()
    process.wait()
    assert waiting.wait(60) == 0
    assert (place.path / "reported.told").exists()


@pytest.mark.parametrize(
    ("policy", "code", "status"), [("cancel-old", 1, "cancelled"), ("kill-old", -signal.SIGKILL, "interrupted")]
)
def test_a_new_run_takes_the_place_of_the_old_one(place, policy, code, status):
    """Of the same name: the old one is cancelled, or its process killed, and then the new one begins."""
    place.write("long.py", LONG)
    place.write("small.py", SMALL)
    old = place.start("run", "long.py", "--name", "one")
    run_id = old.stdout.readline().split()[1]
    pid = place.await_told("long")
    new = place.run("run", "small.py", "--name", "one", "--on-overlap", policy)
    assert new.returncode == 0, new.stderr
    assert "completed" in new.stdout
    assert run_id in new.stderr
    assert old.wait(60) == code
    assert not is_alive(pid)
    assert {run["run_id"]: run["status"] for run in json.loads(place.run("runs", "--json").stdout)}[run_id] == status


def test_a_run_that_is_remembered_nowhere_is_not_replaced(place):
    """Without a journal it cannot be found; that is told, and it goes on."""
    place.write("long.py", LONG)
    old = place.start("run", "long.py", "--name", "one", "--no-journal")
    place.await_told("long")
    refused = place.run("run", "long.py", "--name", "one", "--on-overlap", "cancel-old")
    assert refused.returncode == 75
    assert "keeps no journal" in refused.stderr
    place.release("long")
    assert old.wait(60) == 0


def test_a_name_and_an_error_of_ten_thousand_letters(place):
    """Long names do not break tables, and control characters do not reach the terminal."""
    place.write(
        "wide.py",
        'NAME = "w" * 10_000\n'
        'def fail(): raise ValueError("x" * 10_000 + "\\x1b[2J\\n")\n'
        "flow = Workflow(NAME).register(NAME, fail).add_exit_state('done')\n",
    )
    done = place.run("run", "wide.py")
    assert done.returncode == 1
    assert max(map(len, done.stdout.splitlines())) < 300
    listed = place.run("runs")
    assert max(map(len, listed.stdout.splitlines())) < 400
    assert "\x1b" not in listed.stdout
    assert json.loads(place.run("runs", "--json").stdout)[0]["workflow"] == "w" * 10_000


def test_a_home_that_cannot_be_used_is_told(place):
    """A file in its place is one line that names it; --no-journal needs no home."""
    place.write("small.py", SMALL)
    place.home.write_text("a file")
    done = place.run("run", "small.py")
    assert done.returncode == 2
    assert "CANOBATCH_HOME" in done.stderr
    assert str(place.home) in done.stderr
    place.home.unlink()
    place.home.symlink_to("/proc/1/nowhere")
    done = place.run("run", "small.py")
    assert done.returncode == 1
    assert str(place.home) in done.stderr
    assert "Traceback" not in done.stderr
    assert place.run("run", "small.py", "--no-journal").returncode == 0


# -- on a terminal


def test_a_terminal_that_is_closed_does_not_cut_the_cancel_short(place):
    """It is told of twice, by kernel and shell: the run is cancelled as by any first signal, and can be resumed."""
    place.write("long.py", LONG)
    screen = Screen(place, "run", "long.py")
    screen.wait_for("long", "workers busy")
    pid = place.await_told("long")
    screen.close()
    place.screens.clear()
    for _ in range(2):
        screen.process.send_signal(signal.SIGHUP)
    assert screen.process.wait(60) == 129
    assert not is_alive(pid)
    (run,) = json.loads(place.run("runs", "--json").stdout)
    assert run["status"] == "cancelled"
    place.release("long")
    again = place.run("resume", "last")
    assert again.returncode == 0, again.stderr


def test_a_terminal_that_is_closed_ends_nothing_under_nohup(place):
    """Where a hang-up is ignored, a run whose terminal is gone goes to its end."""
    place.write("long.py", LONG)
    ignoring = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    screen = Screen(place, "run", "long.py", preexec_fn=ignoring)
    screen.wait_for("long", "workers busy")
    screen.close()
    place.screens.clear()
    screen.process.send_signal(signal.SIGHUP)
    place.release("long")
    assert screen.process.wait(60) == 0
    assert json.loads(place.run("runs", "--json").stdout)[0]["status"] == "completed"


def test_progress_is_live_on_a_terminal(place):
    """States with marks, a bar with counts, workers: redrawn in place, gone at the end, the cursor back."""
    place.write(
        "live.py",
        "def one(ctx, n):\n    hold(f'b{n}') if n == 3 else None\n    return n\n"
        "flow = Workflow('live flow').register_map('many', one, range(4), JoinConfig(JoinStrategy.all(), 'done'))\n"
        "flow.add_exit_state('done')\n",
    )
    screen = Screen(place, "run", "live.py", "-j", "2")
    screen.wait_for("live flow", "'many'", "3/4", "workers busy", "\x1b[?25l")
    place.release("b3")
    assert screen.end() == 0
    assert "completed" in screen.text
    assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l")


def test_ctrl_c_twice_on_a_terminal_leaves_it_usable(place):
    """After a kill the cursor is back."""
    place.write("stubborn.py", STUBBORN)
    screen = Screen(place, "run", "stubborn.py")
    place.await_told("stubborn")
    screen.process.send_signal(signal.SIGINT)
    screen.wait_for("once more to kill")
    screen.process.send_signal(signal.SIGINT)
    assert screen.end() == 130
    assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l")


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours(place, variables):
    """NO_COLOR takes the colours away, a dumb terminal the redrawing too."""
    place.write("small.py", SMALL)
    screen = Screen(place, "run", "small.py", **variables)
    assert screen.end() == 0
    assert "\x1b[3" not in screen.text
    if "TERM" in variables:
        assert "\x1b" not in screen.text


# -- the end of a launcher


def test_a_launcher_that_is_killed_leaves_a_run_that_can_be_resumed(place):
    """After SIGKILL nothing lives, runs says interrupted, doctor repairs, resume does only what is missing."""
    place.write(
        "half.py",
        "def one(ctx, n):\n"
        "    with (HERE / 'calls').open('a') as file: file.write(f'{n} ')\n"
        "    hold('last') if n == 3 else None\n"
        "    return n\n"
        "def total(ctx):\n    told(f\"total{sum(ctx.store.get('all'))}\")\n    return 'done'\n"
        "flow = Workflow('half').register_map('m', one, range(4), JoinConfig(JoinStrategy.all(), 'sum', into='all'))\n"
        "flow.register('sum', total).add_exit_state('done')\n",
    )
    process = place.start("run", "half.py", "-j", "1")
    pid = place.await_told("last")
    run_id = process.stdout.readline().split()[1]

    def recorded():
        facts = json.loads(place.run("show", run_id, "--json").stdout)
        return sum(attempt["status"] == "succeeded" for attempt in facts["attempts"]) == 3

    await_that(recorded, "three branches should be recorded")
    process.kill()
    process.wait()
    await_that(lambda: not is_alive(pid), "the worker should be dead")
    (run,) = json.loads(place.run("runs", "--json").stdout)
    assert (run["run_id"], run["status"]) == (run_id, "interrupted")
    assert place.run("doctor").returncode == 1
    assert place.run("doctor", "--fix").returncode == 0
    assert place.run("doctor").returncode == 0
    place.release("last")
    again = place.run("resume", "last")
    assert again.returncode == 0, again.stderr
    assert "3 branches kept" in again.stderr
    assert (place.path / "calls").read_text() == "0 1 2 3 3 "
    assert (place.path / "total6.told").exists()


def test_a_run_is_resumed_where_it_was_begun(place, tmp_path):
    """Resuming from another directory finds the target and its files."""
    place.write("failing.py", "import os\n" + FAILING.replace("if n % 2:", "if not os.path.exists('cured') and n % 2:"))
    assert place.run("run", "failing.py").returncode == 1
    (place.path / "cured").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [*place.start("--version").args[:3], "resume", "last"]
    done = subprocess.run(command, cwd=elsewhere, env=place.env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_resume_refuses_what_it_cannot(place):
    """A run that runs is busy, an unknown one is usage, a completed one returns at once."""
    place.write("long.py", LONG)
    process = place.start("run", "long.py")
    place.await_told("long")
    busy = place.run("resume", "last")
    assert busy.returncode == 75
    assert str(process.pid) in busy.stderr
    assert place.run("resume", "nonsense").returncode == 2
    place.release("long")
    assert process.wait(60) == 0
    complete = place.run("resume", "last")
    assert complete.returncode == 0
    assert "it has come to its end, in 'done'" in complete.stderr
