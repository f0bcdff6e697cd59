"""What tasks print is kept by attempt, wherever it comes from and however they end."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from canobatch import ConfigurationError, JoinStrategy, Retry, TaskConfig, WorkerPool, Workflow
from canobatch.output import ATTEMPT_LIMIT, follow, spans
from canobatch.scheduler import Scheduler
from tests.support.branches import FOREVER, map_of, split_of
from tests.support.watch import await_that

any_, all_ = JoinStrategy.any(), JoinStrategy.all()


@pytest.fixture
def pool():
    """Two workers of this test's own."""
    with WorkerPool(2) as pool:
        yield pool


def printed(directory):
    """What each attempt printed: (branch, attempt) -> text."""
    return {(span.branch, span.attempt): span.read().decode() for span in spans(directory)}


def say(text):
    """Print from Python, C, a subprocess, and on stderr."""
    print(f"{text} python")
    ctypes.CDLL(None).printf(f"{text} c\n".encode())
    subprocess.run(["echo", f"{text} child"], check=True)
    print(f"{text} error", file=sys.stderr)
    os.write(1, f"{text} raw\n".encode())


def lines(text):
    """What `say` prints, in no order: C and Python buffer on their own."""
    return {f"{text} {who}" for who in ("python", "c", "child", "error", "raw")}


def test_each_attempt_has_its_own(pool, tmp_path, capfd):
    """All that an attempt prints is in its span and nothing else is; nothing is printed here."""

    def work(ctx, item):
        say(f"{item}.{ctx.attempt}")
        if item % 3 == 0 and ctx.attempt == 1:
            raise ValueError("no")

    flow = map_of(work, range(12), all_, config=TaskConfig(retry=Retry.fixed(1, 0.0)))
    flow.start("split", pool=pool, output=tmp_path / "new" / "place").wait(60)
    text = printed(tmp_path / "new" / "place")
    attempts = {(n, 1) for n in range(12)} | {(n, 2) for n in range(0, 12, 3)}
    assert text.keys() == attempts
    assert all(set(text[n, attempt].splitlines()) == lines(f"{n}.{attempt}") for n, attempt in attempts)
    assert {span.state for span in spans(tmp_path / "new" / "place")} == {"'split'"}
    assert "python" not in "".join(capfd.readouterr())


def test_attempts_that_run_at_once_do_not_mix(pool, tmp_path):
    """Two workers that print at the same time fill two files."""

    def work(ctx, item):
        (tmp_path / f"{item}.runs").touch()
        await_that((tmp_path / f"{1 - item}.runs").exists, "both should run")
        for _ in range(500):
            print(str(item) * 100)

    map_of(work, range(2), all_).start("split", pool=pool, output=tmp_path / "o").wait(60)
    assert printed(tmp_path / "o") == {(n, 1): (str(n) * 100 + "\n") * 500 for n in range(2)}
    assert len(list((tmp_path / "o").glob("*.out"))) == 2


def test_a_killed_attempt_keeps_what_it_printed(pool, tmp_path):
    """A loser, one that timed out and one that crashed leave what they had printed, C code's lines included."""

    def loser(ctx):
        say("loser")
        (tmp_path / "said").touch()
        time.sleep(FOREVER)

    def crash(ctx):
        say("crash")
        os.kill(os.getpid(), 11)

    def late(ctx):
        say("late")
        time.sleep(FOREVER)

    def winner(ctx):
        await_that((tmp_path / "said").exists, "the loser should have printed")

    split_of([loser, winner], any_).start("split", pool=pool, output=tmp_path / "a").wait(60)
    assert {key: set(text.splitlines()) for key, text in printed(tmp_path / "a").items()} == {(0, 1): lines("loser")}
    split_of([crash], all_, on_failure="failed").start("split", pool=pool, output=tmp_path / "b").wait(60)
    assert set(printed(tmp_path / "b")[0, 1].splitlines()) == lines("crash")
    flow = Workflow("w").register("a", late, config=TaskConfig(attempt_timeout=1.0), on_error="b").add_exit_state("b")
    flow.start("a", pool=pool, output=tmp_path / "c").wait(60)
    (span,) = spans(tmp_path / "c")
    assert (span.state, span.branch, span.end) == ("'a'", None, None)
    assert set(span.read().decode().splitlines()) == lines("late")


def test_visits_are_told_apart(pool, tmp_path):
    """A loop that comes to a state again prints as another visit of it."""

    def again(ctx):
        ctx.store.add("n")
        print("turn", ctx.store.get("n"))
        return "a" if ctx.store.get("n") < 3 else "b"

    flow = Workflow("w").register("a", again, config=TaskConfig(where="worker")).add_exit_state("b")
    flow.start("a", pool=pool, output=tmp_path).wait(60)
    assert [(span.visit, span.read()) for span in spans(tmp_path)] == [(n, f"turn {n}\n".encode()) for n in (1, 2, 3)]


def test_runs_that_share_a_pool_do_not_mix(pool, tmp_path):
    """Each run has its own files, also where its calls alternate with another's on one worker."""

    def flow(name):
        def work(ctx, item):
            time.sleep(0.005)
            print(name, item)

        return map_of(work, range(30), all_)

    runs = [flow(name).start("split", pool=pool, output=tmp_path / name) for name in "xy"]
    for run in runs:
        run.wait(60)
    for name in "xy":
        assert printed(tmp_path / name) == {(n, 1): f"{name} {n}\n" for n in range(30)}
        assert len(list((tmp_path / name).glob("*.out"))) <= 2


SCRIPT = """
import sys, time
from canobatch import JoinConfig, JoinStrategy, Workflow

def work(ctx, item):
    print("said", item, flush=True)
    if item == "hang":
        time.sleep(1000)

def flow(item):
    return Workflow("w").register_map("m", work, [item], JoinConfig(JoinStrategy.all(), "end")).add_exit_state("end")

flow("kept").start("m", output=sys.argv[1]).wait()
flow("as usual").orchestrate("m")
if len(sys.argv) > 2:
    flow("hang").orchestrate("m") if sys.argv[2] == "plain" else flow("hang").start("m", output=sys.argv[2]).wait()
"""


def test_a_run_without_it_prints_as_usual(run_script, tmp_path):
    """A worker that kept the output of one run prints that of the next where the launcher does."""
    ended = run_script(SCRIPT, tmp_path / "o")
    assert (ended.stdout, ended.stderr) == ("said as usual\n", "")
    assert printed(tmp_path / "o") == {(0, 1): "said kept\n"}


def test_what_was_printed_outlives_the_launcher(start_script, tmp_path):
    """A launcher that is killed leaves what its tasks had printed, readable by anyone."""
    script = start_script(SCRIPT, tmp_path / "o", tmp_path / "p")
    await_that(lambda: (tmp_path / "p").is_dir() and printed(tmp_path / "p"), "the task should have printed")
    script.process.kill()
    assert not script.survivors(within=5.0)
    assert printed(tmp_path / "p") == {(0, 1): "said hang\n"}


def test_it_can_be_followed(pool, tmp_path):
    """What a task prints is seen while it runs."""

    def work(ctx, item):
        print("first")
        await_that((tmp_path / "go").exists, "the test should let it go on")
        print("last")

    run = map_of(work, [1], all_).start("split", pool=pool, output=tmp_path / "o")
    seen = b""
    for span, piece in follow(tmp_path / "o", lambda: run.report().state == "joined"):
        assert (span.branch, span.attempt) == (0, 1)
        seen += piece
        if seen == b"first\n":
            assert span.end is None
            (tmp_path / "go").touch()
    assert seen == b"first\nlast\n"
    run.wait(60)


def test_too_much_is_cut_while_it_runs(pool, tmp_path):
    """A task that prints without end does not fill the disk; its beginning and its end are kept."""

    def work(ctx, item):
        print("begin")
        for _ in range(60):
            os.write(1, b"x" * (1 << 20))
        (tmp_path / "full").touch()
        await_that((tmp_path / "go").exists, "go")
        print("end")

    run = map_of(work, [1], all_).start("split", pool=pool, output=tmp_path / "o")
    await_that((tmp_path / "full").exists, "the task should have printed a lot")
    (file,) = [path for path in (tmp_path / "o").glob("*.out") if path.stat().st_size]
    await_that(lambda: file.stat().st_blocks * 512 < ATTEMPT_LIMIT + 100_000, "the file should be trimmed")
    (tmp_path / "go").touch()
    run.wait(60)
    text = printed(tmp_path / "o")[0, 1]
    assert text.startswith("begin\n")
    assert text.endswith("end\n")
    assert len(text) < ATTEMPT_LIMIT + 20_000


def test_what_a_task_does_to_its_streams_is_its_own_affair(pool, tmp_path):
    """A task that closes or redirects standard output does not take that of the next."""

    def rude(ctx, item):
        print("rude", flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.close(2)

    with WorkerPool(1) as one:
        map_of(rude, range(3), all_).start("split", pool=one, output=tmp_path).wait(60)
    assert printed(tmp_path) == {(n, 1): "rude\n" for n in range(3)}


def test_a_place_that_cannot_be_is_refused(tmp_path):
    """A directory that cannot be made is an error before anything runs."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be kept in"):
        map_of(print, [1], all_).start("split", output=tmp_path / "file" / "o")


def test_a_place_that_went_away_fails_nothing(pool, tmp_path):
    """Tasks run although what they print cannot be kept."""
    run = map_of(lambda ctx, item: item and Path(tmp_path, "o").rename(tmp_path / "p"), [1, 0], all_, bulkhead=1).start(
        "split", pool=pool, output=tmp_path / "o"
    )
    assert run.wait(60) == "joined"


def test_outcomes_say_where(pool, tmp_path, monkeypatch):
    """What a worker sends with an outcome names its file and the bytes, so that they can be recorded."""
    from canobatch.engine.split import SplitExecution

    seen = {}
    accept = SplitExecution._accept

    def noting(self, index, value, event):
        seen[index] = event.output
        accept(self, index, value, event)

    monkeypatch.setattr(SplitExecution, "_accept", noting)
    flow = map_of(lambda ctx, item: print("x" * item, end=""), [3, 0], all_)
    flow.start("split", pool=pool, output=tmp_path).wait(60)
    assert seen[1] is None
    name, start, end = seen[0]
    assert (tmp_path / f"{name}.out").read_bytes()[start:end] == b"xxx"


def test_a_scheduler_keeps_what_its_runs_print_in_its_home(tmp_path, capfd):
    """Each run of a flow has a directory of its own there; without a home they print as usual."""
    flow = Workflow("w").register("a", lambda: print("tick", flush=True) or "b").add_exit_state("b")
    with Scheduler(tmp_path / "home").manual("f", flow, "a").start() as running:
        run = running.trigger("f")
        run.wait(60)
    assert [(span.state, span.read()) for span in spans(tmp_path / "home" / "output" / run.id)] == [("'a'", b"tick\n")]
    assert capfd.readouterr().out == ""
    with Scheduler().manual("f", flow, "a").start() as running:
        running.trigger("f").wait(60)
    assert capfd.readouterr().out == "tick\n"


def test_no_thread_is_left(pool, tmp_path):
    """What watches the size of the files ends with the run."""
    before = set(threading.enumerate())
    map_of(lambda ctx, item: None, [1], all_).start("split", pool=pool, output=tmp_path).wait(60)
    assert {thread.name for thread in set(threading.enumerate()) - before} <= {"canobatch-supervisor"}
    assert list(tmp_path.iterdir()) == []
