"""How the one task of a state is run: the place that chooses between a plain task and the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canobatch.definition import label
from canobatch.effects import loads
from canobatch.engine.admission import let_through
from canobatch.engine.attempt import Where, error_of, unpacking_error, wrap
from canobatch.engine.stream import StreamExecution
from canobatch.engine.visit import Visit
from canobatch.errors import TaskError, WorkflowError
from canobatch.models import CompensatableTask, RouterTask, StreamTask
from canobatch.models.base import Driven
from canobatch.pool import Call, Finished
from canobatch.task import bound_call, entry_point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from canobatch.definition import Single
    from canobatch.effects import Operation
    from canobatch.engine.driver import Driver
    from canobatch.engine.report import StateReport
    from canobatch.engine.saga import Saga
    from canobatch.task import TaskConfig

_MODELS = (Driven, StreamTask, CompensatableTask)


def run_single(driver: Driver, saga: Saga, state: Any, handler: Single, report: StateReport) -> Any:
    """Run the task of ``state`` to its end, commit what it wrote, and return the next state."""
    try:
        if isinstance(handler.task, _MODELS):
            return _run_model(Visit(driver, state, handler, report), saga)
        return _run_task(driver, state, handler, report)
    except TaskError as error:
        report.error = error
        if handler.on_error is None:
            raise
        driver.commit(state, [], following=handler.on_error, report=report, error=error)
        return handler.on_error


def _run_model(visit: Visit, saga: Saga) -> Any:
    if isinstance(visit.model, CompensatableTask):
        following = saga.do(visit)
    elif isinstance(visit.model, StreamTask):
        following = StreamExecution(visit).run()
    else:
        following = visit.model.drive(visit)
    visit.driver.checked(visit.state, following)
    visit.commit(following)
    return following


def _run_task(driver: Driver, state: Any, handler: Single, report: StateReport) -> Any:
    config = driver.definition.config_of(handler, handler.task)
    report.attempts = driver.scribe.attempts_made()
    attempts = _in_worker if driver.is_for_worker(config) else _in_parent
    value, operations = attempts(driver, state, handler, config, report)
    is_router = handler.is_router or isinstance(handler.task, RouterTask)
    if operations and is_router:
        raise WorkflowError(
            f"state {label(state)} is a router and must not write to the store; use register()",
            state=state,
            path=driver.path,
        )
    driver.checked(state, value)
    if not is_router:
        driver.commit(state, [("its task", operations)] if operations else [], following=value, report=report)
    return value


def _in_parent(
    driver: Driver, state: Any, handler: Single, config: TaskConfig, report: StateReport
) -> tuple[Any, Sequence[Operation]]:
    call = driver.calls.get(state)
    if call is None:
        call = driver.calls[state] = bound_call(entry_point(handler.task), (1, 0))
    while True:
        where = Where(state, None, report.attempts + 1, driver.path)
        admitted = let_through(driver, config, where)
        report.attempts += 1
        view = driver.view()
        context = driver.context(state, view, report.attempts)
        try:
            value = call(context)
        except BaseException as own:  # noqa: BLE001 - SystemExit too is a failed attempt
            admitted.end(None if driver.token.is_cancelled else False)
            # A task that gave up because the run was cancelled has not failed.
            driver.check()
            error = wrap(own, where)
        else:
            admitted.end(True)
            return value, view.operations
        driver.back_off(config, error)


def _in_worker(
    driver: Driver, state: Any, handler: Single, config: TaskConfig, report: StateReport
) -> tuple[Any, Sequence[Operation]]:
    station = driver.station()
    header = driver.header(state, [handler.task], driver.deadline)
    lane = station.lane(state)
    while True:
        where = Where(state, None, report.attempts + 1, driver.path)
        admitted = let_through(driver, config, where)
        report.attempts += 1
        lane.begin(header, None, 0)
        call = Call(None, report.attempts, None, config.attempt_timeout, config.memory_limit, config.runs_alone)
        try:
            lane.submit([call])
            event = driver.await_outcome(lane, state)
        except BaseException:
            driver.mailbox.kill(lane)
            admitted.end(None)
            raise
        admitted.end(isinstance(event, Finished) and event.succeeded)
        if isinstance(event, Finished) and event.succeeded:
            try:
                return None if event.payload is None else loads(event.payload), event.operations
            except BaseException as error:
                raise unpacking_error(error, where) from error
        driver.back_off(config, error_of(event, where))
