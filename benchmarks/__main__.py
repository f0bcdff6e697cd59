"""``python -m benchmarks [names...] [--quick] [--json FILE]``: measure, print one table, write JSON."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import _machine, _orphans
from benchmarks._harness import RowResult, as_json, run_row
from benchmarks._row import Options
from benchmarks._table import notes, table

NAMES = (
    "book",
    "noop",
    "growth",
    "million",
    "roundtrip",
    "arrays",
    "small_get",
    "kill",
    "kill_memory",
    "transitions",
    "journal",
    "journaled",
    "limits",
    "scheduler",
    "ad_exchange",
    "import",
)
#: Takes gigabytes, so only when asked for or in a whole run.
NOT_QUICK = frozenset({"kill_memory"})
RESULTS = Path(__file__).parent / "results.json"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure canobatch beside its peers, in the same run."
    )
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"what to measure: {', '.join(NAMES)}; default: everything"
    )
    parser.add_argument("--quick", action="store_true", help="less work and few repeats; not for publishing")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="default: benchmarks/results.json")
    parser.add_argument(
        "--workers", type=int, default=_machine.cores(), metavar="N", help="default: the cores this process may use"
    )
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="how long to wait before each repeat for other programs to be quiet; default: 10, with --quick 0",
    )
    options = parser.parse_args(arguments)
    if options.patience is None:
        options.patience = 0.0 if options.quick else 10.0
    options.names = [name.replace("-", "_") for name in options.names]
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    return options


def main(arguments: list[str]) -> int:
    """Measure; return 1 if a figure of canobatch could not be measured."""
    asked = parse(arguments)
    options = Options(quick=asked.quick, workers=asked.workers, patience=asked.patience)
    names = asked.names or [name for name in NAMES if not (asked.quick and name in NOT_QUICK)]
    started = datetime.now(UTC)
    _orphans.adopt()
    # An end by signal must end the sides too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: list[RowResult] = []
    is_interrupted = False
    for name in names:
        try:
            results.append(run_row(f"benchmarks.bench_{name}", options, _tell))
        except KeyboardInterrupt:
            _orphans.end_leftovers()
            is_interrupted = True
            break
    about = _machine.describe()
    written = {
        "date": started.date().isoformat(),
        "quick": options.quick,
        "workers": options.workers,
        "machine": about,
        "rows": [as_json(result) for result in results],
    }
    asked.json.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{written['date']}, {', '.join(f'{name} {value}' for name, value in about.items())}\n")
    print(table(results))
    print(f"\n{notes(results)}")
    if is_interrupted:
        print("interrupted: the rows above were finished before", file=sys.stderr)
        return 130
    return 1 if any(result.failed for result in results) else 0


def _tell(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
