"""Steps: what happens to flows is written down first, and then their runs begin."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from canobatch.scheduler._flow import LiveFlow
    from canobatch.scheduler.ledger import Ledger


@contextmanager
def step(ledger: Ledger, flow: LiveFlow) -> Iterator[None]:
    """Make what is done inside one step of a flow: all of it, or none."""
    try:
        with ledger.transaction(), ledger.part(flow.id):
            yield
    except BaseException:
        flow.undo()
        raise
    flow.end_step()


def step_together(ledger: Ledger, steps: Sequence[tuple[LiveFlow, Callable[[], None]]]) -> dict[LiveFlow, Exception]:
    """Make a step of each of several flows, all in one transaction; return which failed, and of what.

    A flow is in it once. One that fails does not hold up the others, unless nothing can be written at all.
    """
    failed: dict[LiveFlow, Exception] = {}
    try:
        with ledger.transaction():
            for flow, act in steps:
                try:
                    with ledger.part(flow.id):
                        act()
                except Exception as error:  # noqa: BLE001 - handed to the caller
                    failed[flow] = error
    except Exception as error:  # noqa: BLE001 - as above
        failed = {flow: failed.get(flow, error) for flow, _ in steps}
    for flow, _ in steps:
        if flow in failed:
            flow.undo()
        else:
            flow.end_step()
    return failed
