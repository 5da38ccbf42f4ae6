"""What training minimizes: an objective per file, found by name in `raylm.config.objective.OBJECTIVES`."""

from raylm.objectives.base import DeviceBatch, LossSums, Objective, ObjectiveKind, objective_of, register_objective

__all__ = ["DeviceBatch", "LossSums", "Objective", "ObjectiveKind", "objective_of", "register_objective"]
