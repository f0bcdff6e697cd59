"""``graph``: a workflow as a Mermaid state diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from canobatch.cli import text
from canobatch.cli.command import command, home_option, target_argument
from canobatch.cli.completing import complete_run
from canobatch.cli.place import home_of
from canobatch.cli.streams import data_stream

if TYPE_CHECKING:
    from canobatch.journal import RunHistory, VisitRecord


@command(
    "graph",
    epilog="""
    canobatch graph etl.py
    canobatch graph flows.etl:workflow > etl.mmd
    canobatch graph etl.py --run last
    """,
)
@target_argument
@click.option("--run", metavar="RUN", shell_complete=complete_run, help="Show the path and the times of this run.")
@home_option
@click.pass_context
def graph_command(ctx: click.Context, target: str, run: str | None) -> None:
    """Draw the workflow TARGET as a Mermaid state diagram."""
    from canobatch.cli.home import Home  # noqa: PLC0415 - not to show a help
    from canobatch.cli.target import load_target, workflow_kind  # noqa: PLC0415

    with data_stream() as data:
        workflow = load_target(target, workflow_kind())
        drawn = workflow.graph()
        if run is not None:
            home = Home(home_of(ctx))
            drawn += "\n".join(path_of(home.journal.run(home.find(run).run_id))) + "\n"
        click.echo(drawn, file=data, nl=False)


def path_of(history: RunHistory) -> list[str]:
    """Return the lines that show a run's path in the diagram of its workflow."""
    from canobatch.definition import node_name  # noqa: PLC0415

    visits: dict[str, list[VisitRecord]] = {}
    for visit in history.visits:
        visits.setdefault(node_name(visit.state), []).append(visit)
    lines = []
    for node, of_node in visits.items():
        taken = sum(visit.duration or 0.0 for visit in of_node)
        attempts = sum(visit.attempts for visit in of_node)
        parts = [text.plural(len(of_node), "visit")]
        parts += [text.plural(attempts, "attempt"), text.duration(taken)] if attempts else []
        lines.append(f"    note left of {node}: {', '.join(parts)}")
    if visits:
        lines.append("    classDef visited fill:#cfe8cf,stroke:#2a7a2a")
        lines.append(f"    class {','.join(visits)} visited")
        *_, last = history.visits
        if history.summary.status.value != "completed":
            lines.append("    classDef stopped fill:#f3cfcf,stroke:#a02a2a")
            lines.append(f"    class {node_name(last.state)} stopped")
    return lines
