"""Runs: one driver per run, its splits, its report."""

from canobatch.engine.report import RunReport, StateReport
from canobatch.engine.run import Run

__all__ = ["Run", "RunReport", "StateReport"]
