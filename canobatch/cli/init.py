"""``init``: a first workflow, commented, that runs."""

from __future__ import annotations

import keyword
import sys
from pathlib import Path

import click

from canobatch.cli.command import Failure, command, say

TEMPLATE = '''\
"""{name}: counts words, some texts at a time.

    canobatch check {file}
    canobatch run {file} -p texts=20 -p jitter=0.2
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from enum import Enum, auto

from canobatch import JoinConfig, JoinStrategy, Retry, TaskConfig, Workflow

WORDS = "state task split branch join store retry kill".split()


class State(Enum):
    """The states of a run; it begins in the first that is registered below."""

    LOAD = auto()
    COUNT = auto()
    REPORT = auto()
    DONE = auto()


@dataclass
class Params:
    """How many texts there are, and how unevenly long they take; checked before anything runs."""

    texts: int = 8
    jitter: float = 0.1


def load(ctx):
    """Make the texts. A task returns the next state; what it puts into the store is kept once it has succeeded."""
    ctx.store.put("texts", [random.choices(WORDS, k=1000) for _ in range(ctx.params.texts)])
    return State.COUNT


def count(ctx, text):
    """Count one text, in a worker process: it may use all of a core, crash, or be killed."""
    time.sleep(random.uniform(0, ctx.params.jitter))
    return len(set(text)), len(text)


def report(ctx):
    """Tell what came of it. What a task prints is kept with the run."""
    counts = ctx.store.get("counts")
    print(f"{{len(counts)}} texts, {{sum(words for _, words in counts)}} words")
    return State.DONE


workflow = (
    Workflow("{name}", params=Params)
    .register(State.LOAD, load)
    # One branch per text, in as many processes as there are cores; all must succeed, each is tried three times.
    .register_map(
        State.COUNT,
        count,
        "texts",
        JoinConfig(JoinStrategy.all(), State.REPORT, into="counts"),
        config=TaskConfig(retry=Retry.exponential(2), attempt_timeout=60.0),
    )
    .register(State.REPORT, report)
    .add_exit_state(State.DONE)
)
'''


@command(
    "init",
    epilog="""
    canobatch init
    canobatch init etl && canobatch run etl.py
    """,
)
@click.argument("name", default="batch")
def init_command(name: str) -> None:
    """Write NAME.py (default: batch.py), a small workflow that runs."""
    path = Path(name if name.endswith(".py") else f"{name}.py")
    if not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise click.UsageError(f"{path.stem!r} cannot be imported as a module; choose a name such as my_batch")
    if path.stem in sys.stdlib_module_names or path.stem == "canobatch":
        raise click.UsageError(
            f"{path.stem!r} would hide the module of that name; choose a name such as my_{path.stem}"
        )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.format(name=path.stem, file=path))
    except FileExistsError:
        raise click.UsageError(f"{path} exists; choose another name, nothing was written") from None
    except OSError as error:
        # Half a file is worse than none.
        path.unlink(missing_ok=True)
        raise Failure(f"cannot write {path}: {error.strerror}") from error
    click.echo(path)
    say(f"written; try: canobatch check {path}; canobatch run {path}")
