"""A trained model to use: the module and tokenizer of a run, a checkpoint or an export, local or remote.

Weights are read straight from where they are; a tokenizer, and an export that is not on this machine, go through a
temporary folder, since transformers loads from local files only. Nothing that is read can run code.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raylm.errors import CheckpointError, ConfigError
from raylm.run.folder import CHECKPOINTS, RunFolder
from raylm.storage import Connection, NotFound, StoragePath

if TYPE_CHECKING:
    import torch

    from raylm.checkpoint.restore import CheckpointInfo
    from raylm.config.job import Job

EXPORT_RECORD = "raylm_export.json"
_CONFIG = "config.json"

Dtype = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Info:
    """Where a model came from. `run` is the run folder, where one is known; an export knows neither it nor a step."""

    kind: Literal["checkpoint", "export"]
    path: StoragePath
    run: StoragePath | None
    step: int | None
    dtype: Dtype
    context: int | None

    def __str__(self) -> str:
        return f"{self.path.url}" + (f" (step {self.step})" if self.step is not None else "")


@dataclass(frozen=True)
class Trained:
    """A module in evaluation mode on one device, its tokenizer, and where both came from."""

    model: Any
    tokenizer: Any
    info: Info

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device


def open_trained(
    path: str | Path | StoragePath | Job,
    connection: Connection = Connection(),  # noqa: B008
    *,
    dtype: Dtype | None = None,
) -> Trained:
    """The model in a run folder (its newest committed checkpoint), a checkpoint's folder or an export.

    It computes in the type it was trained in unless `dtype` says otherwise, on a GPU where there is one.
    """
    path = _place(path, connection)
    if is_export(path):
        return _open_export(path, dtype)
    found = find_checkpoint(path)
    around = RunFolder.around(found.path)
    return _open_checkpoint(found, around.path if around else None, dtype)


def _place(path: object, connection: Connection) -> StoragePath:
    """Where a run, a checkpoint or an export lies; a job's run where it trains."""
    from raylm.config.job import Job

    if isinstance(path, StoragePath):
        return path
    if isinstance(path, Job):
        return RunFolder.of(path).path
    if not isinstance(path, str | Path):
        raise ConfigError(
            f"the path of a run folder, a checkpoint or an export is needed, not {str(path)[:80]!r}",
            hint="a run's is its job's storage/name; raylm.start(job).url says it",
        )
    return StoragePath(str(path), connection)


def is_export(path: StoragePath) -> bool:
    """Whether a folder is a Hugging Face model, as `raylm export` writes it."""
    return (path / _CONFIG).exists()


def find_checkpoint(path: StoragePath) -> CheckpointInfo:
    """The checkpoint that a path names: the folder's own, or the newest that its run committed."""
    from raylm.checkpoint.restore import checkpoint_at, newest, step_folders

    if _is_prepared_data(path):
        raise CheckpointError(f"{path.url} is prepared data, not a trained model", hint="name the run's folder")
    if (own := checkpoint_at(path)) is not None:
        return own
    if path.name.startswith("step-"):
        raise CheckpointError(
            f"the checkpoint {path.url} was never committed: it has no manifest.json",
            hint="name the run's folder to get its newest committed checkpoint",
        )
    run = RunFolder(path)
    folder = path if path.name == CHECKPOINTS else run.checkpoints
    if (found := newest(folder)) is not None:
        return found
    steps = len(step_folders(folder))
    if steps or run.settings.exists() or folder.exists():
        folders = f"{steps} folder{'' if steps == 1 else 's'}, none committed"
        raise CheckpointError(
            f"no complete checkpoint in {path.url} ({folders})",
            hint="run `raylm train` until a checkpoint is committed; checkpoint.every_steps makes one sooner",
        )
    if (path / EXPORT_RECORD).exists():
        raise CheckpointError(f"the export in {path.url} was not finished", hint="run `raylm export` again")
    if not path.exists():
        raise CheckpointError(f"there is nothing at {path.url}", hint=_hint_for_missing(path))
    raise CheckpointError(
        f"{path.url} is neither a run, a checkpoint nor an export",
        hint="name a folder with run.yaml, a folder checkpoints/step-…, or what `raylm export` wrote",
    )


def read_tokenizer(folder: StoragePath) -> Any:
    """The Hugging Face tokenizer in this folder."""
    from transformers import AutoTokenizer

    with _local_copy(folder) as local:
        if local is None:
            raise CheckpointError(
                f"no tokenizer in {folder.url}",
                hint="the run's folder holds one; copy it beside the checkpoint, or name the run's folder",
            )
        try:
            return AutoTokenizer.from_pretrained(local, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the tokenizer in {folder.url} cannot be loaded: {error}", hint="restore its files from the data"
            ) from error


def _open_checkpoint(found: CheckpointInfo, run: StoragePath | None, dtype: Dtype | None) -> Trained:
    from raylm.model.build import config_from

    settings = found.state.model
    chosen: Dtype = dtype or settings.dtype
    config = config_from(found.state.model_config)
    tokenizer = read_tokenizer(RunFolder(run or found.path).tokenizer)
    model = _loaded(found, config, chosen, settings.attention)
    context = getattr(config, "max_position_embeddings", None)
    return Trained(_on_device(model), tokenizer, Info("checkpoint", found.path, run, found.step, chosen, context))


def _loaded(found: CheckpointInfo, config: Any, dtype: Dtype, attention: str) -> Any:
    """The module with a checkpoint's weights, built without being initialised first."""
    from raylm.checkpoint.restore import open_checkpoint, weights
    from raylm.model.build import auto_class_of, empty_model, quietly

    kind = _torch_dtype(dtype)
    state = weights(open_checkpoint(found), kind)
    empty = empty_model(config, attention, auto_class_of(config))
    # Buffers that the module computes itself are saved too where DeepSpeed holds them; only named state is set.
    state = {name: tensor for name, tensor in state.items() if name in empty.state_dict()}
    with quietly():
        model, report = type(empty).from_pretrained(  # type: ignore[attr-defined]
            None, config=config, state_dict=state, dtype=kind, attn_implementation=attention, output_loading_info=True
        )
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{found.path.url} lacks {len(missing)} of the model's tensors, e.g. {missing[0]}",
            hint="the checkpoint's manifest names another model than its tensors are of; use another checkpoint",
        )
    return model


def export_model(path: StoragePath, dtype: Dtype | None = None) -> Any:
    """The module in a Hugging Face folder, on the CPU; one that `raylm export` wrote is whole when config.json is."""
    import transformers

    from raylm.model.build import auto_class_of, quietly
    from raylm.model.stored_weights import LOADING_ERRORS

    with _local_copy(path) as local, quietly():
        if local is None:
            raise CheckpointError(f"there is nothing at {path.url}", hint=_hint_for_missing(path))
        try:
            config = transformers.AutoConfig.from_pretrained(local, local_files_only=True)
            return getattr(transformers, auto_class_of(config)).from_pretrained(
                local,
                dtype=_torch_dtype(dtype) if dtype else "auto",
                local_files_only=True,
                use_safetensors=True,  # never a pickle
            )
        except LOADING_ERRORS as error:
            raise CheckpointError(
                f"the model in {path.url} cannot be loaded: {error}", hint="export the run again"
            ) from error


def _open_export(path: StoragePath, dtype: Dtype | None) -> Trained:
    import torch

    model = export_model(path, dtype)
    kind: Dtype = "bf16" if model.dtype == torch.bfloat16 else "fp32"
    context = getattr(model.config, "max_position_embeddings", None)
    return Trained(_on_device(model), read_tokenizer(path), Info("export", path, None, None, kind, context))


def _on_device(model: Any) -> Any:
    import torch

    model.requires_grad_(False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _torch_dtype(dtype: Dtype) -> torch.dtype:
    import torch

    return torch.bfloat16 if dtype == "bf16" else torch.float32


def _is_prepared_data(path: StoragePath) -> bool:
    try:
        content = json.loads((path / "manifest.json").read_bytes())
    except (NotFound, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == "raylm-shards"


def _hint_for_missing(path: StoragePath) -> str:
    local = path.local_path()
    if local is None or not local.parent.is_dir():
        return "check the path; a run's folder is <storage>/<name>"
    runs = [
        entry.name for entry in sorted(local.parent.iterdir()) if RunFolder(StoragePath(str(entry))).settings.exists()
    ]
    return f"runs in {local.parent}: {', '.join(runs[:8])}" if runs else "check the path; a run is <storage>/<name>"


@contextmanager
def _local_copy(folder: StoragePath) -> Iterator[Path | None]:
    """The folder's files as local ones, None when it holds none: itself, or copies that last as long as the block."""
    local = folder.local_path()
    if local is not None:
        yield local if local.is_dir() and any(local.iterdir()) else None
        return
    with tempfile.TemporaryDirectory(prefix="raylm-") as scratch:
        copied = [_copy(path, Path(scratch) / path.name) for path in folder.list() if path.is_file()]
        yield Path(scratch) if copied else None


def _copy(source: StoragePath, target: Path) -> Path:
    with source.open_read() as reading, target.open("wb") as writing:
        while block := reading.read(16 << 20):
            writing.write(block)
    return target
