"""`canobatch map` in processes of its own."""

from __future__ import annotations

import filecmp
import json
import os
import re
import signal
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.launched import PROGRAM, Place, Screen
from tests.support.watch import await_that, is_alive

FUNCTIONS = """
def up(line):
    if "bad" in line:
        raise ValueError(f"{line} is bad")
    return line.upper()

def double(ctx, row):
    return {"n": row["n"] * 2, "attempt": ctx.attempt}

def nothing(line):
    told(line)

def flaky(ctx, line):
    if ctx.attempt < 3:
        raise OSError("not yet")
    return f"{line} {ctx.attempt}"

def crash(line):
    if line == "2":
        os._exit(7)
    return line

def hang(line):
    if line != "quick":
        hold(line)
    return line

def late(line):
    hold(f"late{line}") if line in ("2", "5") else None
    with (HERE / "calls").open("a") as file:
        file.write(f"{line} ")
    return line

def two(a, b):
    return a + b

async def slowly(line):
    return line + "!"

def identity(line):
    return line

def logged(line):
    hold("middle") if line == os.environ.get("MIDDLE") else None
    with (HERE / f"calls{os.getpid()}").open("a") as file:
        file.write(f"{line}\\n")
    return line
"""


@pytest.fixture
def place(tmp_path):
    """A directory with functions."""
    place = Place(tmp_path)
    place.write("fn.py", FUNCTIONS)
    yield place
    place.close()


def test_results_come_in_the_order_of_the_inputs(place):
    """One line in, one line out, however long each takes; what failed is listed with its input and its error."""
    lines = [f"line {n}" for n in range(50)]
    lines[7], lines[31] = "bad seven", "so bad"
    done = place.run("map", "fn.py:up", "-j", "2", stdin="\n".join(lines))
    assert done.returncode == 1
    assert done.stdout.splitlines() == [line.upper() for line in lines if "bad" not in line]
    assert "input 8 (bad seven) failed: ValueError: bad seven is bad" in done.stderr
    assert "input 32 (so bad) failed: ValueError: so bad is bad" in done.stderr
    assert "48 done, 2 failed" in done.stderr
    assert done.stderr.splitlines()[-1] == "Error: 2 of 50 inputs failed"


def test_inputs_from_a_file_with_json_lines(place):
    """--jsonl reads and writes JSON; the function may take the context too."""
    (place.path / "rows.jsonl").write_text('{"n": 1}\n\n{"n": 2}\r\n{"n": 3}')
    done = place.run("map", "fn.py:double", "--from", "rows.jsonl", "--jsonl")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"n": n, "attempt": 1} for n in (2, 4, 6)]
    (place.path / "rows.jsonl").write_text('{"n": 1}\n{"n": }\n')
    done = place.run("map", "fn.py:double", "--from", "rows.jsonl", "--jsonl")
    assert done.returncode == 1
    assert "line 2 is not JSON" in done.stderr


def test_none_is_not_written(place):
    """A function for its effects prints nothing; in JSON lines it is a null."""
    done = place.run("map", "fn.py:nothing", stdin="a\nb\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert (place.path / "a.told").exists()
    assert place.run("map", "fn.py:nothing", "--jsonl", stdin='"a"\n').stdout == "null\n"


def test_async_functions_and_empty_inputs(place):
    """A coroutine is run to its end; no input is no failure."""
    assert place.run("map", "fn.py:slowly", stdin="a\n").stdout == "a!\n"
    done = place.run("map", "fn.py:slowly", stdin="")
    assert (done.returncode, done.stdout) == (0, "")


def test_retries_and_a_crash(place):
    """--retries tries again, and a process that dies fails its own input only."""
    assert place.run("map", "fn.py:flaky", "--retries", "2", stdin="a\n").stdout == "a 3\n"
    assert place.run("map", "fn.py:flaky", "--retries", "1", stdin="a\n").returncode == 1
    done = place.run("map", "fn.py:crash", stdin="1\n2\n3\n")
    assert (done.returncode, done.stdout) == (1, "1\n3\n")
    assert "input 2 (2) lost" in done.stderr


@pytest.mark.parametrize("join", ["any", "quorum=1", "percentage=25", "percentage=0.25", "deadline=8"])
def test_joins_kill_the_rest(place, join):
    """As soon as enough succeeded, or time is over, the rest is killed and what there is counts."""
    done = place.run("map", "fn.py:hang", "-j", "4", "--join", join, stdin="slow1\nquick\nslow2\nslow3\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "quick\n"
    assert "1 done, 3 killed" in done.stderr
    assert not any(is_alive(int(path.read_text())) for path in place.path.glob("slow*.told"))


def test_a_timeout_kills_an_attempt(place):
    """--timeout is of one attempt."""
    done = place.run("map", "fn.py:hang", "--timeout", "0.5", stdin="quick\nslow\n")
    assert (done.returncode, done.stdout) == (1, "quick\n")
    assert "input 2 (slow) timed out" in done.stderr


def test_each_result_is_written_as_soon_as_it_is_final(place):
    """A result does not wait for those after it."""
    process = place.start("map", "fn.py:late", "-j", "1", stdin=subprocess.PIPE)
    process.stdin.write("1\n2\n")
    process.stdin.close()
    process.stdin = None
    assert process.stdout.readline() == "1\n"
    place.await_told("late2")
    place.release("late2")
    assert process.stdout.read() == "2\n"
    assert process.wait(60) == 0


def test_a_dry_run_reads_and_calls_nothing(place):
    """It says how many inputs there are and shows the first."""
    done = place.run("map", "fn.py:nothing", "--dry-run", stdin="a\nb\nc\nd\n")
    assert done.returncode == 0
    assert "4 inputs" in done.stdout
    assert "input 3: c" in done.stdout
    assert not (place.path / "a.told").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["fn.py:upp"], 3, "did you mean up?"),
        (["fn.py:two", "--join", "most"], 2, "is not one of all, any"),
        (["fn.py:up", "--from", "nowhere.txt"], 2, "nowhere.txt"),
        (["fn.py:HERE"], 3, "not a function"),
        (["fn.py:up", "--memory-limit", "lots"], 2, "number of bytes"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_read(place, args, code, words):
    """A line and an exit code."""
    done = place.run("map", *args)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_reads_the_results(place):
    """`canobatch map | head -1` stops the work, and has nothing to say."""
    many = "\n".join(map(str, range(200_000)))
    command = f"{' '.join(PROGRAM)} map fn.py:identity -j 1 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=place.path,
        env=place.env(),
        input=many,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stdout == "0\n"
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def peak_of(process) -> int:
    """Wait for a process, and return the most memory that it had, in kB."""
    peak = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        # What a process inherits from its parent's peak is not in here.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        peak = max(peak, int(found[1]) if found else 0)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    assert process.returncode == 0
    assert peak > 0
    return peak


def map_lines(place, function, source, *args):
    """Start a map of the file ``lines``, read by name or from standard input, into the file ``out``."""
    with (place.path / "out").open("w") as out, (place.path / "lines").open() as lines:
        if source == "file":
            return place.start("map", function, "--from", "lines", "-j", "2", *args, stdout=out)
        return place.start("map", function, "-j", "2", *args, stdin=lines, stdout=out)


def test_many_lines_take_no_more_memory(place):
    """Thirty thousand inputs and results pass through, in order; none is kept."""
    with (place.path / "lines").open("w") as file:
        file.writelines(f"{n} {'x' * 4000}\n" for n in range(30_000))
    peak = peak_of(map_lines(place, "fn.py:identity", "file"))
    assert filecmp.cmp(place.path / "lines", place.path / "out", shallow=False)
    # The lines alone are 120 MB.
    assert peak < 100_000, peak


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_million_lines(place, source):
    """They pass through in order, in the memory that a few thousand take."""
    with (place.path / "lines").open("w") as file:
        file.writelines(f"{n}\n" for n in range(1_000_000))
    peak = peak_of(map_lines(place, "fn.py:identity", source))
    assert filecmp.cmp(place.path / "lines", place.path / "out", shallow=False)
    # The records of a hundred thousand branches are kept.
    assert peak < 120_000, peak


@pytest.mark.parametrize(
    ("count", "source"),
    [(4_000, "stdin"), pytest.param(1_000_000, "file", marks=[pytest.mark.stress, pytest.mark.timeout(900)])],
)
def test_a_map_that_is_killed_in_the_middle_is_resumed(place, monkeypatch, count, source):
    """After SIGKILL the output is whole and in order, what was recorded is not called again, and none of it is kept."""
    with (place.path / "lines").open("w") as file:
        file.writelines(f"{n}\n" for n in range(count))
    monkeypatch.setenv("MIDDLE", str(count * 3 // 4))
    process = map_lines(place, "fn.py:logged", source)
    await_that((place.path / "middle.told").exists, "the middle should be reached", 600.0)
    await_that(lambda: (place.path / "out").stat().st_size > 0, "results should be written")
    process.kill()
    process.wait()
    place.release("middle")
    recorded = {int(each["branch"]) for each in _recorded(place)} if count < 10_000 else set(range(count // 2))
    assert recorded
    peak = peak_of(map_lines(place, "fn.py:logged", source, "--resume"))
    assert filecmp.cmp(place.path / "lines", place.path / "out", shallow=False)
    calls = Counter(int(line) for path in place.path.glob("calls*") for line in path.read_text().splitlines())
    assert set(calls) == set(range(count))
    assert {calls[branch] for branch in recorded} == {1}
    assert peak < 120_000, peak


def test_a_slow_input_keeps_neither_results_nor_a_cancel(place):
    """While standard input waits for more, results are written, and Ctrl-C works."""
    reader, writer = os.pipe()
    process = place.start("map", "fn.py:identity", stdin=reader)
    os.close(reader)
    try:
        os.write(writer, b"first\nsecond\n")
        assert process.stdout.readline() == "first\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        os.close(writer)


def test_resume_does_only_what_is_missing(place):
    """After a kill all results come in order, and what was recorded is not called again."""
    (place.path / "lines").write_text("1\n2\n3\n4\n5\n")
    command = ("map", "fn.py:late", "--from", "lines", "-j", "1")
    place.release("late2")
    process = place.start(*command)
    worker = place.await_told("late5")
    await_that(lambda: len(_recorded(place)) == 4, "four results should be recorded")
    process.kill()
    process.wait()
    await_that(lambda: not is_alive(worker), "the worker should be dead")
    place.release("late5")
    again = place.run(*command, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout == "1\n2\n3\n4\n5\n"
    assert sorted((place.path / "calls").read_text().split()) == ["1", "2", "3", "4", "5"]
    complete = place.run(*command, "--resume")
    assert complete.returncode == 0
    assert "is complete" in complete.stderr
    assert (place.path / "calls").read_text().count("1") == 1


def _recorded(place):
    facts = json.loads(place.run("show", "last", "--json").stdout)
    return [attempt for attempt in facts["attempts"] if attempt["status"] == "succeeded"]


def test_resume_tries_again_what_failed(place):
    """A cured cause: the failures are done, the rest is kept; also by the id of the run."""
    (place.path / "lines").write_text("a\nbad\nc\n")
    assert place.run("map", "fn.py:up", "--from", "lines").returncode == 1
    place.write("fn.py", FUNCTIONS.replace('if "bad" in line:', "if False:"))
    again = place.run("resume", "last")
    assert again.returncode == 0, again.stderr
    assert again.stdout == "A\nBAD\nC\n"


def test_other_inputs_are_refused_on_resume(place):
    """A line that was another one before is a mistake that is told."""
    (place.path / "lines").write_text("a\nbad\nc\n")
    assert place.run("map", "fn.py:up", "--from", "lines").returncode == 1
    (place.path / "lines").write_text("x\nbad\nc\n")
    again = place.run("map", "fn.py:up", "--from", "lines", "--resume")
    assert again.returncode == 1
    assert "branch 0" in again.stderr


def test_the_first_failure_may_end_it(place):
    """With --fail-fast what hangs is killed as soon as one has failed; --resume goes on from there."""
    (place.path / "lines").write_text("x\nbad\n")
    place.write("fn.py", FUNCTIONS + "\ndef first(line):\n    return up(line) if 'bad' in line else hang(line)\n")
    process = place.start("map", "fn.py:first", "--from", "lines", "-j", "2", "--fail-fast")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "1 failed, 1 killed or not begun" in err


def test_results_on_a_terminal_are_not_torn_apart(place):
    """Where results appear on the screen there is no live progress beside them."""
    (place.path / "lines").write_text("a\nb\n")
    screen = Screen(place, "map", "fn.py:up", "--from", "lines")
    assert screen.end() == 0
    assert "A\r\nB\r\n" in screen.text
    assert "\x1b[?25l" not in screen.text
