"""What all flows of a scheduler use, and what they hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from canobatch.engine import Run
    from canobatch.pool import Backend
    from canobatch.scheduler._crew import Crew
    from canobatch.scheduler.clock import Clock
    from canobatch.scheduler.ledger import FlowRecord, Ledger
    from canobatch.scheduler.pings import Pinger


@dataclass(frozen=True)
class Desk:
    """What all flows of a scheduler use.

    Attributes:
        owner: This process, in words.
        pool: Gives where runs run.
        crew: In whose threads runs are driven.
        tell: Is given each record once it is written.
        on_end: Is called with a flow's id and a run of it, in the run's own thread, when it is through.
    """

    clock: Clock
    ledger: Ledger
    pinger: Pinger
    owner: str
    pool: Callable[[], Backend]
    crew: Crew
    random: Callable[[], float]
    tell: Callable[[FlowRecord], None]
    on_end: Callable[[str, Run], None]


@dataclass
class Start:
    """A run that is to begin, and what makes it."""

    run_id: str
    make: Callable[[], Run]
    run: Run | None = None
    is_triggered: bool = False
