"""For users with a click program of their own: a workflow as a command, and the launcher's commands in their group."""

from __future__ import annotations

import typing
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

import click

from canobatch.cli.app import load_command
from canobatch.cli.command import Command
from canobatch.cli.params import Field, describe, fields_of, is_many, make, parse_params
from canobatch.errors import ConfigurationError

if TYPE_CHECKING:
    from canobatch.workflow import Workflow

#: What `commands` mounts.
_MOUNTED = ("run", "resume", "logs")
_MISSING = object()


def click_command(workflow: Workflow, initial: Any = _MISSING, *, name: str | None = None) -> click.Command:
    """Return a click command that runs ``workflow`` as ``canobatch run`` does.

    Its options are the fields of the workflow's ``params`` dataclass, typed, with their defaults, and with
    ``metadata={"help": ...}`` as their help; without a dataclass ``-p NAME=VALUE``. Its exit codes, signals and
    progress are those of the launcher.

    Args:
        workflow: What runs.
        initial: The state to begin in; without it the one that was registered first.
        name: The command's name; None: the workflow's.

    Raises:
        ConfigurationError: The workflow or the initial state cannot work; raised when the command is called.

    Example:
        >>> from dataclasses import dataclass
        >>> from canobatch import Workflow, click_command
        >>> @dataclass
        ... class Params:
        ...     day: str = "today"
        >>> workflow = Workflow("report", params=Params).register("start", lambda: "done").add_exit_state("done")
        >>> [option.name for option in click_command(workflow).params][:1]
        ['day']
    """
    declared = workflow.definition.params
    fields = [] if declared is None else fields_of(declared)

    def callback(**given: Any) -> None:
        _run(workflow, initial, fields, given)

    made: click.Command = Command(
        name or workflow.name.replace(" ", "-"),
        params=_options(fields) if declared is not None else [_FREE],
        callback=callback,
        help=_help(workflow.name, declared),
    )
    taken = {param.name for param in made.params}
    for option in _OWN:
        if option.name not in taken:
            made.params.append(option)
    return made


def _help(name: str, declared: type | None) -> str:
    doc = "" if declared is None else declared.__doc__ or ""
    # A dataclass without a docstring gets its signature as one.
    is_made = declared is None or doc.startswith(f"{declared.__name__}(")
    return f"Run the workflow {name}." if is_made or not doc else doc


_FREE = click.Option(["-p", "--param", "canobatch_given"], metavar="NAME=VALUE", multiple=True, help="A parameter.")
_OWN = (
    click.Option(
        ["-j", "--jobs"], metavar="N", type=click.IntRange(min=1), help="Worker processes. Default: one per core."
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
)


def _options(fields: list[Field]) -> list[click.Parameter]:
    return [_option(field) for field in fields]


def _option(field: Field) -> click.Option:
    flag = f"--{field.name.replace('_', '-')}"
    words = f"{field.help} " if field.help else ""
    if field.type is bool:
        told = "" if field.default is None else f"Default: {'yes' if field.default else 'no'}."
        # None: the dataclass has the default.
        return click.Option([f"{flag}/--no-{flag[2:]}", field.name], default=None, help=f"{words}{told}")
    kind = _choices(field.type)
    default = "" if field.default is None else f"Default: {_shown(field.default)}."
    needed = "Required." if field.is_required else default
    several = " May be given several times." if is_many(field.type) else ""
    return click.Option(
        [flag, field.name],
        type=kind,
        multiple=is_many(field.type),
        # The dataclass has the default, and makes a new one where it must.
        **({"required": True} if field.is_required else {"default": None}),
        metavar=None if isinstance(kind, click.Choice) else _metavar(field.type),
        help=f"{words}{needed}{several}".strip(),
    )


def _choices(kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return click.Choice([member.name for member in kind], case_sensitive=False)
    if typing.get_origin(kind) is Literal:
        return click.Choice([str(value) for value in typing.get_args(kind)])
    return click.STRING


def _shown(default: Any) -> str:
    return default.name if isinstance(default, Enum) else str(default)


def _metavar(kind: Any) -> str:
    words = {"text": "TEXT", "a whole number": "INTEGER", "a number": "NUMBER", "a duration": "DURATION"}
    return words.get(describe(kind), getattr(kind, "__name__", "VALUE").upper())


def _run(workflow: Workflow, initial: Any, fields: list[Field], given: dict[str, Any]) -> None:
    from canobatch.cli.launch import Settings, launch  # noqa: PLC0415 - slow to import
    from canobatch.cli.plan import find_state  # noqa: PLC0415
    from canobatch.cli.streams import data_stream  # noqa: PLC0415

    with data_stream() as data:
        workflow.validate()
        state = find_state(workflow, None) if initial is _MISSING else initial
        workflow.validate_initial_state(state)
        params = _params(workflow, fields, given)
        launch(workflow, state, params, data, Settings(jobs=given.get("jobs"), as_json=given.get("as_json", False)))


def _params(workflow: Workflow, fields: list[Field], given: dict[str, Any]) -> Any:
    declared = workflow.definition.params
    try:
        if declared is None:
            params = parse_params(None, given.get("canobatch_given", ()))
        else:
            values = {field.name: given[field.name] for field in fields}
            params = make(declared, {name: _texts(value) for name, value in values.items() if value not in (None, ())})
        workflow.validate_params(params)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    return params


def _texts(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, tuple) else [str(value)]


def commands(group: click.Group) -> click.Group:
    """Mount ``run``, ``resume`` and ``logs`` of the launcher in a group, and return it; also as a decorator.

    Example:
        >>> @commands
        ... @click.group()
        ... def cli():
        ...     "My program."
        >>> sorted(cli.commands)
        ['logs', 'resume', 'run']
    """
    for name in _MOUNTED:
        found = load_command(name)
        assert found is not None
        group.add_command(found)
    return group
