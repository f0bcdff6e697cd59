"""What a run would do, state by state: for ``--dry-run``."""

from __future__ import annotations

import difflib
from enum import Enum
from typing import TYPE_CHECKING, Any

import click

from canobatch.cli import text
from canobatch.definition import Map, Single, label
from canobatch.task import task_name

if TYPE_CHECKING:
    from canobatch.definition import Definition, Handler
    from canobatch.task import TaskConfig
    from canobatch.workflow import Workflow


def find_state(workflow: Workflow, name: str | None) -> Any:
    """Return the state of this name; without one the state that was registered first.

    Raises:
        UsageError: There is none.
    """
    definition = workflow.definition
    states = list(dict.fromkeys([*definition.handlers, *definition.exits]))
    if name is None:
        if not states:
            # `validate` says it better.
            workflow.validate()
        return states[0]
    for state in states:
        if name in _names(state):
            return state
    known = [label(state) if isinstance(state, Enum) else str(state) for state in states]
    close = difflib.get_close_matches(name, known, 2, 0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"states: {', '.join(known)}"
    raise click.UsageError(f"there is no state {name!r} in workflow {workflow.name!r}; {hint}")


def _names(state: Any) -> set[str]:
    names = {label(state), str(state)}
    if isinstance(state, Enum):
        names.add(f"{type(state).__name__}.{state.name}")
    return names


def as_text(workflow: Workflow, initial: Any, params: Any, jobs: int | None) -> str:
    """Return what a run would do."""
    definition = workflow.definition
    rows = [
        (
            text.one_line(label(state), 40) + (" *" if state == initial else ""),
            _work(handler),
            _settings(definition, handler),
            text.one_line(_targets(definition, handler), 80),
        )
        for state, handler in definition.handlers.items()
        if state not in definition.exits
    ]
    lines = [
        f"workflow {workflow.name}, from {label(initial)}; nothing was run",
        text.table(("state", "does", "with", "goes to"), rows),
        "ends in " + ", ".join(label(state) for state in definition.exits),
    ]
    if params:
        lines.append(f"parameters {params!r}")
    lines.append(f"workers {jobs or 'as many as there are cores'}")
    return "\n".join(lines)


def _work(handler: Handler) -> str:
    if isinstance(handler, Single):
        return text.one_line(task_name(handler.task), 40)
    count = "many branches" if handler.total is None else text.plural(handler.total, "branch")
    if isinstance(handler, Map):
        return f"{text.one_line(task_name(handler.fn), 40)} × {count}"
    return count


def _settings(definition: Definition, handler: Handler) -> str:
    parts = [] if isinstance(handler, Single) else [str(handler.join.strategy)]
    task = handler.task if isinstance(handler, Single) else handler.fn if isinstance(handler, Map) else None
    if task is not None:
        parts += _config(definition.config_of(handler, task))
    if not isinstance(handler, Single):
        join = handler.join
        parts += [f"timeout {text.duration(join.timeout)}"] if join.timeout is not None else []
        parts += [f"at most {join.bulkhead} at a time"] if isinstance(join.bulkhead, int) else []
    return ", ".join(parts)


def _config(config: TaskConfig) -> list[str]:
    parts = [text.plural(config.retry.retries, "retry")] if config.retry.retries else []
    if config.attempt_timeout is not None:
        parts.append(f"{text.duration(config.attempt_timeout)} an attempt")
    if config.memory_limit is not None:
        parts.append(text.size(config.memory_limit))
    if config.where is not None:
        parts.append(f"in {'a worker' if config.where == 'worker' else 'this process'}")
    return parts


def _targets(definition: Definition, handler: Handler) -> str:
    return (
        ", ".join(f"{label(state)}{why.replace(':', '', 1)}" for state, why in definition.transitions(handler)) or "?"
    )
