"""Log records on their way from a worker to the launcher: plain data, few enough, and never in the way.

A worker has the launcher's levels and one handler on its root logger, where the launcher has any handler at all;
where not, a worker's records go where they would have gone anyway.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from canobatch import _clock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Records a second that one worker may send, and how many at once after a quiet time.
RATE, BURST = 500.0, 1000
#: Characters of a message, and of a traceback, that are sent.
_MOST_TEXT, _MOST_TRACE = 8_000, 16_000
#: Things given as ``extra`` that are sent with a record.
_MOST_EXTRAS = 20

#: What decides which records are made: `logging.disable`, the root's level, the levels of other loggers.
Levels = tuple[int, int, dict[str, int]]

_PLAIN = (bool, int, float, str)
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


# -- in the launcher


def levels() -> Levels | None:
    """Return the levels of this process's loggers; None where nothing takes what they log."""
    root = logging.getLogger()
    known = [(name, one) for name, one in list(root.manager.loggerDict.items()) if isinstance(one, logging.Logger)]
    if not _is_heard(root) and not any(_is_heard(logger) for _, logger in known):
        return None
    return root.manager.disable, root.level, {name: one.level for name, one in known if one.level}


def _is_heard(logger: logging.Logger) -> bool:
    return any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers)


def relay(packed: Mapping[str, Any], **facts: Any) -> None:
    """Log a record that a worker made, with ``facts`` as further attributes, as if it had been made here."""
    created = packed["created"]
    times = {"msecs": created % 1 * 1000, "relativeCreated": (created - _BEGAN) * 1000}
    record = logging.makeLogRecord({**packed, **times, "args": None, **facts})
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        with suppress(Exception):  # a handler's or filter's own affair
            logger.handle(record)


_BEGAN = _clock.epoch()


# -- in a worker


class Forwarder(logging.Handler):
    """Sends what is logged in a worker, with the attempt that logged it.

    Args:
        try_send: Sends plain data if that does not block; returns whether it did.
        send: Sends it.
    """

    def __init__(self, try_send: Callable[[Any], bool], send: Callable[[Any], None]) -> None:
        super().__init__()
        #: Branch and attempt of the call that runs.
        self.attempt: tuple[int | None, int] | None = None
        self._try_send = try_send
        self._send = send
        self._pid = os.getpid()
        self._given: Levels | None = None
        #: Loggers whose level is the launcher's, with their own.
        self._before: dict[str | None, int] = {}
        self._allowed = float(BURST)
        self._counted_at = _clock.monotonic()
        self._dropped = 0

    def adopt(self, given: Levels | None) -> None:
        """Log what the launcher would; None: leave logging alone."""
        if given == self._given:
            return
        self._given = given
        for name, level in self._before.items():
            logging.getLogger(name).setLevel(level)
        self._before.clear()
        root = logging.getLogger()
        if given is None:
            if self in root.handlers:
                root.removeHandler(self)
                logging.disable(logging.NOTSET)
            return
        disabled, level, others = given
        logging.disable(disabled)
        for name, wanted in [(None, level), *others.items()]:
            logger = logging.getLogger(name)
            self._before[name] = logger.level
            logger.setLevel(wanted)
        if self not in root.handlers:
            root.addHandler(self)

    def end(self) -> None:
        """The call is over: say how much was dropped."""
        if self._dropped and self.attempt is not None:
            text = f"{self._dropped} log records of this attempt were dropped: more than {RATE:g} a second"
            note = logging.LogRecord("canobatch", logging.WARNING, __file__, 0, text, None, None)
            self._dropped = 0
            self._send((*self.attempt, self._packed(note)))
        self.attempt = None

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, or count it as dropped."""
        if self.attempt is None or os.getpid() != self._pid:
            # Between calls; or a process that the task forked, and the channel is not its own.
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
            return
        try:
            if not self._is_allowed() or not self._try_send((*self.attempt, self._packed(record))):
                self._dropped += 1
        except Exception:  # noqa: BLE001 - what logging does about a record that cannot be formatted
            self.handleError(record)

    def _is_allowed(self) -> bool:
        now = _clock.monotonic()
        self._allowed = min(float(BURST), self._allowed + (now - self._counted_at) * RATE)
        self._counted_at = now
        if self._allowed < 1.0:
            return False
        self._allowed -= 1.0
        return True

    def _packed(self, record: logging.LogRecord) -> dict[str, Any]:
        trace = record.exc_text
        if record.exc_info and not trace:
            trace = _FORMATTER.formatException(record.exc_info)
        facts: dict[str, Any] = {
            "name": _cut(record.name, 1000),
            "levelno": int(record.levelno),
            "levelname": _cut(record.levelname, 100),
            "msg": _cut(record.getMessage(), _MOST_TEXT),
            "created": float(record.created),
            "pathname": _cut(record.pathname, 1000),
            "filename": _cut(record.filename, 1000),
            "module": _cut(record.module, 1000),
            "lineno": int(record.lineno),
            "funcName": _cut(record.funcName or "", 1000),
            "process": self._pid,
            "processName": _cut(record.processName or "", 100),
            "threadName": _cut(record.threadName or "", 100),
            "exc_text": None if not trace else _cut(trace, _MOST_TRACE),
            "stack_info": None if not record.stack_info else _cut(record.stack_info, _MOST_TRACE),
        }
        extras = [(name, value) for name, value in vars(record).items() if name not in _OWN and type(value) in _PLAIN]
        facts |= {name: _cut(value, 1000) if type(value) is str else value for name, value in extras[:_MOST_EXTRAS]}
        return facts


_FORMATTER = logging.Formatter()


def _cut(text: Any, most: int) -> str:
    """Return a plain string of at most so many characters and some more."""
    plain = "".join(["", str(text)])
    return plain if len(plain) <= most else f"{plain[:most]} [and {len(plain) - most} characters more]"
