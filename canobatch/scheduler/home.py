"""SqliteLedger: the ledger of a home, which all its schedulers share, in tables of their own in ``flows.db``.

::

    flows.db                   flows, ticks, claims, what waits, records, commands
    locks/flow-<flow>.lock     held by the process that runs the flow: the truth; the claim's row describes it
    output/<run>/              what the tasks of a run printed
    wake/<scheduler>           a FIFO: a byte in it makes that scheduler look at what is written
"""

from __future__ import annotations

import json
import pickle
import threading
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canobatch import _sqlite
from canobatch._locks import FileLock, is_held
from canobatch.definition import label
from canobatch.errors import SchedulerError
from canobatch.journal.home import Home, name_of
from canobatch.journal.owner import this_process
from canobatch.scheduler._bells import Bells
from canobatch.scheduler.flows import FlowState, FlowStatus
from canobatch.scheduler.ledger import KEPT, Asked, Claim, Command, FlowRecord, Waiting

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

_COMPONENT = "flows"
_STEPS = (
    (
        """CREATE TABLE flows (
            id TEXT PRIMARY KEY, schedule TEXT NOT NULL, anchor INTEGER NOT NULL, state TEXT NOT NULL
        ) WITHOUT ROWID""",
        # The whole of what keeps a tick from running twice.
        "CREATE TABLE ticks (flow TEXT NOT NULL, tick INTEGER NOT NULL, PRIMARY KEY (flow, tick)) WITHOUT ROWID",
        """CREATE TABLE claims (
            flow TEXT PRIMARY KEY, run TEXT NOT NULL, owner TEXT NOT NULL, pid INTEGER NOT NULL,
            start_ticks INTEGER NOT NULL, boot_id TEXT NOT NULL, pid_namespace INTEGER NOT NULL,
            host TEXT NOT NULL, token TEXT NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE waiting (
            number INTEGER PRIMARY KEY AUTOINCREMENT, flow TEXT NOT NULL, tick INTEGER, run TEXT,
            scheduler TEXT NOT NULL
        )""",
        """CREATE TABLE records (
            number INTEGER PRIMARY KEY AUTOINCREMENT, flow TEXT NOT NULL, time INTEGER NOT NULL, kind TEXT NOT NULL,
            tick INTEGER, run TEXT, reason TEXT NOT NULL, until INTEGER, count INTEGER, state TEXT
        )""",
        "CREATE INDEX records_of ON records (flow, number)",
        """CREATE TABLE commands (
            number INTEGER PRIMARY KEY AUTOINCREMENT, flow TEXT NOT NULL, what TEXT NOT NULL, params BLOB,
            scheduler TEXT, run TEXT, error TEXT
        )""",
    ),
    # Runs that need no claim: of flows that may overlap.
    (
        """CREATE TABLE unclaimed (
            run TEXT PRIMARY KEY, flow TEXT NOT NULL, owner TEXT NOT NULL, scheduler TEXT NOT NULL,
            boot_id TEXT NOT NULL, token TEXT NOT NULL
        ) WITHOUT ROWID""",
    ),
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

#: Fields of a FlowState that are instants.
_INSTANTS = ("eligible_at", "last_run", "ended_at")


def _number(instant: datetime | None) -> int | None:
    return None if instant is None else (instant - _EPOCH) // _MICROSECOND


def _instant(number: int | None) -> datetime | None:
    return None if number is None else _EPOCH + number * _MICROSECOND


class SqliteLedger:
    """The ledger of one scheduler, or of one who asks, in a home that it shares with others.

    Args:
        directory: The home; made if missing.

    Raises:
        JournalError: It cannot be used.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._home = Home(Path(directory).absolute(), "process")
        self._home.make()
        #: Not the index of runs: a run begins, and is indexed, within a transaction of flows.
        self._path = self._home.directory / "flows.db"
        self._lock = threading.RLock()
        self._is_in_step = False
        self._wakes_after = False
        self._locks: dict[str, FileLock] = {}
        bells = self._home.directory / "wake"
        with _sqlite.translated(bells):
            bells.mkdir(mode=0o700, exist_ok=True)
        self._bells = Bells(bells)
        self._name = self._bells.own
        self._is_closed = False
        self._connection = _sqlite.create(self._path)
        try:
            with _sqlite.translated(self._path):
                _sqlite.schema_version(self._connection, self._path, _COMPONENT, len(_STEPS))
                # Several processes that write to one write-ahead log can lose rows, before SQLite 3.51.3.
                _sqlite.use_rollback_journal(self._connection, self._path, "process")
                with _sqlite.transaction(self._connection):
                    _sqlite.migrate(self._connection, self._path, _COMPONENT, _STEPS)
        except BaseException:
            self._connection.close()
            raise

    def output_of(self, run_id: str) -> Path | None:
        """Return the run's directory below ``output``."""
        return self._home.directory / "output" / name_of(run_id)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what is done inside one step; inside of another it is part of that one."""
        with self._lock:
            if self._is_in_step:
                yield
                return
            with self._translated(_sqlite.transaction(self._connection)):
                self._is_in_step = True
                try:
                    yield
                finally:
                    self._is_in_step = False
                    wakes, self._wakes_after = self._wakes_after, False
        if wakes:
            self.wake_others()

    def part(self, flow: str) -> AbstractContextManager[None]:  # noqa: ARG002 - whatever is written is undone
        """Undo what is done of one flow inside if it fails, and nothing else of the transaction."""
        return self._translated(_sqlite.part(self._connection))

    @contextmanager
    def _translated(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """Tell what the database raises at the beginning and the end; what the body raises is not its own."""
        step = ExitStack()
        with _sqlite.translated(self._path):
            step.enter_context(context)
        with step.pop_all() as body:
            yield
            with _sqlite.translated(self._path):
                body.close()

    def _write(self, statement: str, *values: Any) -> int:
        """Execute a statement in a transaction; return how many rows it changed."""
        with self.transaction(), _sqlite.translated(self._path):
            return self._connection.execute(statement, values).rowcount

    def _read(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, _sqlite.translated(self._path):
            if not self._is_closed:
                return self._connection.execute(statement, values).fetchall()
            # What was can still be asked for.
            with closing(_sqlite.connect(self._path)) as connection:
                return connection.execute(statement, values).fetchall()

    # -- flows

    def enrol(self, flow: str, schedule: str, now: datetime) -> datetime:
        """Return when a flow was first started: now, if it never was.

        Raises:
            SchedulerError: The flow is known with another schedule.
        """
        with self.transaction():
            self._write(
                "INSERT OR IGNORE INTO flows VALUES (?,?,?,?)", flow, schedule, _number(now), _packed(FlowState())
            )
            known: str
            anchor: int
            ((known, anchor),) = self._read("SELECT schedule, anchor FROM flows WHERE id=?", flow)
        if known != schedule:
            raise SchedulerError(
                f"flow {flow!r} is known in {self._home.directory} with another schedule ({known}, not {schedule}); "
                f"give it another id, or forget the old one: FlowHome(...).forget({flow!r})",
                flow=flow,
            )
        return _EPOCH + anchor * _MICROSECOND

    def flows(self) -> dict[str, str]:
        """Return the schedules of all flows by id."""
        return dict(self._read("SELECT id, schedule FROM flows ORDER BY id"))

    def forget(self, flow: str) -> None:
        """Drop all that is known of a flow."""
        with self.transaction():
            self._write("DELETE FROM flows WHERE id=?", flow)
            for table in ("ticks", "claims", "unclaimed", "waiting", "records", "commands"):
                self._write(f"DELETE FROM {table} WHERE flow=?", flow)  # noqa: S608 - names of ours

    def state(self, flow: str) -> FlowState:
        """Return where a flow stands."""
        ((text,),) = self._read("SELECT state FROM flows WHERE id=?", flow)
        facts = json.loads(text)
        for name in _INSTANTS:
            facts[name] = _instant(facts[name])
        return FlowState(**{**facts, "rest": FlowStatus(facts["rest"])})

    def put_state(self, flow: str, state: FlowState) -> None:
        """Write down where it stands."""
        self._write("UPDATE flows SET state=? WHERE id=?", _packed(state), flow)

    # -- ticks

    def last_tick(self, flow: str) -> datetime | None:
        """Return the last tick that was taken."""
        ((number,),) = self._read("SELECT max(tick) FROM ticks WHERE flow=?", flow)
        return _instant(number)

    def take_tick(self, flow: str, tick: datetime) -> bool:
        """Take a tick; False if it was taken before."""
        with self.transaction():
            number = _number(tick)
            is_new = self._write("INSERT OR IGNORE INTO ticks VALUES (?,?)", flow, number) == 1
            self._write(
                "DELETE FROM ticks WHERE flow=? AND tick < "
                "(SELECT tick FROM ticks WHERE flow=? ORDER BY tick DESC LIMIT 1 OFFSET ?)",
                flow,
                flow,
                KEPT,
            )
            return is_new

    # -- claims

    def claim(self, flow: str) -> bool:
        """Claim a flow for a run; False if another process has."""
        if flow in self._locks:
            return True
        lock = FileLock(self._lock_path(flow))
        with _sqlite.translated(self._lock_path(flow)):
            if not lock.acquire():
                return False
        self._locks[flow] = lock
        return True

    def holds(self, flow: str) -> bool:
        """Return whether this scheduler has claimed a flow."""
        return flow in self._locks

    def is_claimed(self, flow: str) -> bool:
        """Return whether anybody has claimed a flow."""
        return flow in self._locks or is_held(self._lock_path(flow))

    def left_over(self, flow: str) -> Claim | None:
        """Return what the last holder of a flow that is claimed here did not bring to its end."""
        for run_id, owner, boot_id, token in self._read(
            "SELECT run, owner, boot_id, token FROM claims WHERE flow=?", flow
        ):
            # Of another boot nothing is left.
            return Claim(run_id, owner, token if boot_id == this_process().boot_id else "")
        return None

    def describe_claim(self, flow: str, claim: Claim | None) -> None:
        """Write down what a flow was claimed for; None: nothing any more."""
        if claim is None:
            self._write("DELETE FROM claims WHERE flow=?", flow)
            return
        me = this_process()
        values = (me.pid, me.start_ticks, me.boot_id, me.pid_namespace, me.host, claim.token)
        self._write("REPLACE INTO claims VALUES (?,?,?,?,?,?,?,?,?)", flow, claim.run_id, claim.owner, *values)

    def flow_of(self, run_id: str) -> str | None:
        """Return the flow of a run that goes on, or waits for its turn."""
        rows = self._read(
            "SELECT flow FROM (SELECT run, flow FROM claims UNION SELECT run, flow FROM unclaimed"
            " UNION SELECT run, flow FROM waiting) WHERE run=?",
            run_id,
        )
        return rows[0][0] if rows else None

    def describe_run(self, flow: str, run: Claim) -> None:
        """Write down a run that needs no claim."""
        values = (run.run_id, flow, run.owner, self._name, this_process().boot_id, run.token)
        self._write("REPLACE INTO unclaimed VALUES (?,?,?,?,?,?)", *values)

    def forget_run(self, run_id: str) -> None:
        """Forget it: it has ended."""
        self._write("DELETE FROM unclaimed WHERE run=?", run_id)

    def lost_runs(self, flow: str) -> list[Claim]:
        """Return, once, the runs without a claim whose scheduler is no more."""
        with self.transaction():
            lost = [
                Claim(run_id, owner, token if boot_id == this_process().boot_id else "")
                for run_id, owner, scheduler, boot_id, token in self._read(
                    "SELECT run, owner, scheduler, boot_id, token FROM unclaimed WHERE flow=?", flow
                )
                if not self._is_alive(scheduler)
            ]
            for run in lost:
                self.forget_run(run.run_id)
        return lost

    def release(self, flow: str) -> None:
        """Give a claim back, if there is one."""
        lock = self._locks.pop(flow, None)
        if lock is not None:
            lock.release()

    def _lock_path(self, flow: str) -> Path:
        return self._home.locks / f"flow-{name_of(flow)}.lock"

    # -- what waits

    def push(self, flow: str, waiting: Waiting) -> None:
        """Let something wait; a tick may be taken by any scheduler, a run only by the one that made it."""
        values = (flow, _number(waiting.tick), waiting.run_id, self._name)
        self._write("INSERT INTO waiting (flow, tick, run, scheduler) VALUES (?,?,?,?)", *values)

    def pop(self, flow: str, *, only_own: bool = False) -> Waiting | None:
        """Take the oldest of what waits, if this scheduler may; with ``only_own``, if no other may."""
        with self.transaction():
            for number, tick, run_id, scheduler in self._read(
                "SELECT number, tick, run, scheduler FROM waiting WHERE flow=? ORDER BY number", flow
            ):
                is_own = run_id is not None and scheduler == self._name
                if run_id is not None and not self._is_alive(scheduler):
                    # Nobody waits for it any more.
                    self._write("DELETE FROM waiting WHERE number=?", number)
                elif is_own or (run_id is None and not only_own):
                    self._write("DELETE FROM waiting WHERE number=?", number)
                    return Waiting(_instant(tick), run_id)
                elif not only_own:
                    self.wake_others()
                    return None
        return None

    def take_out(self, run_id: str) -> None:
        """Let a run wait no more."""
        self._write("DELETE FROM waiting WHERE run=?", run_id)

    def waiting(self, flow: str) -> int:
        """Return how much waits."""
        ((count,),) = self._read("SELECT count(*) FROM waiting WHERE flow=?", flow)
        return int(count)

    def unsettled(self) -> Sequence[str]:
        """Return the flows for which something waits, or that have runs which nobody brought to their end."""
        found = {flow for (flow,) in self._read("SELECT flow FROM waiting UNION SELECT flow FROM claims")}
        unclaimed = self._read("SELECT DISTINCT flow, scheduler FROM unclaimed")
        return sorted(found | {flow for flow, scheduler in unclaimed if not self._is_alive(scheduler)})

    # -- records

    def record(self, record: FlowRecord) -> None:
        """Write down what happened, and forget the oldest of too many."""
        r = record
        values = (_number(r.time), r.kind, _number(r.tick), r.run_id, r.reason, _number(r.until), r.count)
        state = None if r.state is None else label(r.state)
        with self.transaction():
            self._write(
                "INSERT INTO records (flow, time, kind, tick, run, reason, until, count, state) "
                "VALUES (?,?,?,?,?,?,?,?,?)",
                r.flow,
                *values,
                state,
            )
            self._write(
                "DELETE FROM records WHERE flow=? AND number < "
                "(SELECT number FROM records WHERE flow=? ORDER BY number DESC LIMIT 1 OFFSET ?)",
                r.flow,
                r.flow,
                KEPT,
            )

    def history(self, flow: str, limit: int) -> list[FlowRecord]:
        """Return the newest records of a flow, oldest first."""
        rows = self._read(
            "SELECT time, kind, tick, run, reason, until, count, state FROM records WHERE flow=? "
            "ORDER BY number DESC LIMIT ?",
            flow,
            max(limit, 0),
        )
        return [
            FlowRecord(
                flow, _EPOCH + time * _MICROSECOND, kind, _instant(tick), run, reason, _instant(until), count, state
            )
            for time, kind, tick, run, reason, until, count, state in reversed(rows)
        ]

    # -- commands

    def ask(self, flow: str, what: Asked, params: Any = None, *, run_id: str | None = None) -> int:
        """Ask the schedulers for something, and wake them; returns the command's number."""
        data = None if params is None else pickle.dumps(params)
        with self.transaction():
            statement = "INSERT INTO commands (flow, what, params, run) VALUES (?,?,?,?)"
            number = self._connection.execute(statement, (flow, what, data, run_id)).lastrowid
        self.wake_others()
        return number or 0

    def commands(self) -> Sequence[Command]:
        """Return what was asked and not answered."""
        rows = self._read(
            "SELECT number, flow, what, params, run FROM commands WHERE scheduler IS NULL ORDER BY number"
        )
        # Whoever may write into a home of ours is the user that we run as.
        return [
            Command(number, flow, what, None if data is None else pickle.loads(data), run_id)  # noqa: S301
            for number, flow, what, data, run_id in rows
        ]

    def answer(self, command: Command, *, run_id: str = "", error: str = "") -> bool:
        """Answer a command; False if somebody else has."""
        statement = "UPDATE commands SET scheduler=?, run=?, error=? WHERE number=? AND ifnull(scheduler, ?)=?"
        return self._write(statement, self._name, run_id, error, command.number, self._name, self._name) == 1

    def answer_to(self, number: int) -> tuple[str, str] | None:
        """Return the run and the error of a command that was answered, and forget it; None as long as it was not."""
        with self.transaction():
            rows = self._read("SELECT run, error FROM commands WHERE number=? AND scheduler IS NOT NULL", number)
            if rows:
                self._write("DELETE FROM commands WHERE number=?", number)
        return rows[0] if rows else None

    def withdraw(self, number: int) -> None:
        """Forget a command that nobody has answered."""
        self._write("DELETE FROM commands WHERE number=?", number)

    # -- waking each other

    def listen(self, tell: Callable[[], None]) -> None:
        """Call ``tell``, from a thread of its own, when another scheduler says that something is written, or ends."""
        with _sqlite.translated(self._home.directory / "wake"):
            self._bells.listen(tell)

    def wake_others(self) -> None:
        """Make the other schedulers look at what is written; inside a step, when it is."""
        with self._lock:
            if self._is_in_step:
                self._wakes_after = True
                return
        self._bells.ring_all()

    def _is_alive(self, scheduler: str) -> bool:
        return scheduler == self._name or self._bells.reach(scheduler)

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            if self._is_closed:
                return
            for flow in list(self._locks):
                self.release(flow)
            self._is_closed = True
            self._connection.close()
        self._bells.close()


def _packed(state: FlowState) -> str:
    facts = {name: getattr(state, name) for name in FlowState.__slots__}
    for name in _INSTANTS:
        facts[name] = _number(facts[name])
    facts["running"] = 0
    facts["last_state"] = None if state.last_state is None else label(state.last_state)
    return json.dumps(facts)
