"""Comes in: a run folder's metrics and events. Leaves: one HTML page, and the same history as plain records."""

from raylm.report.page import render, write_report
from raylm.run.history import History, Totals, describe, read_history, totals

__all__ = ["History", "Totals", "describe", "read_history", "render", "totals", "write_report"]
