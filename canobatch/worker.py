"""What runs inside a worker: take a call, run the task against a view, send the outcome.

Calls are served one at a time by the main thread. An outcome is sent before the next call begins, and
after what the task left running is dead, so whatever the pool accepts has no process behind it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import socket
import struct
import sys
import threading
import types
import warnings
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from canobatch import _clock, _procs, wire
from canobatch.definition import label
from canobatch.effects import Placed, describe_error, dumps, loads, main_functions, pack, record_error
from canobatch.errors import PayloadError, StoreFullError, WorkflowError
from canobatch.logs import Forwarder
from canobatch.packing import register_mains
from canobatch.segments import arrived, crossing
from canobatch.snapshot import Layers, ReceivedLayer
from canobatch.status import StatusPage
from canobatch.task import TaskContext, bound_call, entry_point
from canobatch.view import StoreView
from canobatch.worker_channel import Channel, Scribe, by_number
from canobatch.worker_resources import WorkerResources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from canobatch.effects import Data
    from canobatch.logs import Levels
    from canobatch.worker_output import Capture

#: Kinds of what is sent once per worker and named by number afterwards.
TASKS, RUN, MAINS, LAYER, SPLITS, PLACE, RESOURCES = range(7)
#: Added to a kind: what is sent says where the bytes lie.
_ELSEWHERE = 0x80

#: How a call ended, and what the pool should do with the worker.
OK, ERROR = 0, 1
STAY, RETIRE = 0, 1

_BLOB = struct.Struct("<QB")
#: Calls shorter than this many seconds get no memory figure: reading it costs 0.3 ms.
_WORTH_MEASURING = 0.01
_PROGRESS_EVERY = 0.05


class TaskSet(NamedTuple):
    """What a worker must know to run the calls of one state."""

    workflow: str
    state: Any
    #: One task per branch, or with ``is_map`` one function for all items.
    tasks: list[Any]
    is_map: bool
    #: The names of the functions of the launcher's ``__main__``.
    main_functions: list[str]


def define(name: int, kind: int, data: Data) -> list[bytes]:
    """Return the parts of the frame that gives a worker ``data`` under the number ``name``."""
    if isinstance(data, Placed):
        kind, data = kind | _ELSEWHERE, wire.pack_body(crossing(data))
    assert isinstance(data, bytes)
    header = wire.frame_header(wire.DEFINE, _BLOB.size + len(data))
    return [header + _BLOB.pack(name, kind), data]


class _Loaded:
    """A task set, ready to be called."""

    def __init__(self, data: Data) -> None:
        try:
            self.tasks = TaskSet(*loads(data))
        except Exception as error:
            raise PayloadError(
                f"the task cannot be unpacked in a worker: {describe_error(error)}; is its module importable there?"
            ) from error
        main_functions.update(self.tasks.main_functions)
        accepted = (2,) if self.tasks.is_map else (1, 0)
        self.calls: list[Callable[..., Any]] = [bound_call(entry_point(task), accepted) for task in self.tasks.tasks]
        self.logger = logging.getLogger(f"canobatch.{self.tasks.workflow}")


class Worker:
    """One worker's state: its channel, what it was sent, and the call it runs."""

    def __init__(self, channel: socket.socket, status: StatusPage) -> None:
        self._channel = Channel(channel)
        self._scribe = Scribe(self._channel)
        self._status = status
        self._pid = os.getpid()
        self._blobs: dict[int, tuple[int, Data]] = {}
        self._opened: dict[int, Any] = {}
        self._version: tuple[tuple[int, ...], Layers] = ((), Layers(()))
        self._place = 0
        self._logs = Forwarder(partial(self._channel.try_send, wire.LOG), partial(self._channel.send, wire.LOG))
        #: Made when output is to be caught for the first time.
        self._output: Capture | None = None
        self._threads = 1
        #: Of the workflow whose call runs, and of all.
        self._resources = self._no_resources = WorkerResources(dumps({}))
        self._equipment: list[WorkerResources] = []
        self._peak_is_own = True
        self._children_cpu = _procs.children_cpu()

    def serve(self) -> None:
        """Serve frames until told to exit or the pool is gone; then tear down what tasks were given."""
        try:
            self._serve_frames()
        finally:
            for resources in reversed(self._equipment):
                resources.close()

    def _serve_frames(self) -> None:
        while (frame := self._channel.receive()) is not None:
            kind, body = frame
            if kind == wire.CALLS:
                self._serve_calls(*wire.open_body(body))
            elif kind == wire.DEFINE:
                self._define(body)
            elif kind == wire.FORGET:
                self._version = ((), Layers(()))
                for name in wire.open_body(body):
                    self._blobs.pop(name, None)
                    self._drop(self._opened.pop(name, None))
            elif kind == wire.SETUP:
                if not self._set_up(body):
                    return
            elif kind == wire.EXIT:
                return

    def _set_up(self, body: bytes | bytearray) -> bool:
        """Run the pool's initializer, if it has one, and say that this worker is ready."""
        try:
            if body:
                loads(body)()
        except BaseException as error:  # noqa: BLE001 - the pool reports it, whatever it is
            self._channel.send(wire.BROKEN, tuple(record_error(error)))
            return False
        self._threads = threading.active_count()
        self._channel.send(wire.READY, self._pid)
        return True

    # -- what was sent

    def _define(self, body: bytes | bytearray) -> None:
        name, kind = _BLOB.unpack_from(body)
        data = bytes(memoryview(body)[_BLOB.size :])
        is_elsewhere = kind & _ELSEWHERE
        self._blobs[name] = (kind & ~_ELSEWHERE, arrived(wire.open_body(data)) if is_elsewhere else data)

    def _open(self, name: int) -> Any:
        if name not in self._opened:
            kind, data = self._blobs[name]
            opened = self._opened[name] = _OPENERS[kind](data)
            self._blobs[name] = (kind, b"")
            if isinstance(opened, WorkerResources):
                opened.last_words = self._say_last
                self._equipment.append(opened)
        return self._opened[name]

    def _drop(self, opened: Any) -> None:
        if isinstance(opened, WorkerResources):
            # Not by equality: a mapping's looks at what is in it.
            self._equipment = [each for each in self._equipment if each is not opened]
            opened.close()

    def _layers(self, names: tuple[int, ...]) -> Layers:
        if names != self._version[0]:
            self._version = (names, Layers([self._open(name) for name in names]))
        return self._version[1]

    def _prepare(self, needs: tuple[int, ...]) -> None:
        """Make definitions and the place of the process what these calls expect."""
        self._resources = self._no_resources
        for name in needs:
            kind, _ = self._blobs[name]
            if kind == MAINS:
                self._open(name)
            elif kind == RESOURCES:
                self._resources = self._open(name)
            elif kind == PLACE and name != self._place:
                self._go_to(*self._open(name))
                self._place = name

    def _go_to(self, path: list[str], cwd: str, levels: Levels | None, output: tuple[str, int, str] | None) -> None:
        """Make search path, directory, logging and output those of the launcher and its run."""
        sys.path[:] = path
        with suppress(OSError):
            os.chdir(cwd)
        self._logs.adopt(levels)
        if output is not None:
            if self._output is None:
                from canobatch.worker_output import Capture  # noqa: PLC0415 - with ctypes, for few

                self._output = Capture(f"{self._pid}-{secrets.token_hex(4)}")
            self._output.turn_to(*output)
        elif self._output is not None:
            self._output.turn_back()

    # -- calls

    def _serve_calls(
        self,
        needs: tuple[int, ...],
        run: int,
        definition: int,
        snapshot: tuple[int, ...],
        splits: int,
        deadline: float | None,
        calls: list[tuple[int, int | None, int, Any, float | None]],
    ) -> None:
        for number, branch, attempt, item, timeout in calls:
            started = _clock.monotonic()
            self._status.publish(number, started)
            if self._status.is_withheld(number):
                self._status.clear()
                continue
            begun, cpu = _clock.epoch(), _clock.process_time()
            view: StoreView | None = None
            payload: Any
            try:
                self._prepare(needs)
                self._logs.attempt = branch, attempt
                if self._output is not None:
                    self._output.begin(branch, attempt, begun)
                loaded: _Loaded = self._open(definition)
                view = StoreView(self._layers(snapshot), self._scribe.place)
                limits = [at for at in (deadline, None if timeout is None else started + timeout) if at is not None]
                deadline_at = min(limits, default=None)
                context = self._context(loaded, self._open(run), view, branch, attempt, deadline_at, number, splits)
                if loaded.tasks.is_map:
                    value = loaded.calls[0](context, _item(item, branch))
                else:
                    value = loaded.calls[branch or 0](context)
                payload, mode = self._pack_value(value), OK
            except BaseException as error:  # noqa: BLE001 - SystemExit too is a failed attempt
                payload, mode = tuple(record_error(_without_own_frames(error))), ERROR
            if os.getpid() != self._pid:
                # The task forked, and this is the child that came back: it has no business here.
                os._exit(0)
            self._finish(number, mode, payload, view, (begun, started, cpu))

    def _finish(
        self, number: int, mode: int, payload: Any, view: StoreView | None, clocks: tuple[float, float, float]
    ) -> None:
        begun, started, cpu = clocks
        duration = _clock.monotonic() - started
        used = _clock.process_time() - cpu
        peak = None
        if duration >= _WORTH_MEASURING:
            children = _procs.children_cpu()
            used += children - self._children_cpu
            self._children_cpu = children
            peak = _procs.peak_memory() if self._peak_is_own else None
        if _procs.has_children():
            self._kill_leftovers()
        _flush_output()
        output = None if self._output is None else self._output.end()
        self._logs.end()
        operations = tuple(view.operations) if view is not None and mode == OK else ()
        written = []
        if self._scribe and mode == OK:
            payload, operations = by_number(payload), by_number(operations)
            written = self._scribe.hand_over()
        self._scribe.discard()
        retire = RETIRE if self._has_strange_threads() else STAY
        outcome = (number, mode, payload, operations, written, begun, duration, used, peak, output, retire)
        self._channel.send(wire.OUTCOME, outcome)
        self._status.clear()
        if duration >= _WORTH_MEASURING:
            self._peak_is_own = _procs.reset_peak_memory()
        else:
            self._peak_is_own = False

    def _pack_value(self, value: Any) -> Data | None:
        if value is None:
            return None
        try:
            return pack(value, self._scribe.place)
        except PayloadError as error:
            raise PayloadError(f"the result cannot be sent back: {error}; return plain data") from error.__cause__
        except (MemoryError, RecursionError) as error:
            if isinstance(error, StoreFullError):
                raise
            raise PayloadError(f"the result cannot be sent back: {describe_error(error)}") from error

    def _has_strange_threads(self) -> bool:
        count = threading.active_count()
        return count > self._threads and count > self._threads + sum(each.threads for each in self._equipment)

    def _say_last(self, error: BaseException) -> None:
        """From a watchdog, which ends this process next: the call that runs has failed."""
        number, started = self._status.running()
        ran = _clock.monotonic() - started
        own = tuple(record_error(error))
        outcome = (number, ERROR, own, (), (), _clock.epoch() - ran, ran, 0.0, None, None, RETIRE)
        self._channel.send(wire.OUTCOME, outcome)

    def _kill_leftovers(self) -> None:
        living = _procs.reap_dead_children(_procs.kept_children)
        if living:
            warnings.warn(
                f"a task left {len(living)} process(es) running; they were killed", RuntimeWarning, stacklevel=2
            )
        while living:
            _procs.kill_children(living, 5.0)
            living = [pid for pid in _procs.reap_dead_children(_procs.kept_children) if pid not in living]

    def _context(
        self,
        loaded: _Loaded,
        run: tuple[str, Any],
        view: StoreView,
        branch: int | None,
        attempt: int,
        deadline: float | None,
        number: int,
        splits: int,
    ) -> TaskContext:
        run_id, params = run
        return TaskContext(
            store=view,
            params=params,
            run_id=run_id,
            state=loaded.tasks.state,
            branch=branch,
            attempt=attempt,
            logger=loaded.logger,
            deadline_at=deadline,
            split_of=lambda state: self._split(splits, state),
            report=_Progress(self._channel.send, number),
            is_cancelled=lambda: False,
            resources=self._resources,
        )

    def _split(self, splits: int, state: Any) -> Any:
        packed: Mapping[Any, Any] = self._open(splits) if splits else {}
        if state not in packed:
            known = ", ".join(map(label, packed)) or "none"
            raise WorkflowError(f"no split of state {label(state)} has ended in this run; ended: {known}")
        return loads(arrived(packed[state]))


class _Progress:
    """Sends progress, at most every 50 ms."""

    __slots__ = ("_number", "_quiet_until", "_send")

    def __init__(self, send: Callable[[int, Any], None], number: int) -> None:
        self._send = send
        self._number = number
        self._quiet_until = 0.0

    def __call__(self, done: float, total: float | None, message: str | None) -> None:
        now = _clock.monotonic()
        if now < self._quiet_until and done != total:
            return
        self._quiet_until = now + _PROGRESS_EVERY
        total = None if total is None else float(total)
        text = None if message is None else str(message)
        self._send(wire.PROGRESS, (self._number, float(done), total, text))


def _item(data: Any, branch: int | None) -> Any:
    if data is None:
        return None
    try:
        return loads(arrived(data))
    except Exception as error:
        raise PayloadError(
            f"the item of branch {branch} cannot be unpacked in a worker: {describe_error(error)}"
        ) from error


def _without_own_frames(error: BaseException) -> BaseException:
    """Drop this module's frames from the traceback: a user looks for their own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _OWN_FILES:
        trace = trace.tb_next
    return error.with_traceback(trace) if trace is not None else error


_OWN_FILES = frozenset({__file__, bound_call.__code__.co_filename})


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - after every call; suppress() takes longer than the flush
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass


_OPENERS: dict[int, Callable[[Any], Any]] = {
    TASKS: _Loaded,
    RUN: loads,
    MAINS: register_mains,
    LAYER: ReceivedLayer,
    SPLITS: loads,
    PLACE: wire.open_body,
    RESOURCES: WorkerResources,
}


def _enter(keeper: int, channel: int, status: int) -> None:
    """Make this process a worker: tied to its keeper, deaf to the terminal, alone with its channel."""
    with suppress(OSError):
        os.setsid()
    _procs.die_with_parent(keeper)
    _procs.become_subreaper()
    _procs.prefer_for_oom()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):
            if int(name) > 2:
                # What the task starts must not hold the channel or the trackers' pipes open.
                fd = int(name)
                fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.fcntl(fd, fcntl.F_GETFD) | fcntl.FD_CLOEXEC)
    os.register_at_fork(after_in_child=lambda: _close_all(channel, status))
    # Names of the launcher's __main__ are put here; loky's own __main__ must not be mistaken for it.
    sys.modules["__main__"] = types.ModuleType("__main__")
    _procs.ignore_group_signals()


def _close_all(*fds: int) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def main(channel: int, status: int, keeper: int, nice: int) -> None:
    """Run a worker on the inherited descriptors; returns when the pool lets it go."""
    _enter(keeper, channel, status)
    _procs.set_priority(nice)
    with socket.socket(fileno=channel) as sock, suppress(ConnectionError):
        Worker(sock, StatusPage(status)).serve()
