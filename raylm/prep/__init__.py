"""Preparation: raw files become documents, tokens and shards, unit by unit in Ray tasks; a killed one goes on."""

from raylm.prep.prepare import PrepareProgress, PrepareReport, prepare
from raylm.prep.tasks import here, on_ray

__all__ = ["PrepareProgress", "PrepareReport", "here", "on_ray", "prepare"]
