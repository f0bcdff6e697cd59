"""The README: its snippets run, one after the other, and its commands and options are those there are."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from canobatch.cli.app import COMMANDS, load_command
from tests.support.launched import PROGRAM

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)

#: What the README leaves to the imagination.
BEFORE = "def load_weights():\n    return None\n"
#: What would wait for a signal.
FOR_EVER = "    running.wait()\n"


def test_the_snippets_run_in_their_order(run_script):
    """Whoever copies all of them into one script gets what the comments say."""
    (test,) = (block for block in BLOCKS if "inline_backend" in block)
    source = BEFORE + "\n".join(block for block in BLOCKS if block != test)
    assert source.count(FOR_EVER) == 1
    done = run_script(source.replace(FOR_EVER, ""))
    assert (done.returncode, done.stderr) == (0, "")
    printed = done.stdout.split()
    promised = re.findall(r"# prints (\d+)", source)
    assert printed[: len(promised)] == promised


def test_the_test_in_it_passes(tmp_path):
    """The quickstart and the test of it, as a project of its own."""
    (test,) = (block for block in BLOCKS if "inline_backend" in block)
    quickstart = BLOCKS[0].replace("final =", 'if __name__ == "__main__":\n    final =')
    (tmp_path / "test_words.py").write_text(quickstart + test)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["canobatch.testing.plugin"]\n')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_words.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_the_commands_of_the_shell_run(tmp_path):
    """Each line of the first look at the shell does what it says, up to those that need a flow."""
    (block,) = (block for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE) if "init" in block)
    lines = [line.partition("   #")[0].strip() for line in block.splitlines()]
    assert lines.pop() == "canobatch serve flows.py"
    (tmp_path / "module.py").write_text("def function(line):\n    return line * 2\n")
    (tmp_path / "inputs.txt").write_text("a\nb\n")
    environment = os.environ | {"CANOBATCH_HOME": str(tmp_path / "home")}
    script = f'canobatch() {{ {" ".join(PROGRAM)} "$@"; }}\nset -e\n' + "\n".join(lines)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results.txt").read_text() == "aa\nbb\n"


def _in_the_table():
    rows = [
        line
        for line in TEXT.splitlines()
        if re.match(r"\| `(init|check|graph|run|map|resume|runs|serve|flows|doc|comp)", line)
    ]
    return dict(
        re.match(r"(\w+) ?(.*)", entry).groups()
        for row in rows
        for entry in re.findall(r"`([^`]+)`", row.split(" | ")[0])
    )


def test_the_table_has_every_command():
    """No command is missing, and none is there that does not exist."""
    assert sorted(_in_the_table()) == sorted(name for group in COMMANDS.values() for name in group)


@pytest.mark.parametrize("name", _in_the_table())
def test_the_table_shows_every_option(name):
    """Each option of a command is shown, but those that many commands have."""
    of_many = {"--help", "--home", "--verbose", "--json"}
    command = load_command(name)
    options = [option for option in command.params if isinstance(option, click.Option)]
    shown = re.findall(r"(?<!\w)--?[a-z][a-z-]*", _in_the_table()[name])
    known = {flag for option in options for flag in option.opts}
    assert set(shown) <= known
    assert [option.opts for option in options if not {*option.opts} & {*shown, *of_many}] == []


def test_the_quickstart_is_the_example():
    """The same program, which the example lays out otherwise; it shows the state too."""

    def statements(source):
        return [ast.dump(node) for node in ast.parse(source).body if not isinstance(node, ast.Import | ast.ImportFrom)]

    example = statements((ROOT / "examples" / "quickstart.py").read_text())
    assert example[1:-1] == statements(BLOCKS[0])


def test_the_links_lead_somewhere():
    """Files that are named are there."""
    targets = re.findall(r"\]\((?!http)([^)#]+)", TEXT) + re.findall(r"`(tests/[^`]+)`", TEXT)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
