"""The only user of pidfd, prctl, signals and /proc.

A process is addressed by its pidfd wherever it might have ended meanwhile, so that no stranger who got
its number can be hit. psutil's tree walk is too slow for killing (10 ms a host scan), hence /proc.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from canobatch import _clock

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Iterator, Mapping, Sequence

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_CAP_SYS_NICE = 23

#: In the environment of everything a pool starts; nested pools extend it, so a prefix finds the lot.
TOKEN = "CANOBATCH_TOKEN"  # noqa: S105 - not a secret, a mark

#: Signals that a terminal or a service manager sends to a whole group.
GROUP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP})

#: Children of this process that are the library's own: a nested pool's keeper outlives the task.
kept_children: set[int] = set()

_STOPPED = frozenset("TtZXxD")
_DEAD = frozenset("ZXx")


def _prctl(option: int, argument: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def become_subreaper() -> None:
    """Adopt descendants whose parent ends, instead of losing them to pid 1."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Be killed when ``parent`` ends; end now if it already has."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def prefer_for_oom() -> None:
    """Make the kernel take this process before its launcher when memory runs out."""
    with suppress(OSError):
        path = Path("/proc/self/oom_score_adj")
        path.write_text(str(min(1000, int(path.read_text()) + 500)))


@contextmanager
def group_signals_blocked() -> Iterator[None]:
    """Block these signals in this thread; what is started meanwhile inherits that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def open_standard_streams() -> None:
    """Open on nothing what is closed of descriptors 0 to 2: whatever got that number would be written to by anyone."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            # For children too, even where it has the number already.
            os.dup2(nowhere, number)
            os.set_inheritable(number, True)
            if nowhere != number:
                os.close(nowhere)


def ignore_group_signals() -> None:
    """Take these signals with a handler that does nothing.

    Not SIG_IGN: that would be inherited by what the task starts.
    """
    for number in GROUP_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)


def start_own(
    boot: str, *arguments: object, fds: Sequence[int], options: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start an interpreter of our own in a session of its own.

    Args:
        boot: Code, which finds this process's module path in ``sys.argv`` behind the ``arguments``.
        arguments: What it is told.
        fds: Descriptors that it gets, under their numbers here.
        options: Of the interpreter.
        env: Its environment; None: this process's.
    """
    import subprocess  # noqa: PLC0415 - slow; most who look at processes start none

    try:
        here, cwd = os.getcwd(), None
    except FileNotFoundError:
        # It was removed: then nothing can be imported from it either, and a process has to be somewhere.
        here = cwd = os.sep
    path = [entry or here for entry in sys.path if isinstance(entry, str)]
    command = [sys.executable, *options, "-c", boot, *map(str, arguments), *path]
    with group_signals_blocked():
        return subprocess.Popen(  # noqa: S603 - our own interpreter
            command, stdin=subprocess.DEVNULL, pass_fds=fds, start_new_session=True, env=env, cwd=cwd
        )


def is_dead(pidfd: int) -> bool:
    """Return whether the process behind ``pidfd`` has ended."""
    return wait_dead([pidfd], 0.0) == []


def wait_dead(pidfds: Iterable[int], timeout: float, *, unless: int | None = None) -> list[int]:
    """Wait up to ``timeout`` seconds for all to end, or for the end of ``unless``; return those that have not."""
    living = set(pidfds)
    poller = select.poll()
    for fd in living:
        poller.register(fd, select.POLLIN)
    if unless is not None:
        poller.register(unless, select.POLLIN)
    deadline = _clock.monotonic() + timeout
    while living:
        ready = poller.poll(max(0.0, deadline - _clock.monotonic()) * 1000)
        for fd, _ in ready:
            poller.unregister(fd)
            living.discard(fd)
        if not ready or any(fd == unless for fd, _ in ready):
            break
    return sorted(living)


def send_signal(pidfd: int, number: int) -> None:
    """Signal the process behind ``pidfd``; one that ended, or that is not ours to signal, is fine."""
    with suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, number)


def kill_known(pid: int, ticks: int) -> bool:
    """Kill a process that started at these ticks; returns False if it is gone, or not ours to kill."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Opened first: from here on the number cannot become another's.
        if start_ticks(pid) != ticks:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def children_of(pid: int) -> list[int]:
    """Return the direct children of ``pid``, by any of its threads."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - half the cost of Path on the kill path
    except OSError:
        return found
    for thread in threads:
        with suppress(OSError):
            fd = os.open(f"/proc/{pid}/task/{thread}/children", os.O_RDONLY | os.O_CLOEXEC)
            try:
                while chunk := os.read(fd, 65536):
                    found.extend(map(int, chunk.split()))
            finally:
                os.close(fd)
    return found


def state_and_parent(pid: int) -> tuple[str, int]:
    """Return the state letter and the parent of ``pid``; ("X", 0) when there is no such process."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return "X", 0
    try:
        text = os.read(fd, 4096)
    except OSError:
        return "X", 0
    finally:
        os.close(fd)
    fields = text[text.rindex(b")") + 2 :].split(None, 2)
    return fields[0].decode(), int(fields[1])


def _await_stopped(pid: int) -> None:
    """Wait until ``pid`` runs no user code. Bounded: what slips through is adopted and killed later."""
    deadline = _clock.monotonic() + 0.02
    while state_and_parent(pid)[0] not in _STOPPED and _clock.monotonic() < deadline:
        os.sched_yield()


def _open_children(pid: int, known: Mapping[int, int]) -> dict[int, int]:
    found = {}
    for child in children_of(pid):
        if child in known:
            continue
        try:
            pidfd = os.pidfd_open(child)
        except OSError:
            continue
        # The number may have been reused between the listing and the opening.
        if state_and_parent(child)[1] == pid:
            found[child] = pidfd
        else:
            os.close(pidfd)
    return found


def kill_trees(roots: Mapping[int, int], timeout: float = 0.0) -> None:
    """Send SIGKILL to the ``roots`` (pid -> pidfd) and to everything below them; wait up to ``timeout`` seconds for it.

    Everything is stopped before anything is killed: a process that is killed first would hand its
    children to a sub-reaper, and one that forks all the time would outrun a plain walk.
    """
    doomed = dict(roots)
    fresh = dict(roots)
    while fresh:
        for pidfd in fresh.values():
            send_signal(pidfd, signal.SIGSTOP)
        for pid in fresh:
            _await_stopped(pid)
        fresh = {}
        # All of them again: orphans of what has just been stopped move up to a sub-reaper among them.
        for pid in list(doomed):
            fresh.update(_open_children(pid, {**doomed, **fresh}))
        doomed.update(fresh)
    below = {pid: pidfd for pid, pidfd in doomed.items() if pid not in roots}
    for pidfd in below.values():
        send_signal(pidfd, signal.SIGKILL)
    for pidfd in roots.values():
        send_signal(pidfd, signal.SIGKILL)
    if timeout > 0.0:
        wait_dead(doomed.values(), timeout)
    for pidfd in below.values():
        os.close(pidfd)


def reap_dead_children(spare: Iterable[int] = ()) -> list[int]:
    """Reap this process's ended children, but for ``spare``; return those that still live."""
    spared = set(spare)
    living = []
    for pid in children_of(os.getpid()):
        if pid in spared:
            continue
        if state_and_parent(pid)[0] in _DEAD:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        else:
            living.append(pid)
    return living


def can_raise_priority() -> bool:
    """Return whether this process may become as important again as it was before it lowered itself."""
    if resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - os.getpriority(os.PRIO_PROCESS, 0):
        return True
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_NICE & 1)
    return False


def set_priority(nice: int) -> None:
    """Set this process's nice value, if that is allowed."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def match_priority(pid: int) -> None:
    """Give another process this one's nice value, if that is allowed."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0))


def children_cpu() -> float:
    """Return the CPU seconds of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def has_children() -> bool:
    """Return whether this process has any child, dead or alive; 1.5 µs when it has none."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def kill_children(pids: Iterable[int], timeout: float) -> None:
    """Kill these children with everything below them, and reap them; wait up to ``timeout`` seconds."""
    roots = {}
    for pid in pids:
        with suppress(OSError):
            roots[pid] = os.pidfd_open(pid)
    kill_trees(roots, timeout)
    for pid, pidfd in roots.items():
        os.close(pidfd)
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def anonymous_memory(pid: int) -> int:
    """Return the anonymous resident bytes of ``pid`` and its descendants; mapped files do not count."""
    total = 0
    pending = [pid]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        with suppress(OSError, ValueError):
            for line in Path(f"/proc/{current}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += int(line.split()[1]) * 1024
                    break
        pending.extend(children_of(current))
    return total


def available_memory() -> int:
    """Return the bytes that this process may still use, as far as host and container allow it."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    limits = [Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    with suppress(OSError, ValueError):
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        group = Path("/sys/fs/cgroup", own[3:].strip("/"))
        limits += [parent / "memory.max" for parent in (group, *group.parents)]
    for path in limits:
        with suppress(OSError, ValueError):
            available = min(available, int(path.read_text()))
    return available


def peak_memory() -> int | None:
    """Return this process's peak resident bytes since `reset_peak_memory`, or None where unknown."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def reset_peak_memory() -> bool:
    """Start the peak anew; returns whether the kernel allowed it. Costs about 0.3 ms."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _environ(pid: int) -> bytes:
    """Return the environment of a process; nothing when it has ended or is another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _carries(environ: bytes, mark: bytes) -> bool:
    return any(entry == mark or entry.startswith(mark + b".") for entry in environ.split(b"\0"))


def _all_pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208


def marked_processes(token: str) -> list[int]:
    """Return the pids of all other processes whose environment carries ``token`` or an extension of it."""
    mark = f"{TOKEN}={token}".encode()
    return sorted(pid for pid in _all_pids() - {os.getpid()} if _carries(_environ(pid), mark))


def kill_marked(token: str, timeout: float = 2.0) -> None:
    """Kill every process that carries ``token``; for what a lost keeper left behind.

    Resource trackers are left to end by themselves: they still have to unlink what was left.
    """
    deadline = _clock.monotonic() + timeout
    while _clock.monotonic() < deadline:
        roots = _stop_marked(f"{TOKEN}={token}".encode(), deadline)
        if not roots:
            return
        kill_trees(roots, deadline - _clock.monotonic())
        for pidfd in roots.values():
            os.close(pidfd)


def _stop_marked(mark: bytes, deadline: float) -> dict[int, int]:
    """Stop every marked process and return their pidfds by pid.

    After the first look only new pids are read, so that one look is shorter than a generation of a
    process that forks and exits all the time. A new process that ended before it was read may have been
    one of those, with a child by now, so such a look does not count as quiet.
    """
    roots: dict[int, int] = {}
    before = {os.getpid()}
    quiet = 0
    while quiet < 3 and _clock.monotonic() < deadline:
        there = _all_pids()
        fresh, before = there - before - {os.getpid()}, there
        found, missed = len(roots), False
        for pid in sorted(fresh, reverse=True):
            environ = _environ(pid)
            missed = missed or not environ
            if not _carries(environ, mark):
                continue
            with suppress(OSError):
                pidfd = os.pidfd_open(pid)
                if b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.close(pidfd)
                    continue
                send_signal(pidfd, signal.SIGSTOP)
                roots[pid] = pidfd
        quiet = quiet + 1 if len(roots) == found and not missed else 0
    return roots


# -- who a process is, for whoever finds its name later


def start_ticks(pid: int) -> int:
    """Return when ``pid`` started, in the kernel's ticks since boot; 0 when there is no such process.

    Unlike a time of day it does not move with the clock, so with the boot's id it tells a process from a later
    one of that number.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(text[text.rindex(b")") + 2 :].split()[19])


def boot_id() -> str:
    """Return the id of this boot of the machine, or ""."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def pid_namespace() -> int:
    """Return the inode of this process's pid namespace, or 0."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0
