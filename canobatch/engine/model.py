"""How a state is run whose task is a model: the one place that chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canobatch.engine.stream import StreamExecution
from canobatch.engine.visit import Visit
from canobatch.errors import TaskError
from canobatch.models import CompensatableTask, StreamTask

if TYPE_CHECKING:
    from canobatch.definition import Single
    from canobatch.engine.driver import Driver
    from canobatch.engine.report import StateReport
    from canobatch.engine.saga import Saga


def run_model(driver: Driver, saga: Saga, state: Any, handler: Single, report: StateReport) -> Any:
    """Run the model of ``state`` to its end and return the next state."""
    visit = Visit(driver, state, handler, report)
    try:
        following = _run(visit, saga)
    except TaskError as error:
        report.error = error
        if handler.on_error is None:
            raise
        return handler.on_error
    driver.checked(state, following)
    visit.commit()
    return following


def _run(visit: Visit, saga: Saga) -> Any:
    if isinstance(visit.model, CompensatableTask):
        return saga.do(visit)
    if isinstance(visit.model, StreamTask):
        return StreamExecution(visit).run()
    return visit.model.drive(visit)
