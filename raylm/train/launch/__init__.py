"""A job in, a trained run out: checks, the run in its thread, and its hub and bodies as Ray actors."""

from raylm.train.launch.preflight import TrainResult, preflight
from raylm.train.launch.run import Run, start, train

__all__ = ["Run", "TrainResult", "preflight", "start", "train"]
