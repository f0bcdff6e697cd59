"""A workflow as a click command of the user's own program."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import click
import pytest
from click.testing import CliRunner

import canobatch
from canobatch import Workflow, click_command
from canobatch.cli import commands


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Params:
    """Make a report."""

    day: str = field(metadata={"help": "Which day."})
    copies: int = 2
    is_draft: bool = False
    colour: Colour = Colour.RED
    size: Literal["a4", "a5"] = "a4"
    tags: list[str] = field(default_factory=list)


def make():
    return Workflow("day report", params=Params).register("start", lambda: "done").add_exit_state("done")


def test_the_options_are_the_typed_parameters():
    """Each field is an option with its type, its default and its help."""
    made = click_command(make())
    assert made.name == "day-report"
    text = CliRunner().invoke(made, ["--help"]).stdout
    assert "Make a report." in text
    assert "--day TEXT" in text
    assert "Which day. Required." in text
    assert "--copies INTEGER" in text
    assert "--is-draft / --no-is-draft" in text
    assert "[RED|BLUE]" in text.upper()
    assert "[a4|a5]" in text
    assert "May be given several times." in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "--day"),
        (["--day", "x", "--copies", "many"], "copies='many' is not a whole number"),
        (["--day", "x", "--size", "a3"], "--size"),
    ],
)
def test_wrong_options_are_usage_errors(args, words):
    """They are told before anything runs, with exit code 2."""
    done = CliRunner().invoke(click_command(make()), args)
    assert done.exit_code == 2
    assert words in done.stderr


def test_given_values_reach_the_dataclass(monkeypatch):
    """Options become an instance; what is not given is left to the dataclass."""
    taken = []
    monkeypatch.setattr("canobatch.cli.launch.launch", lambda *args: taken.append(args))
    args = ["--day", "x", "--is-draft", "--colour", "blue", "--tags", "a", "--tags", "b", "-j", "3"]
    assert CliRunner().invoke(click_command(make()), args).exit_code == 0
    ((_, state, params, _, settings),) = taken
    assert (state, settings.jobs) == ("start", 3)
    assert params == Params("x", 2, True, Colour.BLUE, "a4", ["a", "b"])


def test_without_a_dataclass_there_is_p(monkeypatch):
    """A workflow without declared parameters takes -p name=value."""
    taken = []
    monkeypatch.setattr("canobatch.cli.launch.launch", lambda *args: taken.append(args))
    workflow = Workflow("free").register("start", lambda: "done").add_exit_state("done")
    assert CliRunner().invoke(click_command(workflow, name="go"), ["-p", "n=3"]).exit_code == 0
    assert taken[0][2] == {"n": 3}


def test_a_field_of_a_name_of_ours_wins():
    """A parameter called jobs is the user's."""

    @dataclass
    class Own:
        jobs: str = "cleaning"

    workflow = Workflow("own", params=Own).register("start", lambda: "done").add_exit_state("done")
    options = [param for param in click_command(workflow).params if param.name == "jobs"]
    assert [option.opts for option in options] == [["--jobs"]]


def test_the_launcher_s_commands_are_mounted():
    """run, resume and logs become commands of a group of the user's, which keeps its own."""

    @click.group()
    def cli():
        """My program."""

    assert commands(cli) is cli
    cli.add_command(click_command(make(), name="report"))
    assert sorted(cli.commands) == ["logs", "report", "resume", "run"]
    assert CliRunner().invoke(cli, ["run", "nothing.py"]).exit_code == 3


def test_the_root_has_it():
    """canobatch.click_command is the same function."""
    assert canobatch.click_command is click_command
