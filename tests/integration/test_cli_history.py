"""`runs`, `show`, `logs`, `cancel`, `gc`, `doctor`: looking at runs of other processes, and ending them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.launched import Place, Screen
from tests.support.watch import await_that, is_alive

NOISY = """
import subprocess, sys

def first(ctx):
    print("from first")
    subprocess.run(["echo", "from a child"])
    os.write(2, b"from a descriptor\\n")
    return "many"

def many(ctx, n):
    print(f"branch {n} attempt {ctx.attempt}")
    if n == 1 and ctx.attempt == 1:
        raise ValueError("not the first time")
    if n == 2:
        sys.stdout.write("no newline at the end")
    return n

flow = (
    Workflow("noisy")
    .register("first", first)
    .register_map("many", many, range(3), JoinConfig(JoinStrategy.all(), "end"),
                  config=TaskConfig(retry=Retry.fixed(1, 0.0)))
    .register("end", lambda: "done")
    .add_exit_state("done")
)
"""

LONG = """
def long(ctx):
    print("so far", flush=True)
    hold("long")
    print("so long", flush=True)
    return "done"

flow = Workflow("long").register("long", long).add_exit_state("done")
"""


@pytest.fixture
def place(tmp_path):
    """A directory to work in."""
    place = Place(tmp_path)
    yield place
    place.close()


def test_a_run_is_listed_and_shown(place):
    """States, attempts with errors, CPU and memory: as a table and as JSON."""
    place.write("noisy.py", NOISY)
    run_id = place.run("run", "noisy.py").stdout.split()[1]
    (listed,) = json.loads(place.run("runs", "--json").stdout)
    assert (listed["run_id"], listed["workflow"], listed["status"]) == (run_id, "noisy", "completed")
    shown = place.run("show", run_id[:17])
    assert shown.returncode == 0, shown.stderr
    assert "'many'[1]" in shown.stdout
    assert "ValueError" in shown.stdout
    assert "3: 3 succeeded" in shown.stdout
    facts = json.loads(place.run("show", "last", "--json").stdout)
    assert facts["schema"] == 1
    assert [state["state"] for state in facts["states"]] == ["'first'", "'many'", "'end'", "'done'"]
    attempts = [(each["branch"], each["attempt"], each["status"]) for each in facts["attempts"] if each["visit"] == 2]
    assert sorted(attempts) == [(0, 1, "succeeded"), (1, 1, "retried"), (1, 2, "succeeded"), (2, 1, "succeeded")]
    assert all(each["duration"] is not None for each in facts["attempts"] if each["status"] == "succeeded")


def test_runs_can_be_picked(place):
    """By workflow, status, age and number."""
    place.write("noisy.py", NOISY)
    place.write("bad.py", "flow = Workflow('bad').register('a', lambda: 1 / 0).add_exit_state('done')\n")
    place.run("run", "noisy.py")
    place.run("run", "bad.py")
    place.run("run", "noisy.py")

    def names(*args):
        return [run["workflow"] for run in json.loads(place.run("runs", "--json", *args).stdout)]

    assert names() == ["noisy", "bad", "noisy"]
    assert names("--workflow", "bad") == ["bad"]
    assert names("--status", "failed") == ["bad"]
    assert names("-n", "1") == ["noisy"]
    assert len(names("--since", "1h")) == 3
    assert len(place.run("runs", "--status", "failed").stdout.splitlines()) == 2


def test_a_misspelt_run_is_told(place):
    """An unknown id names the latest; a short one that fits several lists them."""
    place.write("noisy.py", NOISY)
    ids = [place.run("run", "noisy.py").stdout.split()[1] for _ in range(2)]
    done = place.run("show", "nonsense")
    assert done.returncode == 2
    assert f"the latest is {ids[1]}" in done.stderr
    done = place.run("show", "20")
    assert done.returncode == 2
    assert all(run_id in done.stderr for run_id in ids)


def test_a_run_is_drawn_into_the_diagram_of_its_workflow(place):
    """Visits and times are notes, visited states are marked."""
    place.write("noisy.py", NOISY)
    place.run("run", "noisy.py")
    drawn = place.run("graph", "noisy.py", "--run", "last").stdout
    assert drawn.startswith("stateDiagram-v2")
    assert "note left of _many_: 1 visit, 4 attempts" in drawn
    assert "class _first_,_many_,_end_,_done_ visited" in drawn
    assert "stopped" not in drawn


def test_logs_keep_attempts_apart(place):
    """What children and bare descriptors printed is there too, each attempt under its own line."""
    place.write("noisy.py", NOISY)
    place.run("run", "noisy.py", "-j", "2")
    text = place.run("logs", "last").stdout
    assert "== 'first', attempt 1\n" in text
    assert {"from first", "from a child", "from a descriptor"} <= set(text.splitlines())
    assert "== 'many'[1], attempt 1, visit 2\nbranch 1 attempt 1\n" in text
    assert "== 'many'[1], attempt 2, visit 2\nbranch 1 attempt 2\n" in text
    assert text.endswith("no newline at the end\n")
    only = place.run("logs", "last", "--state", "many", "--branch", "1", "--attempt", "2", "--json").stdout
    (facts,) = map(json.loads, only.splitlines())
    assert (facts["state"], facts["branch"], facts["attempt"]) == ("'many'", 1, 2)
    assert facts["text"] == "branch 1 attempt 2\n"


def test_what_tasks_log_is_told_at_once(place):
    """Warnings of workers are lines of standard error, with -v the rest too."""
    place.write(
        "logging_flow.py",
        "def one(ctx):\n    ctx.logger.info('a detail')\n    ctx.logger.warning('mind the gap')\n    return 'done'\n"
        "flow = Workflow('logging').register('one', one).add_exit_state('done')\n",
    )
    quiet = place.run("run", "logging_flow.py").stderr
    assert "warning: mind the gap" in quiet
    assert "a detail" not in quiet
    assert "a detail" in place.run("run", "logging_flow.py", "-v").stderr


def test_a_run_is_looked_at_while_it_goes_on(place):
    """Its list, its story, its diagram and its output, from other processes, which do not disturb it."""
    place.write("long.py", LONG)
    process = place.start("run", "long.py")
    run_id = process.stdout.readline().split()[1]
    place.await_told("long")
    (listed,) = json.loads(place.run("runs", "--json").stdout)
    assert (listed["run_id"], listed["status"], listed["pid"]) == (run_id, "running", process.pid)
    assert f"process {process.pid}" in place.run("show", run_id).stdout
    assert json.loads(place.run("show", run_id, "--json").stdout)["status"] == "running"
    drawn = place.run("graph", "long.py", "--run", run_id)
    assert drawn.returncode == 0, drawn.stderr
    assert "_long_" in drawn.stdout
    assert place.run("logs", run_id).stdout == "== 'long', attempt 1\nso far\n"
    place.release("long")
    assert process.wait(60) == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_the_shell(place, shell):
    """On standard output, alone."""
    done = place.run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_CANOBATCH_COMPLETE" in done.stdout


def test_logs_follow_a_run_to_its_end(place):
    """-f shows what is printed as it comes, and ends with the run."""
    place.write("long.py", LONG)
    process = place.start("run", "long.py")
    place.await_told("long")
    following = place.start("logs", "last", "-f")
    assert following.stdout.readline() == "== 'long', attempt 1\n"
    assert following.stdout.readline() == "so far\n"
    place.release("long")
    assert following.stdout.read() == "so long\n"
    assert following.wait(60) == 0
    assert process.wait(60) == 0


def test_a_run_is_cancelled_from_another_process(place):
    """The task is killed, the run is cancelled for good, and whoever asked is told when that is so."""
    place.write("long.py", LONG)
    process = place.start("run", "long.py")
    pid = place.await_told("long")
    done = place.run("cancel", "last")
    assert done.returncode == 0, done.stderr
    assert "has ended: cancelled" in done.stderr
    assert not is_alive(pid)
    assert process.wait(60) == 1
    again = place.run("cancel", "last")
    assert again.returncode == 1
    assert "does not run: cancelled" in again.stderr


def test_a_process_that_does_not_hear_is_killed_with_now(place):
    """A stopped launcher takes no command within its time; --now kills it, and the run can be resumed."""
    place.write("long.py", LONG)
    process = place.start("run", "long.py")
    process.stdout.readline()
    pid = place.await_told("long")
    process.send_signal(signal.SIGSTOP)
    deaf = place.run("cancel", "last")
    assert deaf.returncode == 1
    assert f"process {process.pid} has not heard of it in 5 s; --now kills it" in deaf.stderr
    done = place.run("cancel", "last", "--now")
    assert done.returncode == 0, done.stderr
    assert process.wait(60) == -signal.SIGKILL
    await_that(lambda: not is_alive(pid), "the worker should be dead")
    (run,) = json.loads(place.run("runs", "--json").stdout)
    assert run["status"] == "interrupted"


def test_old_runs_are_removed_with_all_they_left(place):
    """gc prints what it removed; a run that can be resumed stays."""
    place.write("noisy.py", NOISY)
    place.write("long.py", LONG)
    ids = [place.run("run", "noisy.py").stdout.split()[1] for _ in range(3)]
    process = place.start("run", "long.py")
    place.await_told("long")
    process.kill()
    process.wait()
    await_that(lambda: not is_alive(int((place.path / "long.told").read_text())), "the worker should be dead")
    assert place.run("gc").stdout == ""
    done = place.run("gc", "--older-than", "1ms", "--keep", "1")
    assert sorted(done.stdout.split()) == sorted(ids[:2])
    left = {run["run_id"]: run["status"] for run in json.loads(place.run("runs", "--json").stdout)}
    assert ids[2] in left
    assert "interrupted" in left.values()
    assert len(list((place.home / "output").iterdir())) == 2


def test_orphans_of_a_launcher_whose_keeper_died_too_are_found(place):
    """What carries the token of a dead launcher is listed, and killed with --fix; what lives is not touched."""
    place.write(
        "orphan.py",
        "import subprocess, signal\n"
        "def leave(ctx):\n"
        "    child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "    (HERE / 'orphan.pid').write_text(str(child.pid))\n"
        "    hold('left')\n"
        "    return 'done'\n"
        "flow = Workflow('orphan').register('leave', leave).add_exit_state('done')\n",
    )
    process = place.start("run", "orphan.py")
    worker = place.await_told("left")
    orphan = int((place.path / "orphan.pid").read_text())
    keeper = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (process.pid, keeper):
        os.kill(pid, signal.SIGSTOP)
    for pid in (keeper, worker, process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert is_alive(orphan)
    found = json.loads(place.run("doctor", "--json").stdout)
    assert not found["ok"]
    (orphans,) = [each for each in found["findings"] if each["kind"] == "orphan"]
    assert str(orphan) in orphans["what"]
    assert place.run("doctor", "--fix").returncode == 0
    await_that(lambda: not is_alive(orphan), "the orphan should be dead")
    assert place.run("doctor").returncode == 0


def test_doctor_leaves_what_lives_alone(place):
    """A run that goes on is no finding, and goes on."""
    place.write("long.py", LONG)
    process = place.start("run", "long.py")
    place.await_told("long")
    done = place.run("doctor", "--fix")
    assert done.returncode == 0, done.stdout
    assert "nothing to repair" in done.stdout
    place.release("long")
    assert process.wait(60) == 0


def test_tables_on_a_terminal_have_colours(place):
    """And none with NO_COLOR."""
    place.write("noisy.py", NOISY)
    place.run("run", "noisy.py")
    for variables, has_colours in (({}, True), ({"NO_COLOR": "1"}, False)):
        screen = Screen(place, "runs", **variables)
        assert screen.end() == 0
        assert ("\x1b[32m" in screen.text) is has_colours
