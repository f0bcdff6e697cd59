"""The process that owns the workers: their parent, their reaper, their executioner.

One thread, no user code, one client. It ends when its launcher does (known by pidfd) and takes
everything below it along. Invariants: a death is reported only when nothing that the dead worker left
is alive; a worker is reaped only here, so its pid cannot be reused while anyone may still signal it.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import socket
import sys
from collections import deque
from contextlib import suppress
from multiprocessing.context import get_spawning_popen
from typing import Any

from loky import cpu_count
from loky.backend import get_context

from canobatch import _clock, _procs, worker

#: Seconds after which a process that cannot die (uninterruptible sleep) no longer holds up the report.
PATIENCE = 5.0

#: Seconds that idle workers have to end by themselves when the pool closes.
GRACE = 2.0

#: A spare boots so much nicer, where it may take that back afterwards: 0.1 s of CPU in the midst of a run.
_BOOT_NICE = 10

HELLO, SPAWN, SPAWNED, REFUSED, KILL, DEAD, CLOSE = range(7)


class _Inherited:
    """A descriptor on its way to a process that is being spawned; arrives there as its number."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        popen: Any = get_spawning_popen()
        return int, (popen.duplicate_for_child(self._fd),)


class _Worker:
    def __init__(self, slot: int, process: Any, pidfd: int) -> None:
        self.slot = slot
        self.process = process
        self.pid: int = process.pid
        self.pidfd = pidfd


class Keeper:
    """Serves spawn and kill requests of one launcher until it closes or ends."""

    def __init__(self, control: socket.socket, launcher: int) -> None:
        self._control = control
        self._launcher = launcher
        self._context = get_context("loky")
        self._poll = select.epoll()
        self._by_slot: dict[int, _Worker] = {}
        self._by_pidfd: dict[int, _Worker] = {}
        self._trackers: set[int] = set()
        #: pidfds of adopted processes whose end is awaited.
        self._adopted: dict[int, int] = {}
        #: Deaths whose report waits until nothing adopted lives: (slot, exit code, give up at).
        self._deaths: list[tuple[int, int | None, float]] = []
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._may_lower = _procs.can_raise_priority()
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()

    def serve(self) -> None:
        """Work until the launcher is gone or asks to close; then kill everything and return."""
        self._poll.register(self._launcher, select.EPOLLIN)
        self._poll.register(self._control, select.EPOLLIN)
        self._send(HELLO, os.getpid(), cpu_count())
        while True:
            for fd, event in self._poll.poll(self._patience()):
                if fd == self._launcher:
                    return
                if fd == self._control.fileno():
                    if event & select.EPOLLOUT:
                        self._flush()
                    if event & ~select.EPOLLOUT and not self._serve_request():
                        return
                elif fd in self._by_pidfd:
                    self._bury(self._by_pidfd[fd])
                else:
                    self._release_adopted(fd)
            if self._deaths:
                self._settle_deaths()

    def kill_everything(self) -> None:
        """Kill all workers, all they left, and wait for their end."""
        deadline = _clock.monotonic() + PATIENCE
        while _clock.monotonic() < deadline:
            living = _procs.reap_dead_children(self._trackers)
            if not living:
                return
            _procs.kill_children(living, deadline - _clock.monotonic())

    def _patience(self) -> float | None:
        if not self._deaths:
            return None
        return max(0.0, min(give_up for _, _, give_up in self._deaths) - _clock.monotonic())

    # -- requests

    def _serve_request(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 1 << 16, 4)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        if not data:
            return False
        kind, argument = marshal.loads(data)  # noqa: S302 - from our own launcher
        if kind == SPAWN:
            self._spawn(*argument, *fds)
        else:
            victims = [self._by_slot[slot] for slot in argument if slot in self._by_slot]
            _procs.kill_trees({w.pid: w.pidfd for w in victims})
            if kind == CLOSE:
                # The others were told to end, and may run what they registered for their exit.
                _procs.wait_dead(self._by_pidfd, GRACE, unless=self._launcher)
        return bool(kind != CLOSE)

    def _spawn(self, slot: int, is_spare: bool, channel: int, status: int) -> None:
        process = self._context.Process(
            target=worker.main,
            args=(_Inherited(channel), _Inherited(status), os.getpid(), self._nice),
            name=f"canobatch-{slot}",
        )
        try:
            if is_spare and self._may_lower:
                _procs.set_priority(self._nice + _BOOT_NICE)
            process.start()
            pidfd = os.pidfd_open(process.pid)
        except Exception as error:  # noqa: BLE001 - whatever it is, the launcher must hear of it
            self._send(REFUSED, slot, f"{type(error).__name__}: {error}")
            return
        finally:
            _procs.set_priority(self._nice)
            os.close(channel)
            os.close(status)
        if not self._trackers:
            # The first start made loky's resource trackers; they end with this process.
            self._trackers = set(_procs.children_of(os.getpid())) - {process.pid}
        born = _Worker(slot, process, pidfd)
        self._by_slot[slot] = self._by_pidfd[pidfd] = born
        self._poll.register(pidfd, select.EPOLLIN)
        self._send(SPAWNED, slot, process.pid, fds=[pidfd])

    # -- deaths

    def _bury(self, dead: _Worker) -> None:
        del self._by_slot[dead.slot], self._by_pidfd[dead.pidfd]
        self._poll.unregister(dead.pidfd)
        exitcode = dead.process.exitcode  # reaps it
        os.close(dead.pidfd)
        self._deaths.append((dead.slot, exitcode, _clock.monotonic() + PATIENCE))

    def _settle_deaths(self) -> None:
        """Kill what dead workers left to us; when nothing of it lives, report the deaths."""
        spare = self._trackers.union(w.pid for w in self._by_slot.values())
        strays = [pid for pid in _procs.reap_dead_children(spare) if pid not in self._adopted.values()]
        if strays:
            roots = {}
            for pid in strays:
                with suppress(OSError):
                    roots[pid] = os.pidfd_open(pid)
            _procs.kill_trees(roots)
            for pid, pidfd in roots.items():
                self._adopted[pidfd] = pid
                self._poll.register(pidfd, select.EPOLLIN)
        now = _clock.monotonic()
        for death in list(self._deaths):
            slot, exitcode, give_up = death
            if not self._adopted or now >= give_up:
                self._deaths.remove(death)
                self._send(DEAD, slot, exitcode, bool(self._adopted))

    def _release_adopted(self, pidfd: int) -> None:
        pid = self._adopted.pop(pidfd, None)
        with suppress(OSError):
            self._poll.unregister(pidfd)
            os.close(pidfd)
        if pid is not None:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    # -- replies

    def _send(self, *message: Any, fds: list[int] | None = None) -> None:
        # Duplicates: the message may wait longer than the descriptor stays open here.
        self._outgoing.append((marshal.dumps(message), [os.dup(fd) for fd in fds or ()]))
        self._flush()

    def _flush(self) -> None:
        while self._outgoing:
            data, fds = self._outgoing[0]
            try:
                socket.send_fds(self._control, [data], fds)
            except (BlockingIOError, InterruptedError):
                self._poll.modify(self._control, select.EPOLLIN | select.EPOLLOUT)
                return
            except OSError:
                self._outgoing.clear()
                break
            self._outgoing.popleft()
            for fd in fds:
                os.close(fd)
        self._poll.modify(self._control, select.EPOLLIN)


#: What limits the threads of numerical libraries; read when they are first imported.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def _limit_threads(max_workers: int, threads_per_worker: int) -> None:
    """Set in the environment of workers how many threads each may use, where the user has not."""
    threads = threads_per_worker or max(1, cpu_count() // (max_workers or cpu_count()))
    for name in _THREAD_VARIABLES:
        os.environ.setdefault(name, str(threads))


def main(control: int, launcher: int, max_workers: int, threads_per_worker: int) -> None:
    """Run the keeper of the process behind the pidfd ``launcher``; the caller's process ends here.

    ``max_workers`` and ``threads_per_worker`` may be 0: as many as there are cores, and their share.
    """
    _limit_threads(max_workers, threads_per_worker)
    signal.pthread_sigmask(signal.SIG_BLOCK, _procs.GROUP_SIGNALS)
    for number in _procs.GROUP_SIGNALS:
        # loky's trackers let some of them through, and one may have come before this process had its own session.
        signal.signal(number, lambda *_: None)
    # A launcher that ignores SIGCHLD hands that on, and the kernel would throw the exit statuses away.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _procs.become_subreaper()
    sock = socket.socket(fileno=control)
    sock.setblocking(False)
    keeper = Keeper(sock, launcher)
    try:
        keeper.serve()
    finally:
        keeper.kill_everything()
        sys.stderr.flush()
        os._exit(0)
