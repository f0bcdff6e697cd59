"""Prints results as Markdown tables that also read well as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks._harness import NOT_INSTALLED, RowResult, SideResult, Verdict
from benchmarks._row import Figure, How, Kind

HEAD = ("what", "side", "median", "quartiles", "canobatch ÷ side", "target", "reached")
_KIND_MARK = {Kind.OURS: "", Kind.BOUND: " (lower bound)", Kind.PEER: "", Kind.VARIANT: " (not judged)"}


def number(value: float) -> str:
    """Return three significant digits."""
    if value == 0:
        return "0"
    digits = max(0, 2 - _exponent(abs(value)))
    return f"{value:.{digits}f}"


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def table(results: Sequence[RowResult]) -> str:
    """Return one table of all rows."""
    lines: list[tuple[str, ...]] = []
    for result in results:
        for figure in result.row.figures:
            lines.extend(_figure_lines(result, figure))
    widths = [max(len(line[column]) for line in [HEAD, *lines]) for column in range(len(HEAD))]
    text = [_line(HEAD, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    return "\n".join([*text, *(_line(line, widths) for line in lines)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _figure_lines(result: RowResult, figure: Figure) -> list[tuple[str, ...]]:
    name = result.row.name if len(result.row.figures) == 1 else f"{result.row.name}: {figure.name}"
    lines: list[tuple[str, ...]] = []
    for side in result.sides:
        summary = side.summary(figure.name)
        if summary is None and side.samples:
            continue
        label = side.name + _KIND_MARK[side.kind]
        if summary is None:
            problem = NOT_INSTALLED if side.problem == NOT_INSTALLED else "failed, see below"
            lines.append((name, label, problem, "", "", "", ""))
            continue
        ratio = result.ratio(figure.name, side) if side.kind is not Kind.OURS else None
        lines.append(
            (
                name,
                label,
                f"{number(summary.median)} {figure.unit}",
                f"{number(summary.q1)} - {number(summary.q3)}",
                number(ratio) if ratio is not None else "",
                *_verdicts(result, figure, side),
            )
        )
    return lines


def _verdicts(result: RowResult, figure: Figure, side: SideResult) -> tuple[str, str]:
    if side.kind is not Kind.OURS:
        return "", "failed, see below" if side.problem else ""
    verdicts = result.verdicts(figure)
    return (
        "; ".join(_asked(verdict, figure) for verdict in verdicts),
        "failed, see below" if side.problem else "; ".join(_answered(verdict, figure) for verdict in verdicts),
    )


def _asked(verdict: Verdict, figure: Figure) -> str:
    limit = f"{verdict.target.limit:g}"
    if verdict.target.how is How.VALUE:
        return f"≤ {limit} {figure.unit}"
    if verdict.target.how is How.EXCESS:
        return f"≤ {limit} {figure.unit} over {verdict.against}"
    return f"≤ {limit} × {verdict.against}"


def _answered(verdict: Verdict, figure: Figure) -> str:
    if verdict.value is None:
        return "not measured"
    unit = "×" if verdict.target.how is How.RATIO else figure.unit
    return f"{'yes' if verdict.met else 'NO'}: {number(verdict.value)} {unit}"


def notes(results: Sequence[RowResult]) -> str:
    """Return the remarks of all rows, and what went wrong."""
    lines: list[str] = []
    for result in results:
        lines.extend([f"{result.row.name}: {result.row.remark}"] if result.row.remark else [])
        lines.extend(f"{result.row.name}: {text}" for text in result.disagreements())
        lines.extend(
            f"{result.row.name}: {side.name}: {side.problem}"
            for side in result.sides
            if side.problem and side.problem != NOT_INSTALLED
        )
        if result.disturbed:
            lines.append(f"{result.row.name}: {result.disturbed} repeats began while other programs were busy")
        if result.left_over:
            lines.append(f"{result.row.name}: {result.left_over} processes were left over and had to be killed")
    return "\n".join(lines)
