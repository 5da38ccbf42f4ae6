"""A job in, a trained run out: the driver, and the decisions it takes from Ray Train."""

from raylm.train.launch.driver import train
from raylm.train.launch.preflight import TrainResult, preflight

__all__ = ["TrainResult", "preflight", "train"]
