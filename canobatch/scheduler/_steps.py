"""Steps: what happens to flows is written down first, and then their runs begin."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from canobatch.scheduler._crew import Crew
    from canobatch.scheduler._flow import LiveFlow
    from canobatch.scheduler.ledger import Ledger


class Steps:
    """Makes steps; its caller sees to it that there is one at a time."""

    def __init__(self, ledger: Ledger, crew: Crew) -> None:
        self._ledger = ledger
        self._crew = crew

    @contextmanager
    def one(self, flow: LiveFlow) -> Iterator[None]:
        """Make what is done inside a step of a flow: all of it, or none."""
        try:
            with self._ledger.transaction(), self._ledger.part(flow.id):
                yield
        except BaseException:
            flow.undo()
            raise
        try:
            flow.end_step()
        finally:
            self._crew.settle()

    def together(self, steps: Sequence[tuple[LiveFlow, Callable[[], None]]]) -> dict[LiveFlow, Exception]:
        """Make a step of each of several flows, in one transaction; return which failed, and of what.

        A flow is in it once. One that fails does not hold up the others, unless nothing can be written at all.
        """
        failed: dict[LiveFlow, Exception] = {}
        try:
            with self._ledger.transaction():
                for flow, act in steps:
                    try:
                        with self._ledger.part(flow.id):
                            act()
                    except Exception as error:  # noqa: BLE001 - handed to the caller
                        failed[flow] = error
        except Exception as error:  # noqa: BLE001 - as above
            failed = {flow: failed.get(flow, error) for flow, _ in steps}
        for flow, _ in steps:
            try:
                if flow in failed:
                    flow.undo()
                else:
                    flow.end_step()
            except Exception as error:  # noqa: BLE001 - as above
                failed[flow] = error
        self._crew.settle()
        return failed
