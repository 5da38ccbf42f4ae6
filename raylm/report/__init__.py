"""A run folder's history as one HTML page, and as plain records."""

from raylm.report.page import render, write_report
from raylm.run.history import History, read_history
from raylm.run.totals import Totals, totals

__all__ = ["History", "Totals", "read_history", "render", "totals", "write_report"]
