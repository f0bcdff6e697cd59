"""One worker as the pool sees it: its channel, what it was sent, the calls it holds."""

from __future__ import annotations

import os
import socket
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from canobatch import wire, worker
from canobatch.effects import Placed
from canobatch.errors import PayloadError, StoreError
from canobatch.segments import crossing
from canobatch.status import StatusPage

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from canobatch.effects import Data
    from canobatch.pool._lane import Lane
    from canobatch.pool.backend import Call, Header
    from canobatch.segments import Grant, Segment, Segments

#: Why a worker gets no more calls: it is being killed for a reason of ours, or it died.
CUT, TIMEOUT, MEMORY, DIED = "cut", "timeout", "memory", "died"


class WorkerHandle:
    """All methods expect the pool's lock to be held, but for receiving, which only the supervisor does."""

    def __init__(self, number: int, *, is_spare: bool = False) -> None:
        #: The keeper knows the worker by this, from before it has a pid.
        self.number = number
        self.is_spare = is_spare
        self.sock, other = socket.socketpair()
        self.sock.setblocking(False)
        self.page, status = StatusPage.create()
        self._child_ends = [other.detach(), status]
        self.inbox = wire.Inbox(takes_descriptors=True)
        self.outbox = wire.Outbox()
        self.pid = 0
        self.pidfd = -1
        self.slot: int | None = None
        self.is_ready = False
        self.is_leaving = False
        self.doom: str | None = None
        self.lane: Lane | None = None
        #: Calls sent and not answered, oldest first, with their numbers.
        self.window: deque[tuple[int, Call]] = deque()
        self.calls_sent = 0
        self.calls_done = 0
        #: Numbers of calls that were taken back: from, up to and not including.
        self._withheld: tuple[int, int] | None = None
        self._has: set[int] = set()
        #: What the call that runs may write to shared memory, by number.
        self.grants: dict[int, tuple[Segments, Grant]] = {}
        self._last_grant = 0

    def take_child_ends(self) -> list[int]:
        """Return the descriptors meant for the worker; they are the caller's now."""
        ends, self._child_ends = self._child_ends, []
        return ends

    def send(self, parts: list[bytes]) -> bool:
        """Send a frame; returns whether it is all out."""
        return self.outbox.send(self.sock, parts)

    def send_calls(self, header: Header, calls: list[Call], blobs: dict[int, tuple[int, Data]]) -> bool:
        """Send calls with whatever they need that this worker has not got; returns whether all is out."""
        for name in (*header.needs, header.run, header.definition, *header.snapshot, header.splits):
            if name and name not in self._has:
                self._has.add(name)
                self.send(worker.define(name, *blobs[name]))
        packed = []
        for call in calls:
            self.calls_sent += 1
            self.window.append((self.calls_sent, call))
            packed.append((self.calls_sent, call.branch, call.attempt, crossing(call.item), call.timeout))
        return self.send(wire.frame(wire.CALLS, (*header, packed)))

    def forget(self, names: set[int]) -> bool:
        """Let the worker drop what it was sent under these numbers."""
        known = self._has & names
        self._has -= known
        return not known or self.send(wire.frame(wire.FORGET, tuple(known)))

    def grant(self, segments: Segments | None, size: int, spare_descriptors: bool) -> bool:
        """Answer a worker that wants to write ``size`` bytes to shared memory; returns whether it is all out."""
        self._last_grant += 1
        answer: Any = "the pool has stopped this call"
        try:
            if segments is not None:
                grant = segments.grant(size, spare_descriptors=spare_descriptors)
                self.grants[self._last_grant] = segments, grant
                answer = grant.ticket
        except StoreError as error:
            answer = str(error)
        return self.send(wire.frame(wire.GRANTED, (self._last_grant, answer)))

    def adopt(self, written: Iterable[tuple[int, bytes, bool]]) -> dict[int, Segment]:
        """Become the owner of what a call wrote; give up what it did not use.

        Raises:
            PayloadError: A descriptor was lost on the way, this process having none left.
        """
        adopted: dict[int, Segment] = {}
        try:
            for number, uid, has_descriptor in written:
                if has_descriptor and (self.inbox.has_lost_descriptors or not self.inbox.descriptors):
                    self.is_leaving = True
                    raise PayloadError("a large result was lost, because this process has no descriptor left")
                segments, grant = self.grants.pop(number)
                fd = self.inbox.descriptors.popleft() if has_descriptor else -1
                adopted[number] = segments.adopt(grant, uid, fd)
        finally:
            self._cancel_grants()
        return adopted

    def _cancel_grants(self) -> None:
        for _, grant in self.grants.values():
            grant.cancel()
        self.grants.clear()

    def running(self) -> tuple[int, float]:
        """Return the number of the call that runs and when it began; (0, 0.0) when none does."""
        return self.page.running()

    def finish(self, number: int) -> Call | None:
        """Take the call with this number out of the window; None if it is not there any more."""
        self.calls_done += 1
        window = self.window
        if window and window[0][0] == number:
            return window.popleft()[1]
        for entry in window:
            if entry[0] == number:
                window.remove(entry)
                return entry[1]
        return None

    def withhold(self) -> list[Call]:
        """Take back the calls behind the one that runs.

        One that begins at this very instant may run twice; the pool takes one of its outcomes, and lets the
        worker alone until it is through with it, see `is_astray`.
        """
        if len(self.window) < 2:
            return []
        first = max(self.running()[0], self.window[0][0]) + 1
        self._withheld = (first, self.calls_sent + 1)
        self.page.withhold(*self._withheld)
        late: list[Call] = []
        while self.window and self.window[-1][0] >= first:
            late.append(self.window.pop()[1])
        return late[::-1]

    @property
    def is_astray(self) -> bool:
        """Whether it runs a call that was taken back from it."""
        return self._withheld is not None and self._withheld[0] <= self.running()[0] < self._withheld[1]

    @property
    def is_held(self) -> bool:
        """Whether it is kept from other calls, being, or having been, astray."""
        return self.lane is not None and not self.window

    def close(self) -> None:
        """Close everything held for this worker."""
        self._cancel_grants()
        self.inbox.close()
        self.sock.close()
        for fd in self._child_ends:
            os.close(fd)
        self._child_ends = []
        if self.pidfd >= 0:
            with suppress(OSError):
                os.close(self.pidfd)
            self.pidfd = -1
        self.page.close()


def owned(value: Any, segments: dict[int, Segment]) -> Any:
    """Return a payload or operations in which a call named what it wrote by number, with the segments themselves."""
    if not isinstance(value, tuple):
        return value
    if len(value) == 2 and isinstance(value[0], int) and isinstance(value[1], tuple):
        return Placed(segments[value[0]], value[1])
    return tuple(owned(part, segments) for part in value)
