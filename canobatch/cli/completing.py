"""What a shell completes: targets, runs, flows. Silent where it cannot know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from canobatch.cli.place import home_of

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem


def complete_target(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete files, and after ``file.py:`` the names that it assigns or defines; nothing of it is run."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - as below

    path, colon, start = incomplete.partition(":")
    if not colon:
        return [CompletionItem(incomplete, type="file")]
    import ast  # noqa: PLC0415 - not for every start of a command

    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    names = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [CompletionItem(f"{path}:{name}") for name in names if name.startswith(start) and not name.startswith("_")]


def complete_run(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the ids of runs."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - as above

    from canobatch.errors import CanobatchError  # noqa: PLC0415
    from canobatch.journal import SqliteJournal  # noqa: PLC0415

    try:
        runs = SqliteJournal(home_of(ctx)).runs()
    except CanobatchError:
        return []
    return [
        CompletionItem(run.run_id, help=f"{run.workflow} {run.status}")
        for run in runs
        if run.run_id.startswith(incomplete)
    ]
