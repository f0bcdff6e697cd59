"""``map``: one function over many inputs."""

from __future__ import annotations

import inspect
import math
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import click

from canobatch.cli import exits
from canobatch.cli.command import Failure, Option, command, home_option, say, stop_writing, target_argument
from canobatch.cli.params import seconds
from canobatch.cli.place import home_of
from canobatch.cli.streams import data_stream
from canobatch.cli.text import duration, one_line
from canobatch.cli.types import DURATION, SIZE, Read
from canobatch.errors import ConfigurationError, JoinError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from canobatch.cancel import CancelToken
    from canobatch.cli.home import Home
    from canobatch.cli.items import Items, Output
    from canobatch.cli.launch import Ended, Settings
    from canobatch.engine import Run
    from canobatch.join import JoinConfig
    from canobatch.observe import Observer
    from canobatch.workflow import Workflow


def _read_join(text: str) -> tuple[str, Any]:
    """Return the kind and the number of ``all``, ``any``, ``quorum=3``, ``percentage=90``, ``deadline=10m``."""
    kind, _, number = text.partition("=")
    found: float | None
    if kind in ("all", "any") and not number:
        return kind, None
    if kind == "quorum":
        found, most = int(number), math.inf
    elif kind == "percentage":
        share = float(number.removesuffix("%"))
        found, most = share / 100 if number.endswith("%") or share > 1 else share, 1.0
    elif kind == "deadline":
        found, most = seconds(number), sys.float_info.max
    else:
        raise ValueError
    if not 0 < found <= most:
        raise ValueError
    return kind, found


_JOIN = Read("join", _read_join, "one of all, any, quorum=3, percentage=90, deadline=10m")


@command(
    "map",
    epilog="""
    canobatch map images.py:thumbnail --from files.txt -j 8
    find . -name '*.gz' | canobatch map logs:count_errors --retries 2 --timeout 5m
    canobatch map etl.py:clean --from rows.jsonl --jsonl > clean.jsonl
    canobatch map probe.py:ask --from hosts.txt --join quorum=3
    """,
)
@target_argument
@click.option(
    "--from",
    "source",
    cls=Option,
    metavar="FILE",
    default="-",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Where the inputs come from, one a line. Default: -, standard input.",
)
@click.option("--jsonl", is_flag=True, help="Inputs and outputs are JSON, one value a line.")
@click.option("-j", "--jobs", metavar="N", type=click.IntRange(min=1), help="Worker processes. Default: one per core.")
@click.option(
    "--join",
    type=_JOIN,
    default="all",
    show_default=True,
    help="What has to succeed: all, any, quorum=N, percentage=P, or as much as can be done by deadline=S. The rest "
    "is killed.",
)
@click.option("--fail-fast", is_flag=True, help="Kill the rest as soon as the join can no longer be met.")
@click.option(
    "--retries", metavar="N", type=click.IntRange(min=0), default=0, help="How often to try again what failed."
)
@click.option("--timeout", type=DURATION, help="Kill an attempt after so long.")
@click.option("--memory-limit", type=SIZE, help="Kill an attempt that takes more, such as 2G.")
@click.option("--resume", is_flag=True, help="Go on with the last map of TARGET that did not end: do what is missing.")
@click.option("--dry-run", is_flag=True, help="Check everything, show the first inputs, and do nothing.")
@home_option
@click.pass_context
def map_command(
    ctx: click.Context,
    target: str,
    source: str,
    jsonl: bool,
    jobs: int | None,
    join: tuple[str, Any],
    fail_fast: bool,
    retries: int,
    timeout: float | None,
    memory_limit: int | None,
    resume: bool,
    dry_run: bool,
) -> None:
    """Call the function TARGET with each line of the input, in parallel processes.

    Results are written in the order of the inputs, each as soon as it is final: text as it is, anything else as
    JSON, None not at all. The function takes the line, or (ctx, line); what it prints is shown by canobatch logs.
    Failures are listed on standard error; with one that counts the exit code is 1.
    """
    from canobatch.cli.home import Home, LaunchRecord  # noqa: PLC0415 - what runs is slow to import
    from canobatch.cli.launch import Settings  # noqa: PLC0415

    options = MapOptions(source, jsonl, join, retries, timeout, memory_limit, fail_fast)
    home = Home(home_of(ctx))
    again = _unfinished(home, target) if resume else None
    record = LaunchRecord("map", target, options={**asdict(options), "jobs": jobs})
    run_map(ctx, target, options, Settings(home, record, jobs), again=again, is_dry=dry_run)


@dataclass(frozen=True, slots=True)
class MapOptions:
    """What a map does with which inputs; plain data, kept to go on with it."""

    source: str
    is_json: bool
    join: tuple[str, Any]
    retries: int = 0
    timeout: float | None = None
    memory_limit: int | None = None
    fail_fast: bool = False


def run_map(
    ctx: click.Context,
    target: str,
    options: MapOptions,
    settings: Settings,
    *,
    again: str | None = None,
    is_dry: bool = False,
) -> None:
    """Run a map to its end and report it; ``again`` is the run to go on with."""
    from canobatch.cancel import CancelToken  # noqa: PLC0415
    from canobatch.cli.items import Items, Output, open_input  # noqa: PLC0415
    from canobatch.cli.target import function_kind, load_target  # noqa: PLC0415

    with data_stream() as data:
        function = load_target(target, function_kind())
        token = CancelToken()
        with open_input(options.source) as stream:
            items = Items(stream, is_json=options.is_json)
            output = Output(data, is_json=options.is_json)
            workflow = _workflow(target, function, items, output, options)
            workflow.validate()
            if is_dry:
                _show_plan(workflow, items, data)
                return
            settings.prepare(workflow)
            ended = _run(workflow, items, output, token, settings, again)
        output.flush()
        _report(ctx, ended, items, output)


def _unfinished(home: Home, target: str) -> str | None:
    """Return the last map of a target, if there is something to do for it."""
    from canobatch.journal import RunStatus  # noqa: PLC0415

    last = next(iter(home.journal.runs(workflow=f"map {target}")), None)
    if last is None:
        say(f"there is no map of {target} to go on with; this is a new one")
        return None
    if last.status is RunStatus.COMPLETED:
        raise Failure(f"the last map of {target}, run {last.run_id}, is complete: nothing is missing", exits.DONE)
    say(f"going on with run {last.run_id}")
    return last.run_id


def _workflow(
    target: str,
    function: Callable[..., Any],
    items: Items,
    output: Output,
    options: MapOptions,
) -> Workflow:
    from canobatch.retry import Retry  # noqa: PLC0415
    from canobatch.task import TaskConfig  # noqa: PLC0415
    from canobatch.workflow import Workflow  # noqa: PLC0415

    retries = options.retries
    config = TaskConfig(
        retry=Retry.exponential(retries) if retries else Retry.none(),
        attempt_timeout=options.timeout,
        memory_limit=options.memory_limit,
    )
    workflow = Workflow(f"map {target}")
    workflow.register_map(
        _MAP, _taking_item(function, target), iter(items), _join_config(options, output), config=config
    )
    return workflow.add_exit_state(_DONE)


_MAP, _DONE = "map", "done"


def _taking_item(function: Callable[..., Any], target: str) -> Callable[[Any, Any], Any]:
    """Return the function as one of (ctx, item); made here, so that workers get it by value and need no click."""
    takes_both = False
    # What is written in C says no when it is called.
    with suppress(ValueError):
        signature = inspect.signature(function)
        needed = [each for each in signature.parameters.values() if each.default is each.empty]
        takes_both = len([each for each in needed if each.kind in _POSITIONAL]) == 2
        try:
            signature.bind(*range(2 if takes_both else 1))
        except TypeError:
            what = f"{getattr(function, '__name__', target)}{signature}"
            raise ConfigurationError(f"{target}: {what} must take (item) or (ctx, item)") from None

    def call(ctx: Any, item: Any) -> Any:
        return function(ctx, item) if takes_both else function(item)

    call.__name__ = call.__qualname__ = getattr(function, "__name__", target)
    return call


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _join_config(options: MapOptions, output: Output) -> JoinConfig:
    from canobatch.join import JoinConfig, JoinStrategy  # noqa: PLC0415

    kind, number = options.join
    strategy = {
        "all": JoinStrategy("all"),
        "any": JoinStrategy("any"),
        "quorum": JoinStrategy("quorum", n=number),
        "percentage": JoinStrategy("percentage", p=number),
        "deadline": JoinStrategy("partial_timeout", n=1),
    }[kind]
    timeout = number if kind == "deadline" else None
    # A fold writes each value when all before it are written, and keeps none.
    fold = (output.write, 0)
    return JoinConfig(strategy, _DONE, timeout=timeout, into="written", reduce=fold, fail_fast=options.fail_fast)


def _show_plan(workflow: Workflow, items: Items, data: IO[str]) -> None:
    from canobatch.cli.plan import as_text  # noqa: PLC0415
    from canobatch.definition import LATER  # noqa: PLC0415

    click.echo(as_text(workflow, _MAP, None, None), file=data)
    for item in items:
        if item is LATER:
            items.await_more()
            continue
        given = items.ended(items.count - 1)
        if items.count <= 3:
            click.echo(f"input {items.count}: {one_line(given)}", file=data)
    click.echo(f"{items.count:,} inputs", file=data)


def _run(
    workflow: Workflow, items: Items, output: Output, token: CancelToken, settings: Settings, again: str | None
) -> Ended:
    from canobatch.cli.items import Failures  # noqa: PLC0415
    from canobatch.cli.launch import follow  # noqa: PLC0415
    from canobatch.pool import WorkerPool  # noqa: PLC0415
    from canobatch.workflow import new_run_id  # noqa: PLC0415

    failures = Failures(items)

    def tick(note: Callable[[str], None]) -> None:
        output.flush()
        if isinstance(output.error, BrokenPipeError):
            token.cancel("nobody reads the results")
        elif output.error is not None:
            # What was recorded can be written when there is room.
            token.cancel(_unwritten(output.error), keep=True)
        failures.tell(note)

    with WorkerPool(settings.jobs) as pool:

        def start(observers: Sequence[Observer]) -> Run:
            watching = (failures, *observers)
            run_id = again or new_run_id()
            begin = partial(workflow.start, _MAP) if again is None else workflow.start_resume
            return settings.start(begin, run_id, pool=pool, cancel=token, observers=watching)

        return follow(
            start,
            token,
            pool,
            workflow.name,
            settings=settings,
            tick=tick,
            # Results on the same screen say how far it is, and would be torn apart.
            is_shown=not output.is_terminal,
        )


def _report(ctx: click.Context, ended: Ended, items: Items, output: Output) -> None:
    from canobatch.cli.launch import fail_if  # noqa: PLC0415

    if isinstance(output.error, BrokenPipeError):
        stop_writing()
        ctx.exit(exits.UNREAD)
    report = ended.run.report()
    split = report.splits.get(_MAP)
    counts = {"succeeded": 0, "failed": 0, "cancelled": 0} if split is None else split.counts
    parts = [f"{counts['succeeded']:,} done"]
    parts += [f"{counts['failed']:,} failed"] if counts["failed"] else []
    parts += [f"{counts['cancelled']:,} killed or not begun"] if counts["cancelled"] else []
    say(f"{ended.run.id}: {', '.join(parts)} in {duration(report.duration)}")
    if output.error is not None:
        stop_writing()
        again = f"go on with: canobatch resume {ended.run.id}" if ended.error else "run it again"
        raise Failure(f"{_unwritten(output.error)}; make room, then {again}") from output.error
    if isinstance(ended.error, JoinError):
        what = f"{counts['failed']:,} of {items.count:,} inputs failed" if counts["failed"] else str(ended.error)
        raise Failure(what, ended.code) from ended.error
    fail_if(ended)


def _unwritten(error: OSError) -> str:
    return f"the results cannot be written: {error.strerror}"
