"""Journals: what remembers runs, so that what was recorded is never run again."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from canobatch.journal.base import Journal, RunJournal, Ticket
from canobatch.journal.records import (
    AttemptRecord,
    Commit,
    CompensationRecord,
    NewRun,
    Owner,
    Recovered,
    RunHistory,
    RunStatus,
    RunSummary,
    VisitRecord,
)

if TYPE_CHECKING:
    from canobatch.journal.memory import MemoryJournal
    from canobatch.journal.sqlite import SqliteJournal

__all__ = [
    "AttemptRecord",
    "Commit",
    "CompensationRecord",
    "Journal",
    "MemoryJournal",
    "NewRun",
    "Owner",
    "Recovered",
    "RunHistory",
    "RunJournal",
    "RunStatus",
    "RunSummary",
    "SqliteJournal",
    "Ticket",
    "VisitRecord",
]

if not TYPE_CHECKING:
    # A run without a journal loads no database.
    _HOME_OF = {"MemoryJournal": "canobatch.journal.memory", "SqliteJournal": "canobatch.journal.sqlite"}

    def __getattr__(name: str) -> Any:
        if name in _HOME_OF:
            return getattr(importlib.import_module(_HOME_OF[name]), name)
        raise AttributeError(f"module 'canobatch.journal' has no attribute {name!r}")
