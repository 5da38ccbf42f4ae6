"""Elastic training of language models: text in, shards, lanes, workers that come and go, checkpoints, exports out.

    import raylm

    job = raylm.load_job("jobs/quickstart.yaml", {"train.steps": 50})
    raylm.prepare(job)

Each name below is imported when it is first used, so that `import raylm` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from raylm.config.job import Job as Job
    from raylm.config.load import job_from as job_from
    from raylm.config.load import load_job as load_job
    from raylm.config.load import with_overrides as with_overrides
    from raylm.errors import RaylmError as RaylmError
    from raylm.evaluation import evaluate as evaluate
    from raylm.generation import generate as generate
    from raylm.hf_export import export as export
    from raylm.objectives import register_objective as register_objective
    from raylm.prep.operators import register_operator as register_operator
    from raylm.prep.prepare import prepare as prepare
    from raylm.prep.readers import register_source as register_source
    from raylm.train.launch import Run as Run
    from raylm.train.launch import start as start
    from raylm.train.launch import train as train
    from raylm.trained import open_trained as open_trained

# Public name → the module that has it.
_PUBLIC = {
    "Job": "raylm.config.job",
    "RaylmError": "raylm.errors",
    "Run": "raylm.train.launch",
    "evaluate": "raylm.evaluation",
    "export": "raylm.hf_export",
    "generate": "raylm.generation",
    "job_from": "raylm.config.load",
    "load_job": "raylm.config.load",
    "open_trained": "raylm.trained",
    "prepare": "raylm.prep.prepare",
    "register_objective": "raylm.objectives",
    "register_operator": "raylm.prep.operators",
    "register_source": "raylm.prep.readers",
    "start": "raylm.train.launch",
    "train": "raylm.train.launch",
    "with_overrides": "raylm.config.load",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'raylm' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
