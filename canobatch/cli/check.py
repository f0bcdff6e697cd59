"""``check``: everything that is wrong with a target, found before it runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from canobatch.cli import exits
from canobatch.cli.command import Option, command, home_option, json_option, say, target_argument
from canobatch.cli.streams import data_stream
from canobatch.errors import ResourceError, TargetError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from canobatch.definition import Definition, Handler
    from canobatch.workflow import Workflow

#: Items of a list that are tried; a million would take its time.
_TRIED = 1000


@command(
    "check",
    epilog="""
    canobatch check etl.py
    canobatch check flows.etl:make_workflow --initial LOAD --initial REPAIR
    canobatch check etl.py --json | jq -r '.problems[]'
    """,
)
@target_argument
@click.option(
    "--initial",
    "initials",
    cls=Option,
    metavar="STATE",
    multiple=True,
    help="A state that runs begin in.",
)
@json_option
@home_option
@click.pass_context
def check_command(ctx: click.Context, target: str, initials: tuple[str, ...], as_json: bool) -> None:
    """Find all problems of TARGET: of imports, states, joins, schedules, and of what has to reach workers.

    Without an attribute every workflow and scheduler of the module is checked.
    """
    with data_stream() as data:
        problems, names = _check(target, initials)
        if as_json:
            facts = {"schema": 1, "target": target, "checked": names, "ok": not problems, "problems": problems}
            click.echo(json.dumps(facts, ensure_ascii=False), file=data)
        else:
            for problem in problems:
                click.echo(problem, file=data)
    if problems:
        say(f"{target}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
        ctx.exit(exits.BAD_TARGET)
    say(f"{target}: no problems (checked: {', '.join(names)})")


def _check(target: str, initials: tuple[str, ...]) -> tuple[list[str], list[str]]:
    try:
        found = _load(target)
    except TargetError as error:
        return [str(error)], []
    problems: list[str] = []
    names = []
    starts = _starts(found)
    for name, each in found.items():
        names.append(name)
        if hasattr(each, "definition"):
            problems += [
                f"workflow {each.name!r}: {text}" for text in _problems_of(each, starts.get(id(each)), initials)
            ]
        else:
            problems += _problems_of_scheduler(each)
    return problems, names


def _load(target: str) -> dict[str, Any]:
    """Return what is to be checked, by name: what was named, or all of a module; then the workflows of schedulers."""
    from canobatch.cli.target import Kind, load_module, load_target, members, workflow_kind  # noqa: PLC0415
    from canobatch.scheduler import Scheduler  # noqa: PLC0415

    workflows = workflow_kind()
    both = Kind("workflow or scheduler", lambda each: workflows.fits(each) or isinstance(each, Scheduler), "Workflow")
    module, attribute = load_module(target)
    found = {} if attribute else members(module, both)
    if not found:
        found = {attribute or target: load_target(target, both)}
    for each in list(found.values()):
        if isinstance(each, Scheduler):
            for spec in each.specs:
                if all(spec.workflow is not other for other in found.values()):
                    found[f"flow {spec.id}"] = spec.workflow
    return found


def _starts(found: dict[str, Any]) -> dict[int, set[Any]]:
    """Return, by the id of a workflow, the states in which the flows of schedulers begin it."""
    starts: dict[int, set[Any]] = {}
    for each in found.values():
        for spec in getattr(each, "specs", ()):
            starts.setdefault(id(spec.workflow), set()).add(spec.initial)
    return starts


def _problems_of_scheduler(scheduler: Any) -> Iterator[str]:
    for spec in scheduler.specs:
        for check, given in (
            (spec.workflow.validate_initial_state, spec.initial),
            (spec.workflow.validate_params, spec.params),
        ):
            try:
                check(given)
            except ValueError as error:
                yield f"flow {spec.id!r}: {error}"


def _problems_of(workflow: Workflow, starts: set[Any] | None, initials: tuple[str, ...]) -> Iterator[str]:
    from canobatch.cli.plan import find_state  # noqa: PLC0415
    from canobatch.cli.reach import unreachable  # noqa: PLC0415
    from canobatch.definition import label  # noqa: PLC0415

    definition = workflow.definition
    found = definition.problems()
    yield from found
    if definition.handlers:
        begun = set(starts or ()) | {find_state(workflow, name) for name in initials or (None,)}
        for state in unreachable(definition, begun):
            yield (
                f"state {label(state)} can never be reached: no transition leads to it; remove it, or say that runs "
                f"begin there with --initial {label(state)}"
            )
    if definition.params is not None:
        yield from _params_problems(definition.params)
    for state in dict.fromkeys([*definition.handlers, *definition.exits]):
        yield from _state_problems(state)
    launcher_only = []
    try:
        launcher_only = [key for key, data in workflow.resources.packed().items() if data is None]
    except ResourceError as error:
        yield str(error)
    for state, handler in definition.handlers.items():
        tasks = _sent_tasks(definition, handler)
        found = [*_pickling_problems(handler, tasks), *_resource_problems(launcher_only, tasks)]
        yield from (f"state {label(state)}: {text}" for text in dict.fromkeys(found))


def _params_problems(declared: type) -> Iterator[str]:
    """Try the parameters with nothing but their defaults, where that is allowed."""
    from canobatch.cli.params import fields_of  # noqa: PLC0415
    from canobatch.cli.pickling import problem_of  # noqa: PLC0415

    if any(field.is_required for field in fields_of(declared)):
        return
    try:
        params = declared()
    except Exception as error:  # noqa: BLE001 - code of the user's
        yield f"params: {declared.__name__}() failed: {type(error).__name__}: {error}"
        return
    problem = problem_of(params, declared.__name__)
    if problem is not None:
        yield f"params: {problem}"


def _state_problems(state: Any) -> Iterator[str]:
    from canobatch.cli.pickling import does_not_return, problem_of  # noqa: PLC0415
    from canobatch.definition import label  # noqa: PLC0415

    problem = problem_of(state, label(state))
    if problem is None:
        again = does_not_return(state)
        problem = None if again is None else f"state {label(state)} {again}"
    if problem is not None:
        yield problem


def _sent_tasks(definition: Definition, handler: Handler) -> list[Any]:
    """Return the tasks of a state that are sent to workers. One that stays in the parent is not."""
    from canobatch.definition import Map, Single  # noqa: PLC0415

    if isinstance(handler, Single):
        return [] if definition.config_of(handler, handler.task).where == "parent" else [handler.task]
    if isinstance(handler, Map):
        return [handler.fn]
    return [] if callable(handler.tasks) else handler.tasks[:_TRIED]


def _pickling_problems(handler: Handler, tasks: list[Any]) -> Iterator[str]:
    from canobatch.cli.pickling import problem_of  # noqa: PLC0415
    from canobatch.task import task_name  # noqa: PLC0415

    parts = [(task, task_name(task)) for task in tasks]
    items = getattr(handler, "items", None)
    if isinstance(items, list | tuple):
        parts += [(item, f"item {index}") for index, item in enumerate(items[:_TRIED])]
    for part, name in parts:
        problem = problem_of(part, name)
        if problem is not None:
            yield problem


def _resource_problems(launcher_only: list[Any], tasks: list[Any]) -> Iterator[str]:
    from canobatch.cli.lookups import keys_asked_for  # noqa: PLC0415
    from canobatch.task import task_name  # noqa: PLC0415

    for task in tasks if launcher_only else ():
        for key in keys_asked_for(task):
            if key in launcher_only:
                yield (
                    f'{task_name(task)} runs in a worker, but asks for resource {key!r}, which has scope="run" and '
                    'lives in the launcher; use scope="worker", or TaskConfig(where="parent") for a single task'
                )
