"""Exit codes: what the launcher's end means to the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from canobatch.errors import (
    ConfigurationError,
    RunCancelledError,
    RunInUseError,
    RunNotFoundError,
    WorkflowTimeoutError,
)

if TYPE_CHECKING:
    import signal

DONE = 0
FAILED = 1
USAGE = 2
BAD_TARGET = 3
ROLLBACK_FAILED = 5
TIMED_OUT = 6
BUSY = 75
#: Nobody reads our standard output any more; as if SIGPIPE had ended us.
UNREAD = 141
INTERRUPTED = 130

#: By name, as some belong to parts that need not be loaded; the class that is nearest counts.
_BY_CLASS = {
    "CompensationError": ROLLBACK_FAILED,
    "FlowOverlapError": BUSY,
    "UnknownFlowError": USAGE,
    ConfigurationError.__name__: BAD_TARGET,
    RunCancelledError.__name__: FAILED,
    RunInUseError.__name__: BUSY,
    RunNotFoundError.__name__: USAGE,
    WorkflowTimeoutError.__name__: TIMED_OUT,
}


def code_of(error: BaseException) -> int:
    """Return the exit code for what a command failed with."""
    return next((_BY_CLASS[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in _BY_CLASS), FAILED)


def code_of_signal(number: int | signal.Signals) -> int:
    """Return the exit code after a run was ended by a signal, as shells have it."""
    return 128 + int(number)
