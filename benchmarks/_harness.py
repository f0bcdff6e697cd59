"""Measures rows: every side warmed up, then round by round one repeat of each, so that noise hits all alike.

Our figure is compared with another side's round by round, and the median of those ratios is the row's ratio: a machine
that is slow for a while slows both sides of each pair.
"""

from __future__ import annotations

import importlib
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks._orphans import end_leftovers
from benchmarks._quiet import wait_for_quiet
from benchmarks._remote import RemoteSide, SideError
from benchmarks._row import BEST_PEER, OURS, Figure, How, Kind, Options, Row, Target

NOT_INSTALLED = "not installed"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Summary:
    """What the repeats of one side say about one figure."""

    median: float
    q1: float
    q3: float
    low: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Summary:
        """Return the summary of at least one value."""
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(median, q1, q3, min(values), len(values))


@dataclass(slots=True)
class SideResult:
    """The samples of one side, by round, or why there are none."""

    name: str
    kind: Kind
    samples: dict[int, dict[str, float]] = field(default_factory=dict)
    problem: str | None = None

    def values(self, figure: str) -> list[float]:
        """Return what all repeats gave for a figure."""
        return [sample[figure] for sample in self.samples.values() if figure in sample]

    def summary(self, figure: str) -> Summary | None:
        """Return the summary of a figure, or None if it was not measured."""
        values = self.values(figure)
        return Summary.of(values) if values else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a target was met."""

    target: Target
    against: str | None
    value: float | None

    @property
    def met(self) -> bool | None:
        """Whether it was met; None if it could not be measured."""
        return None if self.value is None else self.value <= self.target.limit


@dataclass(slots=True)
class RowResult:
    """What a row came to."""

    row: Row
    sides: list[SideResult]
    load: tuple[float, float]
    #: Repeats that began although other programs kept the machine busy.
    disturbed: int
    left_over: int

    def side(self, name: str) -> SideResult | None:
        """Return a side by name."""
        return next((side for side in self.sides if side.name == name), None)

    def compare(self, figure: str, other: SideResult, how: Callable[[float, float], float]) -> float | None:
        """Return the median over the common rounds of ``how(ours, theirs)``."""
        ours = self.side(OURS)
        if ours is None:
            return None
        pairs = [
            how(ours.samples[number][figure], sample[figure])
            for number, sample in other.samples.items()
            if figure in sample and figure in ours.samples.get(number, {})
        ]
        return statistics.median(pairs) if pairs else None

    def ratio(self, figure: str, other: SideResult) -> float | None:
        """Return our figure over the other side's."""
        return self.compare(figure, other, lambda ours, theirs: ours / theirs)

    def best_peer(self, figure: str) -> SideResult | None:
        """Return the peer with the best median."""
        measured = [
            (summary.median, side.name, side)
            for side in self.sides
            if side.kind is Kind.PEER and (summary := side.summary(figure)) is not None
        ]
        return min(measured)[2] if measured else None

    def verdicts(self, figure: Figure) -> list[Verdict]:
        """Return how our figure stands to each of its targets."""
        return [self._verdict(figure, target) for target in figure.targets]

    def _verdict(self, figure: Figure, target: Target) -> Verdict:
        if target.how is How.VALUE:
            ours = self.side(OURS)
            summary = ours.summary(figure.name) if ours else None
            return Verdict(target, None, summary.median if summary else None)
        against = target.against or ""
        other = self.best_peer(figure.name) if against == BEST_PEER else self.side(against)
        if other is None:
            return Verdict(target, against, None)
        if target.how is How.RATIO:
            return Verdict(target, other.name, self.ratio(figure.name, other))
        return Verdict(target, other.name, self.compare(figure.name, other, lambda ours, theirs: ours - theirs))

    def disagreements(self) -> list[str]:
        """Return where sides that should have done the same work did not."""
        found = []
        for name in self.row.agree:
            by_side = {side.name: sorted(set(side.values(name))) for side in self.sides if side.values(name)}
            if len({tuple(values) for values in by_side.values()}) > 1:
                found.append(f"the sides do not agree on {name}: {by_side}")
        return found

    @property
    def failed(self) -> bool:
        """Whether our own side could not be measured, the work differed, or processes were left over."""
        ours = self.side(OURS)
        return ours is None or ours.problem is not None or bool(self.disagreements()) or self.left_over > 0


def run_row(module: str, options: Options, tell: Callable[[str], None]) -> RowResult:
    """Measure one row; ``tell`` gets a line on progress now and then."""
    row: Row = importlib.import_module(module).ROW
    results = [
        SideResult(side.name, side.kind, problem=None if side.installed else NOT_INSTALLED) for side in row.sides
    ]
    rounds = row.quick_rounds if options.quick else row.rounds
    load_before = os.getloadavg()[0]
    disturbed = 0
    remotes: dict[int, RemoteSide] = {}
    try:
        for index, result in enumerate(results):
            if result.problem is None:
                tell(f"{row.name}: preparing {result.name}")
                remotes[index] = RemoteSide(module, index, options)
                _try(result, remotes[index].wait_ready)
        for number in range(-row.warm_ups, rounds):
            tell(f"{row.name}: " + ("warming up" if number < 0 else f"round {number + 1} of {rounds}"))
            # Another side begins each round, so that none is always measured after the same neighbour's end.
            for place in range(len(results)):
                index = (place + number) % len(results)
                result = results[index]
                if result.problem is None and (number < 0 or number % row.sides[index].every == 0):
                    disturbed += not wait_for_quiet(options.patience)
                    sample = _try(result, remotes[index].measure)
                    if sample is not None and number >= 0:
                        result.samples[number] = sample
    finally:
        for index, remote in remotes.items():
            problem = remote.close()
            results[index].problem = results[index].problem or problem
    return RowResult(row, results, (load_before, os.getloadavg()[0]), disturbed, end_leftovers())


def _try(result: SideResult, call: Callable[[], _T]) -> _T | None:
    try:
        return call()
    except SideError as error:
        result.problem = str(error)
        return None


def as_json(result: RowResult) -> dict[str, Any]:
    """Return a row's result as plain data."""
    return {
        "name": result.row.name,
        "title": result.row.title,
        "load": {"before": result.load[0], "after": result.load[1]},
        "disturbed": result.disturbed,
        "left_over": result.left_over,
        "failed": result.failed,
        "disagreements": result.disagreements(),
        "remark": result.row.remark,
        "figures": [_figure_json(result, figure) for figure in result.row.figures],
    }


def _figure_json(result: RowResult, figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "title": figure.title,
        "unit": figure.unit,
        "targets": [
            {
                "how": verdict.target.how.value,
                "against": verdict.target.against,
                "side": verdict.against,
                "limit": verdict.target.limit,
                "value": verdict.value,
                "met": verdict.met,
            }
            for verdict in result.verdicts(figure)
        ],
        "sides": [_side_json(result, figure, side) for side in result.sides],
    }


def _side_json(result: RowResult, figure: Figure, side: SideResult) -> dict[str, Any]:
    summary = side.summary(figure.name)
    return {
        "name": side.name,
        "kind": side.kind.value,
        "problem": side.problem,
        "median": summary and summary.median,
        "q1": summary and summary.q1,
        "q3": summary and summary.q3,
        "min": summary and summary.low,
        "count": summary.count if summary else 0,
        "ratio": result.ratio(figure.name, side) if summary else None,
        "samples": side.values(figure.name),
    }
