"""A job in, a trained run out: the driver, and the decisions it takes from Ray Train."""

from raylm.train.launch.driver import TrainResult, preflight, train

__all__ = ["TrainResult", "preflight", "train"]
