"""The benchmarks run and write what their README promises. No figure is judged here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES
from benchmarks._row import BEST_PEER, OURS, How

ROOT = Path(__file__).resolve().parents[2]


def quick(written: Path, *names: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *names, "--json", str(written)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_row_can_be_judged(name: str) -> None:
    """Each row has its name, one side of ours, and targets against sides that it has."""
    row = importlib.import_module(f"benchmarks.bench_{name}").ROW
    assert row.name == name
    sides = [side.name for side in row.sides]
    assert sides.count(OURS) == 1
    assert len(set(sides)) == len(sides)
    for figure in row.figures:
        for target in figure.targets:
            assert (target.against is None) == (target.how is How.VALUE)
            assert target.against in {None, BEST_PEER, *sides}


def test_quick_run_writes_json_in_its_shape(tmp_path: Path) -> None:
    """Two quick rows give one table, and JSON with our figure beside every side that is installed."""
    written = tmp_path / "figures.json"
    done = quick(written, "import", "transitions")
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("| what") for line in done.stdout.splitlines()) == 1

    report = json.loads(written.read_text("utf-8"))
    assert report["quick"] is True
    assert {"cores", "system", "python"} <= set(report["machine"])
    assert [row["name"] for row in report["rows"]] == ["import", "transitions"]
    for row in report["rows"]:
        assert row["left_over"] == 0
        assert not row["failed"]
        for figure in row["figures"]:
            ours, *others = figure["sides"]
            assert (ours["name"], ours["problem"]) == ("canobatch", None)
            assert len(ours["samples"]) == ours["count"] > 0
            assert ours["min"] <= ours["q1"] <= ours["median"] <= ours["q3"]
            assert all(side["count"] > 0 or side["problem"] == "not installed" for side in others)
            for target in figure["targets"]:
                assert target["met"] == (target["value"] <= target["limit"])


def test_rows_on_data_measure_what_they_say(tmp_path: Path) -> None:
    """Arrays and small values are put and read by all sides, which find the same in them; all our figures are there."""
    written = tmp_path / "figures.json"
    done = quick(written, "arrays", "small_get")
    assert done.returncode == 0, done.stderr
    for row in json.loads(written.read_text("utf-8"))["rows"]:
        assert row["disagreements"] == []
        for figure in row["figures"]:
            ours, *others = figure["sides"]
            assert ours["count"] > 0
            assert all(side["problem"] in {None, "not installed"} for side in others)
            assert all(target["value"] is not None for target in figure["targets"])


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    """A name that is no benchmark is a usage error that lists the names, and nothing is written."""
    written = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "speed", "--json", str(written)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "roundtrip" in done.stderr
    assert not written.exists()
