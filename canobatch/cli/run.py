"""``run``: one run of a workflow in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from canobatch.cli.command import Option, command, home_option, json_option, say, target_argument
from canobatch.cli.naming import POLICIES
from canobatch.cli.params import parse_params
from canobatch.cli.place import home_of
from canobatch.cli.streams import data_stream
from canobatch.cli.types import DURATION, TEXT
from canobatch.errors import ConfigurationError

if TYPE_CHECKING:
    from canobatch.workflow import Workflow


@command(
    "run",
    epilog="""
    canobatch run etl.py -p day=2026-11-20
    canobatch run flows.etl:workflow -j 8 --timeout 1h30m
    canobatch run etl.py --initial REPORT --dry-run
    canobatch run etl.py --json | jq .status
    """,
)
@target_argument
@click.option("--initial", metavar="STATE", help="The state to begin in. Default: the first that is registered.")
@click.option("-p", "--param", "given", cls=Option, metavar="NAME=VALUE", multiple=True, help="A parameter of the run.")
@click.option("-j", "--jobs", metavar="N", type=click.IntRange(min=1), help="Worker processes. Default: one per core.")
@click.option("--name", metavar="NAME", type=TEXT, help="Let no two runs of this name overlap.")
@click.option(
    "--on-overlap",
    type=click.Choice(POLICIES),
    default="fail",
    show_default=True,
    help="What to do when one of that name runs: exit with 75, exit with 0, wait for its end, or take its place: "
    "cancel it, or kill its process.",
)
@click.option("--timeout", type=DURATION, help="Cancel the run after so long, and exit with 6.")
@click.option("--dry-run", is_flag=True, help="Check everything, show what would be done, and do nothing.")
@click.option("--no-journal", is_flag=True, help="Remember nothing of the run; it cannot be resumed.")
@json_option
@home_option
@click.pass_context
def run_command(
    ctx: click.Context,
    target: str,
    initial: str | None,
    given: tuple[str, ...],
    jobs: int | None,
    name: str | None,
    on_overlap: str,
    timeout: float | None,
    dry_run: bool,
    no_journal: bool,
    as_json: bool,
) -> None:
    """Run the workflow TARGET to an exit state.

    The first Ctrl-C cancels the run and rolls back what can be rolled back, the second kills it.
    """
    from canobatch.cli.home import Home, LaunchRecord  # noqa: PLC0415 - what runs a workflow is slow to import
    from canobatch.cli.launch import Settings, launch  # noqa: PLC0415
    from canobatch.cli.naming import exclusive  # noqa: PLC0415
    from canobatch.cli.plan import as_text, find_state  # noqa: PLC0415
    from canobatch.cli.target import load_target, workflow_kind  # noqa: PLC0415
    from canobatch.workflow import new_run_id  # noqa: PLC0415

    if not name and ctx.get_parameter_source("on_overlap") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--on-overlap has a meaning only with --name NAME")
    with data_stream() as data:
        workflow: Workflow = load_target(target, workflow_kind())
        workflow.validate()
        state = find_state(workflow, initial)
        try:
            params = parse_params(workflow.definition.params, given)
            workflow.validate_params(params)
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from error
        if dry_run:
            click.echo(as_text(workflow, state, params, jobs), file=data)
            return
        run_id = new_run_id()
        with exclusive(home_of(ctx), name, "" if no_journal else run_id, on_overlap) as is_ours:
            if not is_ours:
                say(f"a run named {name} is going on; skipped")
                return
            record = LaunchRecord("run", target, options={"jobs": jobs, "timeout": timeout})
            home = None if no_journal else Home(home_of(ctx))
            if no_journal:
                workflow.with_journal(None)
            launch(workflow, state, params, data, Settings(home, record, jobs, timeout, as_json), run_id)
