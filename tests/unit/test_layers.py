"""The contracts of setup.cfg hold, and each of them can fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PARENT_SIDE = {"canobatch.engine", "canobatch.journal", "canobatch.pool", "canobatch.store", "canobatch.workflow"}


def _lint(directory):
    pytest.importorskip("importlinter", reason="import-linter is in the dev extra")
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_the_contracts_hold():
    """lint-imports finds no violation of the architecture."""
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("contract", "path", "line"),
    [
        ("Modules import downwards only", "errors.py", "import canobatch.workflow"),
        ("Modules import downwards only", "utils.py", ""),
        ("Modules import downwards only", "store/__init__.py", "import canobatch.pool"),
        ("Nothing inside imports from the package root", "workflow.py", "from canobatch import __version__"),
        ("Decisions touch no clock, thread, process or file", "retry.py", "import time"),
        ("Decisions touch no clock, thread, process or file", "join.py", "import canobatch._clock"),
        ("The worker side imports no parent-side machinery", "worker.py", "def late():\n    import canobatch.engine"),
        ("The worker side imports no parent-side machinery", "keeper.py", "import canobatch.pool"),
        ("Each of these packages has one door", "task.py", "import psutil"),
        ("Each of these packages has one door", "observe/__init__.py", "import click"),
        ("Each of these packages has one door", "pool/__init__.py", "from loky import cpu_count"),
        ("Each of these packages has one door", "engine/__init__.py", "import sqlite3"),
        ("Each of these packages has one door", "journal/sqlite.py", "import sqlite3"),
        ("Modules import downwards only", "journal/base.py", "import canobatch.store"),
    ],
)
def test_a_violation_is_found(contract, path, line, tmp_path):
    """An import that the architecture forbids turns its contract red."""
    shutil.copytree(ROOT / "canobatch", tmp_path / "canobatch", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    with (tmp_path / "canobatch" / path).open("a") as file:
        file.write(f"\n{line}\n")
    done = _lint(tmp_path)
    assert done.returncode != 0
    assert f"{contract} BROKEN" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        ("worker", {*PARENT_SIDE, "click", "loky", "psutil", "sqlite3"}),
        ("keeper", {*PARENT_SIDE, "click"}),  # loky itself imports psutil
    ],
)
def test_the_worker_side_loads_no_parent_side_machinery(module, strangers):
    """What a worker or the keeper imports is looked at as it runs: contracts do not see a package's __init__."""
    program = f"import canobatch.{module}, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert strangers.intersection(json.loads(done.stdout)) == set()
