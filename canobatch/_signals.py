"""Signals of this process: told to whoever minds them, for as long as that lasts."""

from __future__ import annotations

import os
import select
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


@contextmanager
def signals_told(numbers: Iterable[int], tell: Callable[[int], None], *, times: int = 1) -> Iterator[None]:
    """Tell of the first ``times`` of these signals instead of ending; the next one ends the process as ever.

    Only in the main thread, whose signals they are. What was ignored before stays ignored.
    """
    caught: list[int] = []

    def handle(number: int, _: object) -> None:
        caught.append(number)
        if len(caught) >= times:
            # Whatever this thread does then: the next one is the kernel's.
            for each in numbers:
                signal.signal(each, signal.SIG_DFL)
        tell(number)

    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: it was installed from C, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class SignalWait:
    """Made by `signals_awaited`."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer, self._is_woken = reader, writer, False
        self.caught: list[int] = []

    def wait(self) -> int | None:
        """Return the first signal once there is one, or None when woken."""
        while not (self.caught or self._is_woken):
            select.select([self._reader], [], [])
            os.read(self._reader, 64)
        return self.caught[0] if self.caught else None

    def wake(self) -> None:
        """Let `wait` return; from any thread."""
        self._is_woken = True
        with suppress(BlockingIOError):
            os.write(self._writer, b"!")


@contextmanager
def signals_awaited(numbers: Iterable[int]) -> Iterator[SignalWait]:
    """Give what waits for the first of these signals; the next one ends the process. Only in the main thread.

    Who waits for a lock can sleep through a signal that comes just before the wait; who waits for a byte cannot.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        wait = SignalWait(reader, writer)
        with signals_told(numbers, wait.caught.append):
            yield wait
    finally:
        signal.set_wakeup_fd(before)
        for fd in (reader, writer):
            os.close(fd)
