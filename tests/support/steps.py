"""The steps of a segment's life, in a worker and in the launcher, and how to stop at one of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from canobatch import Retry, Task, TaskConfig, segments, status, wire, worker, worker_channel
from canobatch.store.base import IndexedStore
from tests.support.branches import FOREVER, await_marks, mark

#: Elements of each array: 1.6 MB.
SIZE = 200_000

Act = Callable[[], object]


def _before(owner: Any, name: str, act: Act) -> None:
    real = getattr(owner, name)

    def stopped(*args: Any, **options: Any) -> Any:
        act()
        return real(*args, **options)

    setattr(owner, name, stopped)


def _after(owner: Any, name: str, act: Act) -> None:
    real = getattr(owner, name)

    def stopped(*args: Any, **options: Any) -> Any:
        result = real(*args, **options)
        act()
        return result

    setattr(owner, name, stopped)


def _half_written(act: Act) -> None:
    real = segments._write

    def write(fd: int, offset: int, pieces: Any) -> None:
        parts = list(pieces)
        large = max(parts, key=len)
        before = parts[: parts.index(large)]
        real(fd, offset, iter([*before, large[: len(large) // 2]]))
        act()
        real(fd, offset, iter(parts))

    segments._write = write


def _sending(kind: int, share: float) -> Callable[[Act], None]:
    """Stop when a share of the bytes of a frame of this kind has been sent."""

    def arm(act: Act) -> None:
        real = wire.send_blocking

        def send(sock: Any, parts: list[bytes]) -> None:
            if parts[0][0] != kind:
                real(sock, parts)
                return
            data = b"".join(parts)
            count = int(len(data) * share)
            real(sock, [data[:count]])
            act()
            real(sock, [data[count:]])

        wire.send_blocking = send

    return arm


#: Of a worker, in the order in which they come.
WORKER: dict[str, Callable[[Act], None]] = {
    "asked for room": _sending(wire.WANTED, 1.0),
    "may write": lambda act: _before(worker_channel, "fill", act),
    "half written": _half_written,
    "written": lambda act: _after(worker_channel, "fill", act),
    "task is through": lambda act: _before(worker.Worker, "_finish", act),
    "descriptors sent": lambda act: _after(worker_channel.Scribe, "hand_over", act),
    "outcome half sent": _sending(wire.OUTCOME, 0.5),
    "outcome sent": lambda act: _before(status.StatusPage, "clear", act),
}

#: Of the launcher.
LAUNCHER: dict[str, Callable[[Act], None]] = {
    "put half written": _half_written,
    "room granted": lambda act: _after(segments.Segments, "grant", act),
    "taken over": lambda act: _after(segments.Segments, "adopt", act),
    "before the commit": lambda act: _before(IndexedStore, "commit", act),
    "after the commit": lambda act: _after(IndexedStore, "commit", act),
    "before a drop": lambda act: _before(segments.Segment, "__del__", act),
    "after a drop": lambda act: _after(segments.Segment, "__del__", act),
}


def die() -> None:
    """End at once."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Hang:
    """Says that the step has come, and stays there."""

    place: str

    def __call__(self) -> None:
        mark(self.place, "there")
        time.sleep(FOREVER)


@dataclass
class Write(Task):
    """Reads, writes and returns large arrays; its first attempt stops at a step."""

    step: str
    act: Act
    config: TaskConfig = field(default_factory=lambda: TaskConfig(retry=Retry.fixed(1, 0.0)))

    def run(self, ctx: Any) -> Any:
        assert ctx.store.get("read").sum() == SIZE
        if ctx.attempt == 1 and self.step in WORKER:
            WORKER[self.step](self.act)
        ctx.store.put("written", np.full(SIZE, 2.0))
        ctx.store.put("unused", np.full(SIZE, 3.0))
        ctx.store.remove("unused")
        return np.full(SIZE, 4.0)


@dataclass
class Win(Task):
    """Ends once the others are where they should be."""

    places: list[str]

    def run(self) -> str:
        for place in self.places:
            await_marks(place, "there")
        return "won"


def write_at_random(ctx: Any, item: Any) -> Any:
    """Write and return arrays of many sizes."""
    for number in range(3):
        ctx.store.put(f"{ctx.branch}-{number}", np.full(SIZE * (1 + number), ctx.branch))
    ctx.store.append("all", np.full(SIZE, ctx.branch))
    return item * 2
