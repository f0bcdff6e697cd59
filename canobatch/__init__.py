"""canobatch: CPU-heavy batches as finite state machines over real processes.

What most scripts need is here and loaded when first used; the rest is in the modules:
`canobatch.errors` for all errors, `canobatch.pool`, `canobatch.store`, `canobatch.observe`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from canobatch.cancel import CancelToken
    from canobatch.circuit import CircuitBreaker
    from canobatch.cli import click_command
    from canobatch.engine import Run, RunReport
    from canobatch.errors import (
        CanobatchError,
        ConfigurationError,
        JoinError,
        RunCancelledError,
        TaskError,
        WorkerLostError,
        WorkflowError,
    )
    from canobatch.join import BranchResult, BranchStatus, JoinConfig, JoinStrategy, SplitResult
    from canobatch.limits import MultiRateLimiter, RateLimiter, Semaphore, WindowedRateLimiter
    from canobatch.pool import WorkerInfo, WorkerPool
    from canobatch.resources import Counter, Resource, Resources
    from canobatch.retry import Retry
    from canobatch.store import MemoryStore, SharedStore
    from canobatch.task import Task, TaskConfig, TaskContext
    from canobatch.workflow import Workflow

__all__ = [
    "BranchResult",
    "BranchStatus",
    "CancelToken",
    "CanobatchError",
    "CircuitBreaker",
    "ConfigurationError",
    "Counter",
    "JoinConfig",
    "JoinError",
    "JoinStrategy",
    "MemoryStore",
    "MultiRateLimiter",
    "RateLimiter",
    "Resource",
    "Resources",
    "Retry",
    "Run",
    "RunCancelledError",
    "RunReport",
    "Semaphore",
    "SharedStore",
    "SplitResult",
    "Task",
    "TaskConfig",
    "TaskContext",
    "TaskError",
    "WindowedRateLimiter",
    "WorkerInfo",
    "WorkerLostError",
    "WorkerPool",
    "Workflow",
    "WorkflowError",
    "click_command",
]

_HOMES = {
    "canobatch.cancel": ("CancelToken",),
    "canobatch.circuit": ("CircuitBreaker",),
    "canobatch.cli": ("click_command",),
    "canobatch.engine": ("Run", "RunReport"),
    "canobatch.errors": (
        "CanobatchError",
        "ConfigurationError",
        "JoinError",
        "RunCancelledError",
        "TaskError",
        "WorkerLostError",
        "WorkflowError",
    ),
    "canobatch.join": ("BranchResult", "BranchStatus", "JoinConfig", "JoinStrategy", "SplitResult"),
    "canobatch.limits": ("MultiRateLimiter", "RateLimiter", "Semaphore", "WindowedRateLimiter"),
    "canobatch.pool": ("WorkerInfo", "WorkerPool"),
    "canobatch.resources": ("Counter", "Resource", "Resources"),
    "canobatch.retry": ("Retry",),
    "canobatch.store": ("MemoryStore", "SharedStore"),
    "canobatch.task": ("Task", "TaskConfig", "TaskContext"),
    "canobatch.workflow": ("Workflow",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415 - slow, seldom asked for

            return version("canobatch")
        if name in _HOME_OF:
            value = getattr(importlib.import_module(_HOME_OF[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'canobatch' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
