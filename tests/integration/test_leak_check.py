"""The leak check itself: it must see each kind of leak, or the tests that rest on it prove nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parent.parent / "conftest.py"

LEAKING = """
import os, subprocess, sys, threading

# What hangs, hangs on this pipe and ends with the session that holds its other end.
READ, WRITE = os.pipe()
HANG = [sys.executable, "-c", "import sys; sys.stdin.read()"]
held = []


def test_clean():
    subprocess.run([sys.executable, "-c", ""], check=True)
    thread = threading.Thread(target=print)
    thread.start()
    with open(__file__):
        pass


def test_child():
    held.append(subprocess.Popen(HANG, stdin=READ))


def test_zombie():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    held.append(child)


def test_daemon():
    program = f"import subprocess; subprocess.Popen({HANG!r}, start_new_session=True)"
    subprocess.run([sys.executable, "-c", program], stdin=READ, check=True)


def test_thread():
    never = threading.Event()
    held.append(never)
    threading.Thread(target=never.wait, name="left-over", daemon=True).start()


def test_descriptor():
    held.append(os.pipe())


def test_shared_memory():
    path = f"/dev/shm/leak-check-{os.getpid()}"
    held.append(path)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def teardown_module():
    os.unlink(held[-1])
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a session prints in which each test but the first leaves something behind."""
    tests = tmp_path_factory.mktemp("leaking") / "tests"
    tests.mkdir()
    (tests / "conftest.py").write_text(CONFTEST.read_text().replace("PATIENCE = 5.0", "PATIENCE = 0.1"))
    (tests / "test_leaks.py").write_text(LEAKING)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rEpP", "tests"]
    done = subprocess.run(command, cwd=tests.parent, capture_output=True, text=True, timeout=100, check=False)
    return done.stdout + done.stderr


def test_a_clean_test_passes(report):
    """A test whose processes, threads and files are gone at its end is left alone."""
    assert "7 passed, 6 errors" in report
    assert "ERROR tests/test_leaks.py::test_clean" not in report


@pytest.mark.parametrize(
    ("leak", "words"),
    [
        ("child", "sys.stdin.read()"),
        ("zombie", "(zombie)"),
        ("daemon", "sys.stdin.read()"),
        ("thread", "left-over"),
        ("descriptor", "pipe:["),
        ("shared_memory", "/dev/shm/leak-check-"),
    ],
)
def test_a_leak_is_named(report, leak, words):
    """A test that leaves something behind fails, and the failure says what it is."""
    section = report.partition(f"ERROR at teardown of test_{leak} ")[2].partition("\n____")[0]
    assert "the test left behind" in section
    assert words in section
