"""The fixtures that run scripts: nothing of a script outlives its test."""

from __future__ import annotations

import sys

import psutil
import pytest

HANG = f"{[sys.executable, '-c', 'import time; time.sleep(600)']!r}, start_new_session=True"


def test_output_arguments_and_exit_code_come_back(run_script):
    """A script gets its arguments, and its output and exit code are returned."""
    done = run_script("import sys; print(sys.argv[1:]); print('bad', file=sys.stderr); sys.exit(3)", "a", 7)
    assert (done.returncode, done.stdout, done.stderr) == (3, "['a', '7']\n", "bad\n")


def test_a_script_may_be_a_file(run_script, tmp_path):
    """A path is run as it stands there."""
    path = tmp_path / "named.py"
    path.write_text("print(__file__)")
    assert run_script(path).stdout.strip() == str(path)


def test_a_survivor_fails_the_script_and_is_killed(run_script, monkeypatch):
    """A script that ends while a process of it lives on fails, and that process is killed."""
    monkeypatch.setitem(run_script.__globals__, "PATIENCE", 0.1)
    source = f"import subprocess; print(subprocess.Popen({HANG}).pid, flush=True)"
    with pytest.raises(AssertionError, match="left processes behind") as caught:
        run_script(source)
    survivor = int(str(caught.value).splitlines()[1])
    assert not psutil.pid_exists(survivor) or psutil.Process(survivor).status() == psutil.STATUS_ZOMBIE


def test_a_script_that_hangs_is_killed_with_all_it_started(run_script, start_script):
    """A script that takes too long fails, and what it started in a session of its own is killed too."""
    source = f"import subprocess, time; subprocess.Popen({HANG}); time.sleep(600)"
    with pytest.raises(pytest.fail.Exception, match="longer than"):
        run_script(source, timeout=1.0)


def test_survivors_are_seen_while_the_script_lives_and_after(start_script):
    """What a script started is found under its name, whether the script itself lives or was killed."""
    source = f"import subprocess, time; subprocess.Popen({HANG}); print('ready', flush=True); time.sleep(600)"
    script = start_script(source)
    script.wait_for("ready")
    before = script.survivors()
    script.process.kill()
    script.process.wait()
    assert script.survivors() == before
    assert len(before) == 1


def test_waiting_for_a_marker_ends_with_the_script(start_script):
    """A script that ends before it printed the marker is a failure that shows what it wrote."""
    script = start_script("raise SystemExit('no marker today')")
    with pytest.raises(AssertionError, match="no marker today"):
        script.wait_for("ready")


def test_the_process_has_no_input(run_script):
    """A script that reads its input sees its end."""
    assert run_script("import sys; print(repr(sys.stdin.read()))").stdout == "''\n"
