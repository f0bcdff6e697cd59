"""``graph``: a workflow as a Mermaid state diagram."""

from __future__ import annotations

import click

from canobatch.cli.command import command, home_option, target_argument
from canobatch.cli.streams import data_stream


@command(
    "graph",
    epilog="""
    canobatch graph etl.py
    canobatch graph flows.etl:workflow > etl.mmd
    """,
)
@target_argument
@home_option
def graph_command(target: str) -> None:
    """Draw the workflow TARGET as a Mermaid state diagram."""
    from canobatch.cli.target import load_target, workflow_kind  # noqa: PLC0415 - slow to import

    with data_stream() as data:
        workflow = load_target(target, workflow_kind())
        click.echo(workflow.graph(), file=data, nl=False)
