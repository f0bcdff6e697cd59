"""``serve``: a scheduler in the foreground, until a signal."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from canobatch import _signals
from canobatch.cli import exits, text
from canobatch.cli.command import command, home_option, is_verbose, target_argument
from canobatch.cli.place import home_of
from canobatch.cli.streams import data_stream
from canobatch.cli.types import DURATION
from canobatch.errors import CanobatchError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from canobatch.observe import Event
    from canobatch.scheduler import FlowRecord, RunningScheduler

_log = logging.getLogger("canobatch.serve")

#: A reload would have to change flows under runs that go on.
_NO_RELOAD = "a reload is not possible while flows run; restart instead: another serve may take over meanwhile"


@command(
    "serve",
    epilog="""
    canobatch serve flows.py
    canobatch serve flows.py:make_scheduler --drain 2m
    canobatch serve flows.py --log-format json 2>> flows.log
    """,
)
@target_argument
@click.option(
    "--drain", type=DURATION, default="30", help="How long what runs may take after a signal. Default: 30 (seconds)."
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Of stderr.")
@home_option
@click.pass_context
def serve_command(ctx: click.Context, target: str, drain: float, log_format: str) -> None:
    """Run the scheduler TARGET until SIGTERM or Ctrl-C.

    Then no run begins any more; what runs may come to its end, is cancelled and rolled back shortly before the time
    for it is over, and killed after. A second signal ends everything at once. Any number of these may serve the same
    flows in the same home: each tick runs once. Tells systemd when it is ready, and by its watchdog that it lives.
    """
    from canobatch.cli.home import Home  # noqa: PLC0415 - not to show a help
    from canobatch.cli.target import load_target, scheduler_kind  # noqa: PLC0415

    _log_to_stderr(log_format)
    with data_stream():
        scheduler = load_target(target, scheduler_kind())
        home = Home(home_of(ctx))
        scheduler.with_home(home.directory).with_observer(_FlowLog())
        for workflow in {id(spec.workflow): spec.workflow for spec in scheduler.specs}.values():
            if workflow.journal is None:
                workflow.with_journal(home.journal)
        told: queue.SimpleQueue[int] = queue.SimpleQueue()
        with (
            _signals.signals_told([signal.SIGHUP], lambda _: _log.warning(_NO_RELOAD), times=sys.maxsize),
            # Before anything runs: who is told that we are ready may stop us at once.
            _signals.signals_told([signal.SIGTERM, signal.SIGINT], told.put),
        ):
            running = scheduler.start()
            notify(f"READY=1\nSTATUS={text.plural(len(scheduler), 'flow')}")
            _log.info("serving %s from %s in %s", text.plural(len(scheduler), "flow"), target, scheduler.home)
            with _watchdog(running):
                number = _await_signal(running, told)
                notify("STOPPING=1")
                if number is not None:
                    _log.info("stopping at %s; a second signal ends everything", signal.Signals(number).name)
                    running.stop(drain)
        _log.info("stopped")
    if number is not None:
        ctx.exit(exits.code_of_signal(number))


def _await_signal(running: RunningScheduler, told: queue.SimpleQueue[int]) -> int | None:
    """Return the signal that ends it, or None if something else has."""
    while not running.is_stopped:
        with suppress(queue.Empty):
            return told.get(timeout=1.0)
    return None


@contextmanager
def _watchdog(running: RunningScheduler) -> Iterator[None]:
    """Tell systemd that the scheduler lives, twice as often as asked; of one that does not answer nothing is told."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdigit() or not int(microseconds) or pid != str(os.getpid()):
        yield
        return
    over = threading.Event()

    def tell() -> None:
        while not over.wait(int(microseconds) / 2e6):
            # It answers; that its home cannot be read at the moment is no reason to start it anew.
            with suppress(CanobatchError):
                running.list()
            notify("WATCHDOG=1")

    # Not joined: it may be waiting for a scheduler that hangs.
    threading.Thread(target=tell, name="canobatch-watchdog", daemon=True).start()
    try:
        yield
    finally:
        over.set()


class _FlowLog:
    """An observer that logs what happens to flows."""

    def __init__(self) -> None:
        self._begun: dict[str, datetime] = {}

    def on_event(self, event: Event) -> None:
        """Take one event."""
        record: Any = event.detail
        if event.kind == "flow_fired":
            self._begun[record.run_id] = event.time
            _log.info("flow %s: run %s begins", record.flow, record.run_id)
        elif event.kind == "flow_skipped":
            _log.warning("flow %s: skipped: %s", record.flow, record.reason)
        elif event.kind == "flow_ended":
            self._log_end(event, record)

    def _log_end(self, event: Event, record: FlowRecord) -> None:
        from canobatch.definition import label  # noqa: PLC0415 - not to show a help
        from canobatch.observe.log import level_of  # noqa: PLC0415

        begun = self._begun.pop(record.run_id or "", None)
        took = "" if begun is None else f" after {text.duration((event.time - begun).total_seconds())}"
        how = f"completed in {label(record.state)}" if record.kind == "finished" else record.kind
        because = f": {text.one_line(record.reason, 300)}" if record.reason else ""
        _log.log(level_of(event), "flow %s: run %s %s%s%s", record.flow, record.run_id, how, took, because)


class _Lines(logging.Formatter):
    """Without the tracebacks of errors that say themselves what to do; those are for ``-v``."""

    def __init__(self, *, is_verbose: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._is_verbose = is_verbose

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return the error, in a line if it is one of ours."""
        error = ei[1]
        is_short = isinstance(error, CanobatchError) and not self._is_verbose
        return f"{type(error).__name__}: {error}" if is_short else super().formatException(ei)


class _JsonLines(_Lines):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        import json  # noqa: PLC0415 - only where it is asked for

        from canobatch import _clock  # noqa: PLC0415

        facts = {
            "time": _clock.as_utc(record.created).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            facts["error"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False)


def _log_to_stderr(log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    lines = _JsonLines if log_format == "json" else _Lines
    handler.setFormatter(lines(is_verbose=is_verbose()))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def notify(state: str) -> None:
    """Tell systemd, where it asked for that."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.sendall(state.encode())
