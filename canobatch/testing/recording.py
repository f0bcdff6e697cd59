"""RecordingObserver and the assertions on what it saw."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from canobatch.definition import label

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from canobatch.engine import Run, RunReport
    from canobatch.observe import Event
    from canobatch.workflow import Workflow


class RecordingObserver:
    """Keeps every event.

    Example:
        >>> recording = RecordingObserver()                               # doctest: +SKIP
        >>> workflow.with_observer(recording).orchestrate(S.START)        # doctest: +SKIP
        >>> recording.kinds                                               # doctest: +SKIP
        ['run_started', 'state_entered', 'state_entered', 'run_finished']
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def on_event(self, event: Event) -> None:
        """Keep one event."""
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    @property
    def kinds(self) -> list[str]:
        """The kinds of all events, in order."""
        return [event.kind for event in self.events]

    @property
    def path(self) -> list[Any]:
        """The states that were entered, in order, exits included."""
        return [event.state for event in self.events if event.kind == "state_entered"]

    def of(self, *kinds: str) -> list[Event]:
        """Return the events of these kinds."""
        return [event for event in self.events if event.kind in kinds]

    def wait_for(self, kind: str, *, count: int = 1, timeout: float = 30.0) -> Event:
        """Wait until there have been ``count`` events of a kind, and return the last of them.

        Raises:
            TimeoutError: That took longer than ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.of(kind)) >= count, timeout):
                raise TimeoutError(f"no {count} {kind} within {timeout:g} s; there were {_listed(self.kinds)}")
            return self.of(kind)[count - 1]

    def clear(self) -> None:
        """Forget them all."""
        with self._changed:
            self.events.clear()


def _listed(things: Iterable[Any]) -> str:
    return ", ".join(str(thing) for thing in things) or "none"


def _path(run: Run | RunReport | RecordingObserver | Sequence[Any]) -> list[Any]:
    if hasattr(run, "report"):
        run = run.report()
    return list(run.path) if hasattr(run, "path") else list(run)


def assert_path(run: Run | RunReport | RecordingObserver | Sequence[Any], expected: Sequence[Any]) -> None:
    """Check that a run entered just these states, in this order, the exit included.

    Args:
        run: A run, its report, or a recording.
        expected: States, or their labels.
    """
    found = _path(run)
    if len(found) == len(expected) and all(
        state == wanted or label(state) == wanted for state, wanted in zip(found, expected, strict=True)
    ):
        return
    at = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b and label(a) != b), None)
    at = min(len(found), len(expected)) if at is None else at
    raise AssertionError(
        f"the run went another way from step {at + 1} on:\n"
        f"  expected  {' -> '.join(_name(state) for state in expected)}\n"
        f"  went      {' -> '.join(map(label, found))}"
    )


def _name(state: Any) -> str:
    return state if isinstance(state, str) else label(state)


def assert_compensation_ran(recording: RecordingObserver, expected: Sequence[Any]) -> None:
    """Check that just these states were rolled back without an error, in this order: the last that ran comes first.

    Args:
        recording: What observed the run.
        expected: States, or their labels.
    """
    ended = recording.of("compensation_finished")
    failed = [event for event in ended if event.error is not None]
    if failed:
        raise AssertionError(f"compensating state {label(failed[0].state)} failed: {failed[0].error}")
    found = [event.state for event in ended]
    if len(found) != len(expected) or any(a != b and label(a) != b for a, b in zip(found, expected, strict=True)):
        raise AssertionError(
            "other states were compensated than expected:\n"
            f"  expected  {_listed(_name(state) for state in expected)}\n"
            f"  were      {_listed(map(label, found))}"
        )


def assert_all_states_entered(recording: RecordingObserver, workflow: Workflow) -> None:
    """Check that the runs observed went through every state that has a handler."""
    entered = recording.path
    missing = [label(state) for state in workflow.states if state not in entered]
    if missing:
        raise AssertionError(f"no run entered {_listed(missing)}")


_ENDS = {
    "run": ({"run_started", "run_resumed"}, {"run_finished", "run_failed", "run_cancelled"}),
    "split": ({"split_started"}, {"split_finished"}),
    "branch": ({"branch_started"}, {"branch_finished", "branch_killed"}),
    "compensation": ({"compensation_started"}, {"compensation_finished"}),
}


def assert_balanced(recording: RecordingObserver) -> None:
    """Check that whatever began also ended, once the runs observed are over."""
    open_ones: Counter[tuple[Any, ...]] = Counter()
    for event in recording.events:
        for what, (starts, ends) in _ENDS.items():
            key = (what, event.run_id, None if what == "run" else event.state, event.branch)
            if event.kind in starts:
                open_ones[key] += 1
            elif event.kind in ends:
                open_ones[key] -= 1
                if open_ones[key] < 0:
                    raise AssertionError(f"{event.kind} without a start: {event}")
    left = [key for key, count in open_ones.items() if count]
    if left:
        raise AssertionError(f"began and did not end: {_listed(left)}")
