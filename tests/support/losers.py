"""Tasks that do not end by themselves, each in its own way, and one that wins against them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from canobatch import Task, TaskConfig, segments, wire
from tests.support.watch import Scene

#: What each of them does, by name: called with what says that it runs, and its descriptor of the scene.
WAYS: dict[str, Callable[[Callable[..., None], int], object]] = {}

FOREVER = 100_000


def _way(fn):
    WAYS[fn.__name__] = fn
    return fn


@dataclass
class Loser(Task):
    """Enters the scene under its name, and never ends by itself."""

    name: str
    how: str
    place: str
    config: TaskConfig = field(default_factory=TaskConfig)

    def run(self, ctx):
        scene = Scene(self.place)
        descriptor = scene.enter(self.name)
        return WAYS[self.how](lambda *pids: scene.runs(self.name, *pids), descriptor)


@dataclass
class Winner(Task):
    """Returns its value once all losers run."""

    value: object
    losers: list[str]
    place: str
    state: str = ""

    def run(self):
        Scene(self.place).await_runs(*self.losers, state=self.state)
        return self.value


@_way
def loops_in_c(runs, descriptor):
    """One call that neither returns to Python nor looks at signals, and keeps the GIL."""
    runs()
    return sum(range(10**15))


@_way
def sleeps_with_the_gil(runs, descriptor):
    """The same without using the processor."""
    runs()
    return ctypes.PyDLL(None).sleep(FOREVER)


@_way
def ignores_sigterm(runs, descriptor):
    """Ignores every signal that can be ignored, and every exception."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    runs()
    while True:
        try:
            time.sleep(FOREVER)
        except BaseException:
            continue


@_way
def runs_a_command(runs, descriptor):
    """Waits in ``subprocess.run``; the command writes its pid itself."""
    marker = os.readlink(f"/proc/self/fd/{descriptor}").replace(".fifo", ".runs")
    # Two pids: the worker's and the command's, which stays the same when the shell becomes sleep.
    script = f'echo {os.getpid()} $$ >"$0.new" && mv "$0.new" "$0" && exec sleep {FOREVER}'
    return subprocess.run(["sh", "-c", script, marker], pass_fds=(descriptor,), check=False)


@_way
def forks(runs, descriptor):
    """Waits for a bare ``os.fork`` child, which has a child of its own."""
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            time.sleep(FOREVER)
        time.sleep(FOREVER)
    runs(child)
    return os.waitpid(child, 0)


@_way
def starts_a_session(runs, descriptor):
    """Its child leads a session of its own."""
    child = subprocess.Popen(["sleep", str(FOREVER)], start_new_session=True, pass_fds=(descriptor,))
    runs(child.pid)
    return child.wait()


@_way
def daemonises(runs, descriptor):
    """Its grandchild has left group and session, and lost its parent."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        daemon = os.fork()
        if daemon == 0:
            os.chdir("/")
            os.umask(0)
            os.write(writer, str(os.getpid()).encode())
            time.sleep(FOREVER)
        os._exit(0)
    os.waitpid(child, 0)
    runs(int(os.read(reader, 32)))
    return time.sleep(FOREVER)


@_way
def forks_all_the_time(runs, descriptor):
    """A chain of processes: each leaves group and session, forks the next and ends."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        for generation in range(sys.maxsize):
            if generation == 20:
                os.write(writer, b"x")
            os.setsid()
            if os.fork() > 0:
                os._exit(0)
    os.read(reader, 1)
    runs()
    while True:
        os.wait()


@_way
def stops_itself(runs, descriptor):
    """Stands still, with a child that does not."""
    child = subprocess.Popen(["sleep", str(FOREVER)], pass_fds=(descriptor,))
    runs(child.pid)
    os.kill(os.getpid(), signal.SIGSTOP)
    return child.wait()


class LargeError(Exception):
    """An error that is a large message."""

    def __str__(self):
        return "large"


@_way
def sends_and_stops(runs, descriptor):
    """Stops itself when a part of a 300 MB message has been sent."""
    _while_writing(wire.send_blocking, "part", lambda: (runs(), os.kill(os.getpid(), signal.SIGSTOP)))
    raise LargeError(bytes(300_000_000))


@_way
def sends_and_dies(runs, descriptor):
    """Dies when a part of a 300 MB message has been sent."""
    _while_writing(wire.send_blocking, "part", lambda: (runs(), os.kill(os.getpid(), signal.SIGKILL)))
    raise LargeError(bytes(300_000_000))


@_way
def fills_and_stops(runs, descriptor):
    """Stops itself when a part of its 300 MB result is in shared memory."""
    _while_writing(segments._write, "piece", lambda: (runs(), os.kill(os.getpid(), signal.SIGSTOP)))
    return bytes(300_000_000)


@_way
def fills_and_dies(runs, descriptor):
    """Dies when a part of its 300 MB result is in shared memory."""
    _while_writing(segments._write, "piece", lambda: (runs(), os.kill(os.getpid(), signal.SIGKILL)))
    return bytes(300_000_000)


def _while_writing(writer: Callable[..., object], name: str, act: Callable[[], object]) -> None:
    """Call ``act`` in a thread as soon as the task's thread is in ``writer``, with a large ``name`` at hand."""
    main = threading.main_thread().ident

    def watch() -> None:
        while True:
            frame = sys._current_frames()[main]
            while frame is not None and frame.f_code is not writer.__code__:
                frame = frame.f_back
            # In it for a large part, not for the header before it.
            if frame is not None and len(frame.f_locals.get(name, b"")) > 1_000_000:
                act()
                return
            time.sleep(0.0005)

    threading.Thread(target=watch, daemon=True).start()
