"""A job in, a trained run out: checks, the run in its thread, and Ray Train with raylm's decisions."""

from raylm.train.launch.preflight import TrainResult, preflight
from raylm.train.launch.run import Run, start, train

__all__ = ["Run", "TrainResult", "preflight", "start", "train"]
