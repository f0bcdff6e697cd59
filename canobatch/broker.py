"""The broker: a thread that answers other processes for what lives in this one; and how they ask.

What it answers for are breakers, limiters, semaphores and counters. They live in the process that made them, as
a rule the launcher, so that a breaker that is consulted there before a call is sent, and the same breaker used
by hand in a worker, are one. The thread starts when the first handle is made. It, its socket, whose name is
in no directory, and all that was held end with the process, so there is nothing to clear up. A ticket belongs
to the process that got it, and returns when the kernel has closed its connections.
"""

from __future__ import annotations

import atexit
import marshal
import os
import pickle
import secrets
import select
import socket
import struct
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from canobatch import _clock
from canobatch.errors import CanobatchError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Callable

#: No request or answer is longer; costs per tier are the longest.
_MOST_BYTES = 1 << 16
#: Requests beside the operations of the objects.
_WAIT, _STOP_WAITING = "wait", "stop waiting"


class Thing(Protocol):
    """What lives here and is asked for from elsewhere; see `canobatch.brokered.Brokered`."""

    @property
    def operations(self) -> frozenset[str]:
        """What it may be asked."""

    def ask(self, operation: str, *args: Any) -> Any:
        """Perform an operation."""

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` when there may be a ticket; returns how to stop that."""


# -- at home


class _Holder:
    """Another process: its connections, and the tickets it holds."""

    def __init__(self) -> None:
        self.links = 0
        self.tickets: dict[tuple[Thing, int], None] = {}


class _Link:
    """A connection from another process."""

    def __init__(self, sock: socket.socket, holder: _Holder) -> None:
        self.sock = sock
        self.holder = holder
        #: What it waits for, and its turn there.
        self.waits_for: Thing | None = None
        self.turn = 0


class Broker:
    """The thread that answers for the brokered objects of this process. Made by `open_broker`."""

    def __init__(self, address: bytes) -> None:
        self.address = address
        self._links: dict[int, _Link] = {}
        self._holders: dict[int, _Holder] = {}
        #: Those that wait for a ticket.
        self._waiting: dict[_Link, None] = {}
        self._watched: dict[Thing, Callable[[], None]] = {}
        self._must_stop = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(address)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._wake_lock = threading.RLock()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._thread = threading.Thread(target=self._serve, name="canobatch-broker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close everything."""
        self._must_stop = True
        self._wake()
        if self._thread is not threading.current_thread():
            self._thread.join(5.0)

    def forget(self) -> None:
        """Close everything; for a forked child, which inherited it."""
        for link in self._links.values():
            link.sock.close()
        self._listener.close()
        self._epoll.close()
        os.close(self._wake_fd)
        self._wake_fd = -1

    def _wake(self) -> None:
        # The lock: the number may be another's descriptor by then.
        with self._wake_lock, suppress(OSError):
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _serve(self) -> None:
        try:
            while not self._must_stop:
                # Who has gone first: what they held may be what the others ask for.
                for fd, _ in sorted(self._epoll.poll(), key=lambda ready: not ready[1] & select.EPOLLHUP):
                    if fd == self._wake_fd:
                        with suppress(BlockingIOError):
                            os.eventfd_read(fd)
                    elif fd == self._listener.fileno():
                        self._welcome()
                    elif fd in self._links:
                        self._hear(self._links[fd])
                self._grant()
        finally:
            for link in list(self._links.values()):
                self._part(link)
            for forget in self._watched.values():
                forget()
            with self._wake_lock:
                self.forget()

    def _welcome(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.getuid():
            sock.close()
            return
        sock.setblocking(False)
        # One of another pid namespace has no number here: then it is known by this connection alone.
        holder = self._holders.setdefault(pid, _Holder()) if pid else _Holder()
        holder.links += 1
        self._links[sock.fileno()] = _Link(sock, holder)
        self._epoll.register(sock, select.EPOLLIN)

    def _hear(self, link: _Link) -> None:
        try:
            data = link.sock.recv(_MOST_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._part(link)
            return
        try:
            number, operation, args = marshal.loads(data)  # noqa: S302 - from a process of the same user
        except (EOFError, TypeError, ValueError):
            # Not one of ours.
            self._part(link)
            return
        thing = known.get(number)
        if thing is None:
            self._answer(link, ResourceError("what was asked for does not exist any more in its own process"))
        elif operation == _WAIT:
            if thing not in self._watched:
                self._watched[thing] = thing.watch(self._wake)
            link.waits_for, link.turn = thing, thing.ask("stand_in_line", 0)
            self._waiting[link] = None
        elif operation == _STOP_WAITING:
            if link in self._waiting:
                self._leave_line(link)
                self._answer(link, None)
        elif operation in thing.operations:
            self._perform(link, thing, operation, args)

    def _perform(self, link: _Link, thing: Thing, operation: str, args: tuple[Any, ...] = ()) -> None:
        try:
            answer = thing.ask(operation, *args)
        except CanobatchError as error:
            answer = error
        if operation == "admit" and isinstance(answer, int):
            link.holder.tickets[thing, answer] = None
        elif operation == "give_back":
            link.holder.tickets.pop((thing, args[0]), None)
        self._answer(link, answer)

    def _grant(self) -> None:
        """Give those that wait what there is now."""
        for link in list(self._waiting):
            thing = link.waits_for
            assert thing is not None
            ticket = thing.ask("admit", link.turn)
            if ticket is not None:
                del self._waiting[link]
                link.holder.tickets[thing, ticket] = None
                self._answer(link, ticket)

    def _leave_line(self, link: _Link) -> None:
        del self._waiting[link]
        assert link.waits_for is not None
        link.waits_for.ask("leave_line", link.turn)

    def _answer(self, link: _Link, answer: Any) -> None:
        message = (False, pickle.dumps(answer)) if isinstance(answer, CanobatchError) else (True, answer)
        try:
            link.sock.send(marshal.dumps(message))
        except OSError:
            # It has gone, or asks without listening.
            self._part(link)

    def _part(self, link: _Link) -> None:
        """A connection has ended; with the last of a process, what it held returns."""
        if self._links.pop(link.sock.fileno(), None) is None:
            return
        if link in self._waiting:
            self._leave_line(link)
        with suppress(OSError):
            self._epoll.unregister(link.sock)
        link.sock.close()
        holder = link.holder
        holder.links -= 1
        if holder.links == 0:
            self._holders = {pid: other for pid, other in self._holders.items() if other is not holder}
            for thing, ticket in holder.tickets:
                thing.ask("give_back", ticket, None)


# -- elsewhere


class Links:
    """Connections to the homes of what lives elsewhere: one for each thread that asks at the same time.

    They stay open as long as this process lives: the last one that closes gives back all tickets.
    """

    def __init__(self) -> None:
        self._idle: dict[bytes, list[socket.socket]] = {}
        self._all: set[socket.socket] = set()

    def ask(self, home: tuple[bytes, int], operation: str, args: tuple[Any, ...]) -> Any:
        """Have an operation performed and return its answer."""
        link = self._take(home[0])
        try:
            link.send(marshal.dumps((home[1], operation, args)))
            answer = self._hear(link)
        except BaseException as error:
            # An answer that nobody waited for must not be taken for the next.
            self._drop(link)
            if isinstance(error, OSError):
                raise _gone(error) from error
            raise
        self._idle[home[0]].append(link)
        return _opened(answer)

    def wait(self, home: tuple[bytes, int], deadline: float | None) -> int | None:
        """Wait for a ticket; None when the deadline has passed."""
        link = self._take(home[0])
        try:
            link.send(marshal.dumps((home[1], _WAIT, ())))
            try:
                link.settimeout(None if deadline is None else max(1e-6, _clock.time_left(deadline)))
                answer = self._hear(link)
            except TimeoutError:
                # What comes now is either None, or a ticket that was on its way: the last moment counts.
                link.settimeout(None)
                link.send(marshal.dumps((home[1], _STOP_WAITING, ())))
                answer = self._hear(link)
            link.settimeout(None)
        except BaseException as error:
            self._drop(link)
            if isinstance(error, OSError):
                raise _gone(error) from error
            raise
        self._idle[home[0]].append(link)
        ticket: int | None = _opened(answer)
        return ticket

    def close(self) -> None:
        """Close all; in a forked child they would keep the parent's tickets from returning."""
        for link in self._all:
            link.close()
        self._all.clear()
        self._idle.clear()

    def _take(self, address: bytes) -> socket.socket:
        idle = self._idle.setdefault(address, [])
        with suppress(IndexError):
            return idle.pop()
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            link.connect(address)
        except OSError as error:
            link.close()
            raise _gone(error) from error
        self._all.add(link)
        return link

    def _hear(self, link: socket.socket) -> Any:
        data = link.recv(_MOST_BYTES)
        if not data:
            raise ConnectionResetError("the connection was closed")
        return marshal.loads(data)  # noqa: S302 - from a process of the same user

    def _drop(self, link: socket.socket) -> None:
        self._all.discard(link)
        link.close()


def _opened(answer: tuple[bool, Any]) -> Any:
    is_good, content = answer
    if is_good:
        return content
    raise pickle.loads(content)  # noqa: S301 - our own errors, from a process of the same user


def _gone(error: OSError) -> ResourceError:
    return ResourceError(
        f"the process that made this breaker, limiter, semaphore or counter cannot be reached ({error}): it has "
        "ended or closed its pools; make it in the process that starts the run"
    )


# -- this process


class _State:
    """What there is one of in each process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.broker: Broker | None = None
        #: The same for as long as this process lives: handles outlast a broker.
        self.address = b""
        #: Pools whose workers may ask.
        self.users = 0


_state = _State()
links = Links()
#: What has a handle, by number.
known: weakref.WeakValueDictionary[int, Thing] = weakref.WeakValueDictionary()


def open_broker() -> Broker:
    """Return this process's broker, started when first asked for."""
    with _state.lock:
        return _open()


def _open() -> Broker:
    if _state.broker is None:
        _state.address = _state.address or b"\0canobatch-" + secrets.token_hex(16).encode()
        _state.broker = Broker(_state.address)
    return _state.broker


def retain_broker() -> None:
    """Keep the broker, if there is anything to ask for, until `release_broker` is called as often."""
    with _state.lock:
        _state.users += 1
        if known:
            _open()


def release_broker() -> None:
    """With the last pool of this process that could ask, the broker ends; the next handle starts another."""
    with _state.lock:
        _state.users = max(0, _state.users - 1)
        broker = None
        if _state.users == 0:
            broker, _state.broker = _state.broker, None
        if broker is not None:
            broker.stop()


def find(address: bytes, number: int) -> Thing | None:
    """Return what lives here under this handle, or None."""
    return known.get(number) if address == _state.address else None


def _start_anew() -> None:
    """In a forked child: what was at home stays there, and its copies here are at home here."""
    global _state
    broker, _state = _state.broker, _State()
    with suppress(Exception):
        links.close()
        if broker is not None:
            broker.forget()


os.register_at_fork(after_in_child=_start_anew)
atexit.register(links.close)
