"""Transitions: a state in the parent that leads to itself; no journal, no observers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

from benchmarks._peers import library
from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Sample, Side, Target


class State(Enum):
    """The states of the workflow."""

    AGAIN = auto()
    DONE = auto()


def transitions(options: Options) -> int:
    """Return how many transitions a repeat makes."""
    return 2_000 if options.quick else 10_000


@contextmanager
def canobatch_side(options: Options) -> Iterator[Measure]:
    """One run of a self-looping state."""
    from canobatch import Workflow

    count = transitions(options)
    left = 0

    def again() -> State:
        nonlocal left
        left -= 1
        return State.AGAIN if left else State.DONE

    workflow: Workflow = Workflow("loop").register(State.AGAIN, again).add_exit_state(State.DONE)

    def measure() -> Sample:
        nonlocal left
        left = count
        started = time.perf_counter()
        workflow.orchestrate(State.AGAIN)
        return {"transition": (time.perf_counter() - started) / count * 1e6}

    yield measure


@contextmanager
def statemachine_side(options: Options) -> Iterator[Measure]:
    """python-statemachine: an event that leads a state to itself, with a callback."""
    statemachine = library("statemachine")
    count = transitions(options)
    seen: list[int] = [0]

    def on_again(_machine: object) -> None:
        seen[0] += 1

    again_state = statemachine.State(initial=True)
    done_state = statemachine.State(final=True)
    body = {
        "again_state": again_state,
        "done_state": done_state,
        "again": again_state.to.itself(),
        "end": again_state.to(done_state),
        "on_again": on_again,
    }
    machine = type(statemachine.StateMachine)("Loop", (statemachine.StateMachine,), body)()

    def measure() -> Sample:
        seen[0] = 0
        started = time.perf_counter()
        for _ in range(count):
            machine.again()
        elapsed = time.perf_counter() - started
        assert seen[0] == count
        return {"transition": elapsed / count * 1e6}

    yield measure


@contextmanager
def transitions_side(options: Options) -> Iterator[Measure]:
    """transitions: an event that leads a state to itself, with a callback."""
    count = transitions(options)
    seen: list[int] = [0]

    class Loop:
        """The model; the machine adds its event methods."""

        def on_again(self) -> None:
            """Count."""
            seen[0] += 1

    machine = library("transitions").Machine(Loop(), states=["again", "done"], initial="again", auto_transitions=False)
    machine.add_transition("again_event", "again", "=", after="on_again")

    def measure() -> Sample:
        seen[0] = 0
        event = machine.model.again_event
        started = time.perf_counter()
        for _ in range(count):
            event()
        elapsed = time.perf_counter() - started
        assert seen[0] == count
        return {"transition": elapsed / count * 1e6}

    yield measure


ROW = Row(
    name="transitions",
    title="state transition in the parent, without journal",
    figures=(Figure("transition", "per transition", "µs", (Target(15.0),)),),
    sides=(
        Side(OURS, canobatch_side, Kind.OURS),
        Side("python-statemachine", statemachine_side, needs="statemachine"),
        Side("transitions", transitions_side, needs="transitions"),
    ),
    rounds=21,
    quick_rounds=3,
    remark="The peers only change a state and call a method; they run no store, timing or report.",
)
