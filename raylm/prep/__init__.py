"""Preparation: raw files become documents, tokens and shards, as one resumable Ray Data job."""

from raylm.prep.prepare import PrepareProgress, PrepareReport, prepare
from raylm.prep.tasks import here, on_ray

__all__ = ["PrepareProgress", "PrepareReport", "here", "on_ray", "prepare"]
