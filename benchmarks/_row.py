"""What a benchmark is: a row with figures and targets, measured by several sides."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

#: What one repeat of a side measured: figure name → number, in the figure's unit.
Sample = dict[str, float]
#: Makes one repeat.
Measure = Callable[[], Sample]

#: The name of the side that is judged.
OURS = "canobatch"
#: In a target: against the peer with the best median.
BEST_PEER = "best peer"


@dataclass(frozen=True, slots=True)
class Options:
    """What every side is told.

    Args:
        quick: Smaller work and fewer repeats; for a look, not for a figure to publish.
        workers: How many workers each pool has, where the row does not fix it.
        patience: Seconds that the harness waits before each repeat for other programs to be quiet.
    """

    quick: bool
    workers: int
    patience: float = 0.0


class Kind(StrEnum):
    """What a side is to the row."""

    OURS = "ours"
    #: A lower bound: no library could be faster.
    BOUND = "bound"
    PEER = "peer"
    #: The same library under other conditions; shown, not judged.
    VARIANT = "variant"


@dataclass(frozen=True, slots=True)
class Side:
    """One contender of a row. It runs in a process of its own, so that no side disturbs another.

    Args:
        name: As printed.
        prepare: Gives, for as long as its context is open, a function that makes one repeat.
        kind: What it is to the row.
        needs: Module that must be installed.
        every: It takes part in every n-th round only; for sides that are slow.
    """

    name: str
    prepare: Callable[[Options], AbstractContextManager[Measure]]
    kind: Kind = Kind.PEER
    needs: str | None = None
    every: int = 1

    @property
    def installed(self) -> bool:
        """Whether the module it needs is there."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


class How(StrEnum):
    """What a target limits."""

    VALUE = "value"
    #: Our figure over the other side's, round by round.
    RATIO = "ratio"
    #: Our figure less the other side's, round by round.
    EXCESS = "excess"


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of a figure; ``against`` names a side, or is `BEST_PEER`."""

    limit: float
    how: How = How.VALUE
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that each repeat gives."""

    name: str
    title: str
    unit: str
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One benchmark.

    Args:
        name: As given on the command line.
        title: What is measured.
        figures: The numbers that each repeat gives.
        sides: Who is measured; they alternate.
        rounds: How often each side is measured.
        quick_rounds: The same with ``--quick``.
        warm_ups: Repeats of each side before the first that counts.
        agree: Entries of a sample that must be the same in all sides that have them: the proof that they did the
            same work.
        remark: Printed below the table.
    """

    name: str
    title: str
    figures: tuple[Figure, ...]
    sides: tuple[Side, ...]
    rounds: int
    quick_rounds: int
    warm_ups: int = 1
    agree: tuple[str, ...] = ()
    remark: str = ""
