"""Journals: what remembers runs, so that what was recorded is never run again."""

from __future__ import annotations

from canobatch.journal.base import Journal, RunJournal, Ticket
from canobatch.journal.memory import MemoryJournal
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
