"""Events: one plain record for every transition of a run.

What begins also ends, whatever becomes of the run: its first event is "run_started" (or "run_resumed") and its
last one of "run_finished", "run_failed", "run_cancelled"; between them each "split_started" has its
"split_finished", and each "branch_started" its "branch_finished" or "branch_killed".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from canobatch.definition import label
from canobatch.effects import describe_error
from canobatch.join import BranchResult, SplitResult

if TYPE_CHECKING:
    from datetime import datetime


class Event(NamedTuple):
    """Something that happened in a run. Made in the launcher's process, and only when someone listens.

    ======================  ====================================================  ==============================
    kind                    says                                                  detail
    ======================  ====================================================  ==============================
    run_started             a run begins; ``state`` is its initial one            the workflow's name
    run_resumed             the same for a run that had begun before              the workflow's name
    run_finished            it reached the exit ``state``
    run_failed              it ended without                                      the error
    run_cancelled           it was cancelled                                      the error, with its reason
    state_entered           it is in ``state``, exits included
    split_started           a split begins                                        how many branches, or None
    split_finished          it is settled, and its losers are dead                the `SplitResult`, or None
    branch_kept             it was accepted before the run was resumed            its `BranchResult`
    branch_started          a branch was given to a worker
    branch_finished         it ended for good                                     its `BranchResult`
    branch_killed           its join, a cancel or a timeout of more than itself   its `BranchResult`
                            ended it
    retry                   ``attempt`` failed and another follows                the error
    progress                a task said how far it is                             (done, total, message)
    circuit_open            an attempt was not made                               the error
    item_failed             an item of a batch or stream failed; ``branch`` is    the error
                            its index
    checkpoint              a cursor is kept                                      the cursor
    compensation_started    what a state did is being undone
    compensation_finished   that ended                                            the error, or None
    flow_fired              a scheduler starts a run of a flow                    its `FlowRecord`
    flow_skipped            it does not                                           its `FlowRecord`
    flow_ended              a run of a flow has ended; ``detail.kind`` says how   its `FlowRecord`
    ======================  ====================================================  ==============================

    ``seq`` counts the events of a run, or of a scheduler, from 1. ``time`` is UTC. ``branch`` and ``attempt`` are
    None where they mean nothing.
    """

    run_id: str
    seq: int
    time: datetime
    kind: str
    state: Any = None
    branch: int | None = None
    attempt: int | None = None
    detail: Any = None

    @property
    def error(self) -> BaseException | None:
        """What went wrong, if something did."""
        own = self.detail.error if isinstance(self.detail, BranchResult) else self.detail
        return own if isinstance(own, BaseException) else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON: the state by its label, the detail as what it says."""
        return {
            "run_id": self.run_id,
            "seq": self.seq,
            "time": self.time.isoformat(),
            "kind": self.kind,
            "state": None if self.state is None else label(self.state),
            "branch": self.branch,
            "attempt": self.attempt,
            **_plain(self.kind, self.detail),
        }


#: What a plain detail says.
_MEANINGS = {"run_started": "workflow", "run_resumed": "workflow", "split_started": "total"}


def _plain(kind: str, detail: Any) -> dict[str, Any]:
    if detail is None:
        return {}
    if isinstance(detail, BaseException):
        return {"error": describe_error(detail)}
    if isinstance(detail, BranchResult):
        facts = detail.to_dict()
        return {name: facts[name] for name in ("status", "error", "attempts", "duration", "cpu_time", "max_rss")}
    if isinstance(detail, SplitResult):
        return dict(detail.counts)
    if kind == "progress":
        return dict(zip(("done", "total", "message"), detail, strict=True))
    if kind in _MEANINGS:
        return {_MEANINGS[kind]: detail}
    if kind.startswith("flow_"):
        ending = {"outcome": detail.kind} if kind == "flow_ended" else {}
        return {"flow": detail.flow, "reason": detail.reason, **ending}
    return {"detail": detail if isinstance(detail, str | int | float | dict | list) else repr(detail)}


class Observer(Protocol):
    """Is told what happens, one event at a time, in the run's own thread: be quick.

    What it raises is logged; the run and the other observers go on.
    """

    def on_event(self, event: Event) -> None:
        """Take one event."""
