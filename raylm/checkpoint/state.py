"""What a checkpoint says besides its tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from raylm.config.model import ModelSettings
from raylm.errors import CheckpointError
from raylm.records import Progress
from raylm.run.identity import Identity

if TYPE_CHECKING:
    import torch

# What signed URLs of the large clouds carry.
SECRET_PARAMETERS = {"sig", "signature", "token", "x-amz-signature", "x-amz-security-token", "x-goog-signature"}


@dataclass(frozen=True)
class Parent:
    """What a run was branched from: a checkpoint of a step, or an export, which knows none.

    fingerprint: of the parent run's identity, or of an export's weights.
    """

    url: str
    step: int | None
    fingerprint: str


@dataclass(frozen=True)
class RunState:
    """The state of a run that is not a tensor.

    identity: which run it is. tokenizer: the fingerprint of its data's tokenizer. model_config: the transformers
    config. model: the settings it was built with. tied: further name → first name of each shared parameter.
    held_out_loss: measured at this step, None when it was not. parent: None unless the run was branched from another.
    """

    progress: Progress
    identity: Identity
    tokenizer: str
    model_config: Mapping[str, Any]
    model: ModelSettings
    tied: Mapping[str, str]
    zero_stage: int
    held_out_loss: float | None
    parent: Parent | None

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values, as the manifest holds it."""
        return {**asdict(self), "model": self.model.model_dump(mode="json")}


def tied_names(module: torch.nn.Module) -> dict[str, str]:
    """Further name -> first name of each parameter that a module has under several; what `RunState.tied` holds."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            tied[name] = known
    return tied


def check_state(state: RunState) -> None:
    """The state must be JSON, which is better known now than in a thread; and no URL in it may carry credentials."""
    values = state.to_json()
    json.dumps(values)
    for path, text in _texts(values, "state"):
        url = urlsplit(text) if "://" in text else None
        if url is not None and ("@" in url.netloc or SECRET_PARAMETERS & parse_qs(url.query.lower()).keys()):
            raise CheckpointError(
                f"{path} would put credentials into a checkpoint's manifest, which is read by many",
                hint="put them in the environment or the provider's profile, not in a URL",
            )


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string in nested JSON, with where it stands."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{path}[{number}]")
