"""A kernel lock: one holder, free when it ends, whatever became of the name of its file."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from canobatch._locks import FileLock, is_held

HOLD = """if True:
    import sys, time
    from pathlib import Path
    from canobatch._locks import FileLock
    lock = FileLock(Path(sys.argv[1]))
    print(lock.acquire(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    """The file of a lock."""
    return tmp_path / "x.lock"


@pytest.fixture
def holder(path):
    """A process that holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "True\n"
        yield process
        process.stdin.close()


def test_one_has_it(path):
    """Another of the same process does not get it, until it is given back."""
    one, two = FileLock(path), FileLock(path)
    assert not is_held(path)
    assert one.acquire()
    assert is_held(path)
    assert not two.acquire()
    one.release()
    one.release()
    assert two.acquire()
    two.release()
    assert not is_held(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_free_when_its_holder_is_killed(path, holder):
    """Nothing has to be cleaned up."""
    lock = FileLock(path)
    assert is_held(path)
    assert not lock.acquire()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_held(path)
    assert lock.acquire()
    lock.release()


def test_who_waits_gets_it(path, holder):
    """At the holder's end."""
    lock = FileLock(path)
    got = []
    thread = threading.Thread(target=lambda: got.append(lock.acquire(waits=True)))
    thread.start()
    holder.send_signal(signal.SIGKILL)
    thread.join()
    assert got == [True]
    lock.release()


def test_who_only_asks_keeps_nobody_from_it(path):
    """Somebody asks all the while, and it is had at once."""
    lock, is_over = FileLock(path), threading.Event()

    def ask():
        while not is_over.is_set():
            is_held(path)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(200):
            assert lock.acquire()
            lock.release()
    finally:
        is_over.set()
        thread.join()


def test_a_child_does_not_have_it(path):
    """A fork that outlives the holder does not keep it."""
    lock = FileLock(path)
    assert lock.acquire()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    lock.release()
    try:
        again = FileLock(path)
        assert again.acquire()
        again.release()
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def test_the_last_holder_takes_the_name_away(path):
    """Who waited for it then gets a lock that others see."""
    lock, other = FileLock(path), FileLock(path)
    assert lock.acquire()
    got = []
    thread = threading.Thread(target=lambda: got.append(other.acquire(waits=True)))
    thread.start()
    lock.release(is_last=True)
    thread.join()
    assert got == [True]
    assert path.exists()
    assert not FileLock(path).acquire()
    other.release(is_last=True)
    assert not path.exists()


def test_there_can_be_none(tmp_path):
    """Where no file can be, the error is the system's."""
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "missing" / "x.lock").acquire()
    assert not is_held(tmp_path / "missing" / "x.lock")
