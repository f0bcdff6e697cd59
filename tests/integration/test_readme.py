"""The README: its code runs, its quickstart is the example, its commands and links are there."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from canobatch.cli.app import COMMANDS, app, load_command

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

STATES = """
from enum import Enum
from canobatch import *

class S(Enum):
    START = 1
    DONE = 2

def done():
    return S.DONE
"""


def blocks(language):
    """Return the blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Piece:
    """What a piece of the README needs around it to be a whole script, and what that prints."""

    before: str
    after: str
    prints: str
    #: What would take too long, or stands for the reader's own.
    instead: tuple[tuple[str, str], ...] = ()


PIECES = [
    Piece("", "assert final is S.DONE", "6\n"),
    Piece(
        'from canobatch import *\nworkflow = Workflow("squares").add_exit_state("done")',
        'run = workflow.start("square")\nassert run.wait() == "done"\nprint(run.store.get("sum"))',
        "328350\n",
        (("1_000_000", "100"),),
    ),
    Piece(
        "import numpy\nload_weights = lambda: numpy.eye(2)",
        'from canobatch import JoinConfig, JoinStrategy\njoin = JoinConfig(JoinStrategy.all(), "done", into="found")\n'
        'run = workflow.register_map("predict", predict, [[1, 2], [3, 4]], join).add_exit_state("done")'
        '.start("predict")\nrun.wait()\nprint([row.tolist() for row in run.store.get("found")])',
        "[[1.0, 2.0], [3.0, 4.0]]\n",
    ),
    Piece(
        STATES,
        "print([(run.run_id, str(run.status)) for run in workflow.journal.runs()])",
        "[('2026-11-21', 'completed')]\n",
        (("workflow.orchestrate", "workflow.register(S.START, done).add_exit_state(S.DONE)\nworkflow.orchestrate"),),
    ),
    Piece(
        STATES + 'workflow, other = (Workflow(name).register(S.START, done).add_exit_state(S.DONE) for name in "ab")',
        "print(running.status('poll').status)",
        "completed\n",
        (("running.wait()", "running.stop()"), ("S.START, 60,", 'S.START, 60, start="after_interval",')),
    ),
]


@pytest.mark.parametrize("number", range(len(PIECES)))
def test_its_code_runs(number, run_script, tmp_path):
    """Each piece of Python does what it says."""
    piece, source = PIECES[number], blocks("python")[number]
    for old, new in piece.instead:
        assert old in source
        source = source.replace(old, new)
    path = tmp_path / "piece.py"
    path.write_text(f"import os\nos.chdir({str(tmp_path)!r})\n{piece.before}\n{source}\n{piece.after}\n")
    done = run_script(path)
    assert (done.returncode, done.stdout) == (0, piece.prints), done.stderr


def test_every_piece_of_python_is_run():
    """None was added that is not."""
    assert len(blocks("python")) == len(PIECES)


def test_the_quickstart_is_the_example():
    """The same program, which the example lays out otherwise; it shows the state too."""

    def statements(source):
        return [ast.dump(node) for node in ast.parse(source).body if not isinstance(node, ast.Import | ast.ImportFrom)]

    example = statements((ROOT / "examples" / "quickstart.py").read_text())
    assert example[1:-1] == statements(blocks("python")[0])


def words_of_commands():
    """Return each command that the README shows, with the words after it."""
    for block in blocks("sh"):
        for line in re.split(r"\n|;|&&", block):
            words = shlex.split(line, comments=True)
            if words[:1] == ["canobatch"]:
                yield words[1], words[2:]
    for row in re.findall(r"^\| `(.*) \|.*\|$", README, re.MULTILINE):
        for shown in row.split("`"):
            words = re.findall(r"[^\s|\[\]]+", shown)
            if words and words[0] in {name for part in COMMANDS.values() for name in part}:
                yield words[0], words[1:]


def test_its_commands_and_their_options_are_there():
    """What is shown can be typed; and every command is shown."""
    shown = list(words_of_commands())
    for name, words in shown:
        command = load_command(name)
        assert command is not None, name
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if re.match(r"--?\w", word)} <= known, name
    assert {name for name, _ in shown} == set(app.list_commands(click.Context(app)))


def test_its_links_lead_somewhere():
    """Files that are named are there."""
    targets = re.findall(r"\]\((?!http)([^)#]+)", README) + re.findall(r"`(tests/[^`]+)`", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
