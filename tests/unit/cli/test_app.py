"""The command line as a whole: help, names, options, exit codes, what is imported when."""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from canobatch import errors
from canobatch.cli import exits
from canobatch.cli.app import COMMANDS, app, load_command
from canobatch.cli.command import Command, Failure, command

ALL = [name for part in COMMANDS.values() for name in part]
FLOW = """
from dataclasses import dataclass
from canobatch import Workflow

@dataclass
class Params:
    n: int
    word: str = "x"

flow = Workflow("small", params=Params).register("start", lambda: "done").register("other", lambda: "done")
flow.add_exit_state("done")
"""


@pytest.mark.parametrize("name", ALL)
def test_every_command_explains_itself_with_an_example(run, name):
    """--help says what it does and shows how it is typed."""
    done = run(name, "--help")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: canobatch {name}")
    assert f"canobatch {name}" in done.stdout.partition("Examples:")[2]
    found = load_command(name)
    assert found.name == name
    assert all(option.help for option in found.params if isinstance(option, click.Option))


def test_help_lists_every_command_and_the_exit_codes(run):
    """The help of the whole has all commands by what they are for."""
    text = run("--help").stdout
    assert all(f"  {name} " in text for name in ALL)
    assert "75 busy" in text


@pytest.mark.parametrize(
    ("typed", "meant"), [("rn", "run"), ("shwo", "show"), ("dcotor", "doctor"), ("rseume", "resume")]
)
def test_a_misspelt_command_is_suggested(run, typed, meant):
    """The name that was probably meant is told."""
    done = run(typed)
    assert done.exit_code == 2
    assert "did you mean" in done.stderr
    assert meant in done.stderr


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("run x.py --name=", "a name; it must not be empty"),
        ("run x.py --on-overlap skip", "only with --name NAME"),
        ("run x.py --home=", "write . for the current one"),
        ("run x.py --timeout inf", "is not a duration above 0"),
        ("map x.py --memory-limit inf", "a number of bytes above 0"),
        ("map x.py --memory-limit 0", "a number of bytes above 0"),
        ("map x.py --memory-limit -5", "a number of bytes above 0"),
        ("map x.py --memory-limit 5X", "a number of bytes above 0; write 1000000, 512M or 2G\n"),
        *(
            (f"map x.py --join {join}", "one of all, any, quorum=3, percentage=90, deadline=10m\n")
            for join in (
                "quorum",
                "quorum=0",
                "quorum=1.5",
                "percentage=0",
                "percentage=200",
                "percentage=nan",
                "percentage=inf%",
                "deadline=0",
                "deadline=-1",
                "deadline=inf",
                "all=3",
                "most",
            )
        ),
        ("init json", "would hide the module of that name"),
        ("init class", "cannot be imported"),
    ],
)
def test_impossible_values_are_wrong_usage(run, workplace, typed, words):
    """What no run could use is refused in one line before anything is loaded or written."""
    done = run(*typed.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("name", ["show", "logs", "resume", "cancel"])
def test_an_empty_run_is_no_run(run, name):
    """`canobatch cancel "$RUN"` with a variable that is not set must not take the only run there is."""
    done = run(name, "")
    assert done.exit_code == 2
    assert "RUN is empty" in done.stderr


def test_ctrl_c_while_a_command_is_found_is_130(run, monkeypatch):
    """Also before there is a command that could tell it."""

    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("canobatch.cli.app.load_command", interrupted)
    done = run("runs")
    assert (done.exit_code, done.stderr) == (130, "Error: interrupted\n")


def test_a_misspelt_option_is_suggested(run, workplace):
    """So is an option."""
    done = run("run", "x.py", "--jbos", "2")
    assert done.exit_code == 2
    assert "--jobs" in done.stderr


IMPORTED = (
    "import sys; sys.argv = {args!r}\n"
    "from canobatch.cli import main\n"
    "try: main()\n"
    "except SystemExit: pass\n"
    "print(sorted(sys.modules), file=sys.stderr)\n"
)


@pytest.mark.parametrize(
    ("args", "strangers"),
    [
        (["--help"], {"loky", "rich", "croniter", "sqlite3", "multiprocessing", "platformdirs", "psutil"}),
        (["run", "--help"], {"loky", "rich", "croniter", "sqlite3", "multiprocessing", "canobatch.workflow"}),
        (["runs"], {"loky", "rich", "croniter", "multiprocessing", "canobatch.workflow", "canobatch.pool"}),
        (["init", "--help"], {"loky", "rich", "croniter", "sqlite3", "multiprocessing", "canobatch.workflow"}),
    ],
)
def test_nothing_is_imported_before_it_is_needed(args, strangers, tmp_path):
    """What costs time to load is not loaded by what does not need it."""
    program = IMPORTED.format(args=["canobatch", *args])
    env = {**os.environ, "CANOBATCH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stderr.splitlines()[-1]))
    assert "click" in loaded
    assert not loaded & strangers


def test_init_writes_a_workflow_that_check_accepts(run, workplace):
    """The first file that a user gets has no problem, and is never written over another."""
    done = run("init", "my_etl")
    assert (done.exit_code, done.stdout) == (0, "my_etl.py\n")
    assert run("check", "my_etl.py").exit_code == 0
    (workplace / "my_etl.py").write_text("mine")
    again = run("init", "my_etl")
    assert again.exit_code == 2
    assert "exists" in again.stderr
    assert (workplace / "my_etl.py").read_text() == "mine"
    assert run("init", "my-etl").exit_code == 2


def test_graph_is_mermaid(run, workplace):
    """The diagram goes to standard output."""
    (workplace / "small_flow.py").write_text("print('imported')\n" + FLOW)
    done = run("graph", "small_flow.py")
    assert done.exit_code == 0
    assert "stateDiagram-v2" in done.stdout


def test_a_dry_run_runs_nothing_and_says_what_it_would_do(run, workplace):
    """States, tasks and parameters are shown; the parameters are checked."""
    (workplace / "small_flow.py").write_text(FLOW)
    done = run("run", "small_flow.py", "--dry-run", "-p", "n=3")
    assert done.exit_code == 0
    assert "nothing was run" in done.stdout
    assert "Params(n=3, word='x')" in done.stdout
    assert not (workplace.parent / "home").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["-p", "n=x"], 2, "n='x' is not a whole number"),
        ([], 2, "n is missing"),
        (["-p", "n=1", "--initial", "sart"], 2, "did you mean start?"),
        (["-p", "n=1", "--jobs", "0"], 2, "--jobs"),
        (["-p", "n=1", "--timeout", "soon"], 2, "is not a duration"),
    ],
)
def test_usage_is_checked_before_anything_runs(run, workplace, args, code, words):
    """What the user got wrong is told in a line, with exit code 2."""
    (workplace / "small_flow.py").write_text(FLOW)
    done = run("run", "small_flow.py", *args)
    assert done.exit_code == code
    assert words in done.stderr
    assert not (workplace.parent / "home").exists()


def test_a_target_that_is_not_valid_is_3(run, workplace):
    """Without a traceback, and with one for -v."""
    (workplace / "half_flow.py").write_text("from canobatch import Workflow\nflow = Workflow('x')\n1 / 0\n")
    done = run("run", "half_flow.py")
    assert done.exit_code == 3
    assert done.stderr.startswith("Error: cannot load half_flow.py: ZeroDivisionError")
    assert "Traceback" not in done.stderr
    assert "Traceback" in run("run", "half_flow.py", "-v").stderr
    (workplace / "half_flow.py").write_text("from canobatch import Workflow\nflow = Workflow('x')\n")
    assert run("run", "half_flow.py").exit_code == 3


def test_options_come_from_the_environment_too(run, workplace):
    """CANOBATCH_<COMMAND>_<OPTION> is an option; what is typed wins."""
    (workplace / "small_flow.py").write_text(FLOW)
    env = {"CANOBATCH_RUN_DRY_RUN": "1", "CANOBATCH_RUN_PARAM": "n=5", "CANOBATCH_RUN_JOBS": "7"}
    assert "Params(n=5" in (first := run("run", "small_flow.py", env=env).stdout)
    assert "workers 7" in first
    assert "workers 2" in run("run", "small_flow.py", "-j", "2", env=env).stdout


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_home_may_be_given_before_or_after_the_command(run, workplace, place):
    """What is typed wins over the environment."""
    typed = str(workplace / "typed")
    args = ["--home", typed, "show", "x"] if place == "before" else ["show", "x", "--home", typed]
    done = run(*args)
    assert done.exit_code == 2
    assert f"there is no run 'x' in {typed}" in done.stderr


def test_without_runs_there_is_nothing_to_list(run, workplace):
    """An empty home is no error, and is not made by looking at it."""
    assert run("runs").exit_code == 0
    assert json.loads(run("runs", "--json").stdout) == []
    assert run("doctor").exit_code == 0
    assert run("gc").exit_code == 0
    assert run("flows").exit_code == 2
    assert run("show", "last").exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run, shell):
    """Each shell gets its script."""
    done = run("completion", shell)
    assert done.exit_code == 0
    assert "_CANOBATCH_COMPLETE" in done.stdout


def test_targets_and_commands_are_completed(workplace):
    """After the name of a file come the names in it; nothing of it is run."""
    (workplace / "small_flow.py").write_text("1 / 0\n" + FLOW + "_hidden = 1\n")
    env = {"_CANOBATCH_COMPLETE": "bash_complete", "COMP_WORDS": "canobatch run small_flow.py:f", "COMP_CWORD": "2"}
    done = CliRunner().invoke(app, [], env=env, prog_name="canobatch")
    assert done.stdout == "plain,small_flow.py:flow\n"
    env |= {"COMP_WORDS": "canobatch re", "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, [], env=env, prog_name="canobatch")
    assert {"plain,resume", "plain,reset"} <= set(done.stdout.split())


def test_the_version(run):
    """--version says it."""
    assert run("--version").stdout.startswith("canobatch 0")


# -- exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigurationError("x"), 3),
        (errors.TargetError("x", target="t"), 3),
        (errors.JoinError("x"), 1),
        (errors.TaskError("x"), 1),
        (errors.TaskTimeoutError("x", limit=1.0), 1),
        (errors.WorkflowTimeoutError("x", elapsed=2.0, limit=1.0), 6),
        (errors.RunCancelledError("x"), 1),
        (errors.RunInUseError("x"), 75),
        (errors.RunNotFoundError("x"), 2),
        (errors.JournalError("x"), 1),
        (errors.CompensationError("x"), 5),
        (errors.FlowOverlapError("x", flow="f"), 75),
        (errors.UnknownFlowError("x", flow="f"), 2),
        (OSError("x"), 1),
    ],
)
def test_errors_have_exit_codes(error, code):
    """What a run failed with is what the shell is told."""
    assert exits.code_of(error) == code
    assert isinstance(pickle.loads(pickle.dumps(error)), type(error))


def test_signals_have_the_codes_that_shells_give_them():
    """128 and the number."""
    assert (exits.code_of_signal(2), exits.code_of_signal(15)) == (130, 143)


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (errors.JournalError("the disk is full"), 1, "Error: the disk is full\n"),
        (KeyboardInterrupt(), 130, "Error: interrupted\n"),
        (Failure("so it is", 75), 75, "Error: so it is\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_a_command_ends_with_a_line_and_a_code(raised, code, line, monkeypatch):
    """Errors of ours, a Ctrl-C and a closed pipe never show a traceback."""
    monkeypatch.setattr("canobatch.cli.command.stop_writing", lambda: None)

    @command("fails")
    def fails():
        raise raised

    assert isinstance(fails, Command)
    done = CliRunner().invoke(fails)
    assert (done.exit_code, done.stderr) == (code, line)


def test_colours(run, monkeypatch, workplace):
    """None in a pipe; FORCE_COLOR asks for them, and NO_COLOR wins."""
    assert "\x1b" not in run("nonsense").stderr
    for variables, has_colour in (({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)):
        done = run("show", "last", env=variables)
        assert ("\x1b" in done.stderr) is has_colour


def test_the_script_is_declared():
    """pip makes a program of that name."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"canobatch": "canobatch.__main__:main"}
