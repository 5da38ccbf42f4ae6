"""What a checkpoint says besides its tensors, for tests that save one without a job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raylm.checkpoint.state import RunState
from raylm.config.model import ModelSettings
from raylm.records import Progress
from raylm.run.identity import Identity


def run_state(step: int, **changes: Any) -> RunState:
    """The state of a run after `step` steps; `changes` are fields of it."""
    state = RunState(
        progress=Progress(step=step),
        identity=Identity(data="data", order={}, model={}, optimizer={}),
        tokenizer="tokenizer",
        model_config={},
        model=ModelSettings(),
        tied={},
        zero_stage=1,
        held_out_loss=None,
        parent=None,
    )
    return replace(state, **changes)
