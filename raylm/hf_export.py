"""Export of a trained model, from a run or a checkpoint, as a Hugging Face folder, local or remote.

config.json is written last and removed first: without it no library takes the folder for a model. What raylm wrote
there is on record in raylm_export.json, so that an export can be repeated and a stranger's folder is never touched.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm import __version__
from raylm.errors import StorageError
from raylm.generation import Sampling
from raylm.storage import Connection, NotFound, StoragePath
from raylm.trained import EXPORT_RECORD, Dtype, Trained, open_trained

_LAST = "config.json"
_COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    folder: StoragePath
    files: tuple[str, ...]
    bytes: int
    step: int | None


def export(
    run: str | StoragePath | Trained,
    dest: str | StoragePath,
    *,
    dtype: Dtype | None = None,
    connection: Connection = Connection(),  # noqa: B008
    dest_connection: Connection | None = None,
) -> Exported:
    """Write weights as safetensors, tokenizer and generation settings; AutoModelForCausalLM loads the folder.

    `connection` is for the run, and for the destination too unless `dest_connection` says otherwise.
    """
    target = StoragePath(dest, dest_connection or connection) if isinstance(dest, str) else dest
    before = _earlier_files(target)
    target.check_writable()
    trained = run if isinstance(run, Trained) else open_trained(run, connection, dtype=dtype)
    with tempfile.TemporaryDirectory(prefix="raylm-export-", dir=_scratch(target)) as scratch:
        staged = Path(scratch)
        _save(trained, staged)
        files = sorted((path.name for path in staged.iterdir()), key=lambda name: (name == _LAST, name))
        total = sum((staged / name).stat().st_size for name in files)
        (target / _LAST).remove()
        record = {"raylm": __version__, "source": str(trained.info), "files": files}
        (target / EXPORT_RECORD).write_text(json.dumps(record, indent=1) + "\n")
        for name in before - set(files):
            (target / name).remove()
        for name in files:
            _put(staged / name, target / name)
    return Exported(target, (*files, EXPORT_RECORD), total, trained.info.step)


def _earlier_files(target: StoragePath) -> set[str]:
    """The files of an earlier export here; StorageError when the folder holds anything else."""
    there = [path.name for path in target.list()]
    if not there:
        return set()
    try:
        record = json.loads((target / EXPORT_RECORD).read_bytes())
        names = {str(name) for name in record["files"]}
    except (NotFound, ValueError, KeyError, TypeError):
        names = set()
    foreign = sorted(set(there) - names - {EXPORT_RECORD})
    if not names or foreign:
        raise StorageError(
            f"{target.url} is not empty and not an export of raylm's: it holds {', '.join((foreign or there)[:3])}",
            hint="name a new or empty folder",
        )
    return names & set(there)


def _save(trained: Trained, folder: Path) -> None:
    """The Hugging Face files, on this machine."""
    from transformers import GenerationConfig

    from raylm.model.build import quietly

    tokenizer, model = trained.tokenizer, trained.model
    model.config.use_cache = True
    model.generation_config = _generation(GenerationConfig, tokenizer)
    if getattr(model.config, "eos_token_id", None) is None:
        model.config.eos_token_id = tokenizer.eos_token_id
    with quietly():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _generation(kind: Any, tokenizer: Any) -> Any:
    usual = Sampling()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return kind(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
        do_sample=True,
        temperature=usual.temperature,
        top_p=usual.top_p,
    )


def _scratch(target: StoragePath) -> Path | None:
    """Beside a local destination, so that files move rather than being copied; else where temporary files go."""
    local = target.local_path()
    if local is None:
        return None
    local.parent.mkdir(parents=True, exist_ok=True)
    return local.parent


def _put(source: Path, target: StoragePath) -> None:
    local = target.local_path()
    if local is not None:
        local.parent.mkdir(parents=True, exist_ok=True)
        source.replace(local)
        return
    with source.open("rb") as reading, target.open_write() as writing:
        shutil.copyfileobj(reading, writing, _COPY_BYTES)
