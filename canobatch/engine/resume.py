"""From a journal to a run that goes on: what was kept is read, checked, and put back where it was."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from canobatch import _procs
from canobatch.definition import label
from canobatch.effects import dumps, loads, rebuild_error, with_data
from canobatch.engine.scribe import Scribe, check_interpreter, made_with
from canobatch.errors import JournalError, WorkflowError
from canobatch.journal import NewRun, RunStatus
from canobatch.segments import flat, unflat
from canobatch.task import bind_params

if TYPE_CHECKING:
    from canobatch.definition import Definition
    from canobatch.journal import Journal, Owner, Recovered, RunJournal
    from canobatch.store import Store


class Resumed(NamedTuple):
    """What a driver needs to go on."""

    scribe: Scribe
    state: Any
    params: Any


def begin(definition: Definition, journal: Journal, run_id: str, initial: Any, params: Any, store: Store) -> Scribe:
    """Begin a run in a journal.

    Raises:
        RunInUseError: There is one of this id.
        PayloadError: The parameters cannot be kept.
        JournalError: It cannot be written.
    """
    new = NewRun(
        run_id,
        definition.name,
        definition.version,
        label(initial),
        None if params is None else dumps(params),
        made_with(),
        {key: with_data(entry, flat) for key, entry in store.snapshot().entries.items()},
    )
    return Scribe(definition, journal.begin(new))


def resume(definition: Definition, journal: Journal, run_id: str, store: Store) -> Resumed:
    """Take a run over, and bring ``store`` to what it held.

    Raises:
        RunNotFoundError: There is no such run.
        RunInUseError: Its owner lives.
        VersionMismatchError: Another workflow, version or interpreter began it.
        WorkflowError: It is in a state that the workflow has not.
        JournalError: It cannot be read.
        CanobatchError: It ended for good; what it ended with.
    """
    present = made_with()
    run, recovered = journal.take_over(run_id, workflow=definition.name, version=definition.version)
    try:
        _require_open(recovered)
        _kill_what_is_left(recovered.owner)
        if recovered.made_with != present:
            check_interpreter(recovered, present, _kept_data(run, recovered))
        state = _state_of(definition, recovered)
        params = bind_params(definition.params, None) if recovered.params is None else loads(recovered.params)
        if recovered.store:
            puts = [
                ("put", key, tuple(with_data(entry, lambda data: store.segments.house(unflat(data)))))
                for key, entry in recovered.store.items()
            ]
            store.commit([("the journal", puts)])
        scribe = Scribe(definition, run, recovered)
        if recovered.is_resumable:
            run.own("", present)
    except BaseException:
        _give_back(run, recovered)
        raise
    return Resumed(scribe, state, params)


def _kept_data(run: RunJournal, recovered: Recovered) -> list[Any]:
    """Return all packed data that the run may still open."""
    found: list[Any] = [] if recovered.params is None else [recovered.params]
    found += recovered.cursors.values()
    found += [deed.output for deed in recovered.compensations if deed.output is not None]
    operations: list[Any] = [tuple(recovered.store.values())]
    for visit in recovered.visits:
        for attempt in run.attempts(visit.visit):
            operations.append(attempt.operations)
            if attempt.value is not None:
                found.append(attempt.value)
    with_data(tuple(operations), found.append)
    return found


def _give_back(run: RunJournal, recovered: Recovered) -> None:
    """Leave a run as it was found: what it failed with is still to be read."""
    with suppress(JournalError):
        if recovered.is_resumable and recovered.status is not RunStatus.INTERRUPTED:
            run.end(recovered.status, state=recovered.state, error=recovered.error, is_resumable=True)
    run.close()


def _kill_what_is_left(owner: Owner) -> None:
    """Kill what a dead owner's pool left behind: nothing, unless its keeper was killed together with it."""
    is_of_here = (owner.boot_id, owner.pid_namespace) == (_procs.boot_id(), _procs.pid_namespace())
    # Where the owner lives, it has only let go of the run, and its pool may serve others.
    if owner.token and is_of_here and _procs.start_ticks(owner.pid) != owner.start_ticks:
        _procs.kill_marked(owner.token)


def _state_of(definition: Definition, recovered: Recovered) -> Any:
    wanted = recovered.visits[-1].state
    for state in [*definition.handlers, *definition.exits]:
        if label(state) == wanted:
            return state
    raise WorkflowError(
        f"run {recovered.run_id} is in state {wanted}, which workflow {definition.name!r} does not have; states: "
        f"{definition.known_states()}; resume it with the definition that began it",
        state=wanted,
        path=[visit.state for visit in recovered.visits],
    )


def _require_open(recovered: Recovered) -> None:
    """Raise the error with which a run ended for good; one that is through is no error."""
    if recovered.is_resumable or recovered.status is RunStatus.COMPLETED:
        return
    if recovered.error is not None:
        raise rebuild_error(recovered.error)
    raise JournalError(f"run {recovered.run_id} ended as {recovered.status} and cannot be resumed")
