"""One visit of a state whose task is a model: makes its calls, here or in a worker, and waits for it.

What its phases write is staged: they see it, the store does not, until a cursor or the next state is
committed with it.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from canobatch import _clock
from canobatch.definition import label
from canobatch.effects import describe_error, loads, pack
from canobatch.engine.admission import let_through
from canobatch.engine.attempt import Where, error_of, is_mendable, own_error, unpacking_error, wrap
from canobatch.engine.earlier import check_count
from canobatch.engine.items import ItemsHere, ItemsInWorkers, packed_item
from canobatch.engine.scribe import check_item
from canobatch.errors import JournalError, PayloadError, TaskError, TaskTimeoutError, WorkflowError
from canobatch.models import CompensatableTask, ItemResult
from canobatch.phases import Phases
from canobatch.pool import Call, Finished
from canobatch.view import Draft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from canobatch.definition import Single
    from canobatch.effects import Data, Operation
    from canobatch.engine.driver import Driver
    from canobatch.engine.items import Items
    from canobatch.engine.report import StateReport
    from canobatch.journal import AttemptRecord
    from canobatch.pool.backend import Header
    from canobatch.snapshot import Snapshot
    from canobatch.view import StoreView

_T = TypeVar("_T")

#: Seconds of making items after which outcomes are looked at.
_FEED_PATIENCE = 0.005
#: Numbers versions of the store that only a visit sees; a store's own names begin above 0.
_versions = itertools.count(1)


class Visit:
    """Implements `canobatch.models.Stage` for the parent.

    Attributes:
        attempt: The number of the present attempt, from 1.
        is_in_doubt: Whether the last call may have done its work, though it has no outcome.
    """

    def __init__(self, driver: Driver, state: Any, handler: Single, report: StateReport) -> None:
        self.driver = driver
        self.state = state
        self.model = handler.task
        self.config = driver.definition.config_of(handler, handler.task)
        self.report = report
        self.attempt = 0
        self.is_in_doubt = False
        is_bounded = isinstance(self.model, CompensatableTask) and driver.definition.grace is not None
        self.is_here = self.config.where == "parent" or not (is_bounded or driver.is_for_worker(self.config))
        self._phases = Phases(self.model, is_here=self.is_here)
        self._staged: list[tuple[str, Sequence[Operation]]] = []
        self._seen: tuple[Any, Snapshot] | None = None
        self._cursor: Data | None = driver.scribe.cursor("cursor")
        #: What an earlier attempt came to know, and the next need not find out again.
        self._made: list[Any] = []
        made = driver.scribe.cursor("made")
        if made is not None:
            self._made.append(loads(made))
        #: What compensations will be given, by the number of their intents.
        self.outputs: dict[int, bytes] = {}
        self._deadline: float | None = None

    # -- attempts

    def retry(self, attempt: Callable[[], _T]) -> _T:
        """Return what ``attempt`` returns; what a failed one wrote is dropped. See `Stage`."""
        mark = len(self._staged)
        self.attempt = 0
        while True:
            self.begin_attempt()
            if self.config.attempt_timeout is not None:
                self._deadline = _clock.monotonic() + self.config.attempt_timeout
            try:
                return attempt()
            except TaskError as error:
                del self._staged[mark:]
                self.driver.back_off(self.config, error)
            finally:
                self._deadline = None

    def begin_attempt(self) -> None:
        """Count one more."""
        self.attempt += 1
        self.report.attempts += 1

    def forgives(self, error: Exception) -> bool:
        """Return whether a call that failed with ``error`` may be tried again; if so, tell the observers."""
        if not isinstance(error, TaskError) or not is_mendable(self.config, error):
            return False
        self.driver.emit("retry", state=self.state, attempt=self.attempt, detail=error)
        return True

    def wait(self, seconds: float) -> None:
        """Let time pass, unless the attempt's is up before.

        Raises:
            TaskTimeoutError: It is.
        """
        until = _clock.monotonic() + seconds
        is_late = self._deadline is not None and self._deadline < until
        if is_late and self._deadline is not None:
            until = self._deadline
        self.driver.check()
        while _clock.monotonic() < until:
            self.driver.mailbox.read(None, until)
        if is_late:
            raise self._too_late()

    def now(self) -> tuple[float, float]:
        """Return the monotonic time and the seconds since the epoch."""
        return _clock.monotonic(), _clock.epoch()

    # -- calls

    def call(self, phase: str, *args: Any) -> Any:
        """Call a phase once, when the gate lets it through, and stage what it writes; see `Stage`.

        Raises:
            TaskError: It failed.
        """
        self.driver.check()
        with self.admitted():
            return self.call_at_once(phase, *args)

    def call_at_once(self, phase: str, *args: Any, timeout: float | None = None) -> Any:
        """Call a phase whatever breakers and limiters say.

        Args:
            phase: Its name.
            args: What it is given after ``ctx``.
            timeout: Seconds it may take in a worker, if less than what is left of its attempt's.

        Raises:
            TaskError: It failed.
        """
        self.driver.check()
        self.is_in_doubt = False
        if self.is_here:
            value, operations = self.call_here(phase, args)
        else:
            value, operations = self._call_in_worker(phase, args, timeout)
        self.stage(phase, operations)
        return value

    @contextmanager
    def admitted(self, branch: int | None = None, attempt: int | None = None) -> Iterator[None]:
        """Wait at the gate; tell it how the attempt within has ended.

        Raises:
            CircuitOpenError: The breaker is open, and not to be waited for.
        """
        admitted = let_through(self.driver, self.config, self.where(branch, attempt))
        try:
            yield
        except TaskError:
            admitted.end(False)
            raise
        except BaseException:
            admitted.end(None)
            raise
        admitted.end(True)

    def call_here(
        self, phase: str, args: tuple[Any, ...], *, branch: int | None = None, attempt: int | None = None
    ) -> tuple[Any, Sequence[Operation]]:
        """Call a phase in the parent; return its value and what it wrote."""
        view = self.view()
        ctx = self.driver.context(self.state, view, attempt or self.attempt)
        ctx.branch = branch
        try:
            return self._phases(ctx, (phase, args)), view.operations
        except BaseException as own:  # noqa: BLE001 - SystemExit too is a failed attempt
            # What gave up because the run was cancelled has not failed.
            self.driver.check()
            error = wrap(own, self.where(branch, attempt))
        raise error from error.__cause__

    def _call_in_worker(
        self, phase: str, args: tuple[Any, ...], timeout: float | None
    ) -> tuple[Any, Sequence[Operation]]:
        item = self.packed(f"what {phase} is given", (phase, args))
        lane = self.driver.station().lane(self.state)
        lane.begin(self.header(item), None, 0)
        limit = self._limit(timeout)
        call = Call(None, self.attempt, item, limit, self.config.memory_limit, True)
        try:
            lane.submit([call])
            event = self.driver.await_outcome(lane, self.state)
        except BaseException:
            self.is_in_doubt = bool(self.driver.mailbox.kill(lane))
            raise
        if isinstance(event, Finished) and event.succeeded:
            try:
                return None if event.payload is None else loads(event.payload), event.operations
            except BaseException as error:
                self.is_in_doubt = True
                raise unpacking_error(error, self.where()) from error
        self.is_in_doubt = not isinstance(event, Finished)
        if self._deadline is not None and limit != timeout:
            # What is said is the attempt's timeout, not what was left of it.
            call.timeout = self.config.attempt_timeout
        raise error_of(event, self.where())

    def _limit(self, timeout: float | None) -> float | None:
        """Return the seconds that a call may take."""
        left = self.config.attempt_timeout
        if self._deadline is not None:
            left = self._deadline - _clock.monotonic()
            if left <= 0:
                raise self._too_late()
        return min((each for each in (left, timeout) if each is not None), default=None)

    def _too_late(self) -> TaskTimeoutError:
        limit = self.config.attempt_timeout or 0.0
        where = self.where()
        return TaskTimeoutError(f"{where}: did not end within {limit:g} s", limit=limit, **where.facts)

    def where(self, branch: int | None = None, attempt: int | None = None) -> Where:
        """Return what an error of a call is about."""
        return Where(self.state, branch, attempt or self.attempt, self.driver.path)

    def packed(self, what: str, value: Any) -> Data:
        """Return ``value`` packed.

        Raises:
            PayloadError: It cannot be pickled; the text says ``what`` it is.
        """
        try:
            return pack(value, self.driver.store.segments.place)
        except PayloadError as error:
            where = self.where()
            raise PayloadError(f"{where}: {what} cannot be packed: {error}", **where.facts) from error.__cause__

    def header(self, item: Data = b"") -> Header:
        """Share what calls of this visit need, and the classes of ``__main__`` that ``item`` refers to."""
        driver = self.driver
        header = driver.header(self.state, [self._phases], driver.deadline, snapshot=self.snapshot(), is_map=True)
        return driver.station().need_mains(item, header)

    # -- items

    def process(self, items: Iterable[Any]) -> list[ItemResult]:
        """Process all items of a batch; see `Stage`."""
        driver, model = self.driver, self.model
        results: list[ItemResult] = []
        iterator = iter(items)
        is_exhausted = False
        # A batch's items go to workers also when the rest of it runs here.
        crew: Items = (
            ItemsHere(self, is_kept=True)
            if self.config.where == "parent"
            else ItemsInWorkers(self, model.concurrency, is_kept=True)
        )
        known = self._known_items()
        with crew:
            while not is_exhausted or not crew.is_idle:
                began = _clock.monotonic()
                room = crew.room()
                while not is_exhausted and room > 0 and _clock.monotonic() - began < _FEED_PATIENCE:
                    room -= 1
                    try:
                        item = next(iterator)
                        if crew.submitted in known:
                            crew.give(*self._known(known[crew.submitted], item))
                        else:
                            crew.submit(item)
                    except StopIteration:
                        self._check_count(known, crew.submitted)
                        is_exhausted = True
                    except Exception as error:
                        raise self._load_error(error, crew.submitted) from error
                crew.send()
                for done in crew.ready():
                    if done.error is not None:
                        driver.emit("item_failed", state=self.state, branch=done.index, detail=done.error)
                    results.append(ItemResult(done.index, done.value, done.error and own_error(done.error)))
                    self.stage(f"item {done.index}", done.operations)
                driver.check()
                if not crew.is_idle:
                    # Where there is room, the items are what takes long.
                    has_more = not is_exhausted and crew.room() > 0
                    crew.take(driver.mailbox.read(crew.lane, _clock.monotonic() if has_more else crew.next_due))
        return results

    def _known_items(self) -> dict[int, AttemptRecord]:
        """Return the items that an earlier life has processed."""
        accepted = self.driver.scribe.recorded(self.driver.store.segments)
        return {attempt.branch: attempt for attempt in accepted if attempt.branch is not None}

    def _known(self, attempt: AttemptRecord, item: Any) -> tuple[Any, Sequence[Operation]]:
        data = packed_item(item, self.driver.store.segments.place)
        check_item(attempt.item, data, f"state {label(self.state)}, item {attempt.branch}", self.driver.run_id)
        return self.driver.scribe.value_of(attempt), attempt.operations

    def _check_count(self, known: Mapping[int, AttemptRecord], total: int) -> None:
        check_count(max(known, default=-1) + 1, total, f"state {label(self.state)}: item", self.driver.run_id)

    def _load_error(self, error: Exception, count: int) -> Exception:
        if isinstance(error, TaskError | WorkflowError | JournalError):
            return error
        where = self.where()
        text = f"{where}: the items of load failed after {count}: {describe_error(error)}"
        return TaskError(text, **where.facts)

    # -- what is written

    def stage(self, writer: str, operations: Sequence[Operation]) -> None:
        """Keep what an accepted call wrote until the next commit."""
        if operations:
            self._staged.append((writer, operations))

    def unstage(self) -> None:
        """Drop what was written since the last commit."""
        self._staged.clear()

    def snapshot(self) -> Snapshot:
        """Return what the next call sees: the store, and what was staged."""
        base = self.driver.store.snapshot()
        if not self._staged:
            return base
        name = (base.name, len(self._staged))
        if self._seen is None or self._seen[0] != name:
            draft = Draft(base.entries, self.driver.store.segments.place)
            try:
                for _, operations in self._staged:
                    for operation in operations:
                        draft.apply(operation)
                is_cleared, changes = draft.changes()
            except Exception as error:
                raise self.refusal(f"what it wrote cannot be applied: {describe_error(error)}") from error
            self._seen = (name, base.changed((0, next(_versions)), changes, is_cleared=is_cleared))
        return self._seen[1]

    def view(self) -> StoreView:
        """Return what a call here sees, and writes to."""
        return self.driver.view(self.snapshot())

    def keep(self, cursor: Any) -> None:
        """Commit what was staged together with ``cursor``; see `Stage`."""
        data = self.packed("its cursor", cursor)
        self.commit(cursors={"cursor": data})
        self._cursor = data
        self.driver.emit("checkpoint", state=self.state, attempt=self.attempt, detail=cursor)

    def cursor(self) -> Any:
        """Return a copy of the cursor that was kept last: nobody can spoil it for the next attempt."""
        return None if self._cursor is None else loads(self._cursor)

    def once(self, make: Callable[[], _T]) -> _T:
        """Return what was made first; see `Stage`."""
        if not self._made:
            self._made.append(make())
            if self.driver.scribe.is_on:
                # Nor need a later life; what was written on the way goes with it.
                self.commit(cursors={"made": self.packed("what it came to know", self._made[0])})
        made: _T = self._made[0]
        return made

    def commit(
        self, following: Any = None, *, cursors: Mapping[str, Data] | None = None, undone: int | None = None
    ) -> None:
        """Commit what was staged, with where the run goes; None: it stays here."""
        staged, self._staged = self._staged, []
        outputs = self.outputs if following is not None else None
        self.driver.commit(
            self.state, staged, following=following, report=self.report, cursors=cursors, outputs=outputs, undone=undone
        )
        if following is not None:
            self.outputs = {}

    def refusal(self, text: str) -> WorkflowError:
        """Return the error that says what a phase must not do."""
        return WorkflowError(f"state {label(self.state)}: {text}", state=self.state, path=self.driver.path)
