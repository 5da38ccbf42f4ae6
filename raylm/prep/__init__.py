"""Preparation: raw files become documents, tokens and shards, as one resumable Ray Data job."""

from raylm.prep.prepare import PrepareProgress, PrepareReport, prepare
from raylm.prep.tasks import run_here, run_on_ray

__all__ = ["PrepareProgress", "PrepareReport", "prepare", "run_here", "run_on_ray"]
