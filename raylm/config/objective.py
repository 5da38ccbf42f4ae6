"""What training minimizes: the table of objectives, and the job's choice among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from raylm.config.unions import NamedSettings
from raylm.registry import Registry

if TYPE_CHECKING:
    from raylm.objectives.base import ObjectiveKind

OBJECTIVES: Registry[ObjectiveKind] = Registry("objective", builtin={"causal": "raylm.objectives.causal:CAUSAL"})


class ObjectiveSettings(NamedSettings):
    """The objective by name, with its settings: `causal`, or `name: {…}`."""

    table: ClassVar[Registry[ObjectiveKind]] = OBJECTIVES

    @property
    def auto_class(self) -> str:
        """The class of transformers that builds the model."""
        return OBJECTIVES.get(self.name).auto_class
