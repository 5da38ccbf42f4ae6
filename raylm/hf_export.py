"""Export of a trained model, from a run or a checkpoint, as a Hugging Face folder, local or remote.

config.json is written last and removed first: without it no library takes the folder for a model. What raylm wrote
there is on record in raylm_export.json, so that an export can be repeated and a stranger's folder is never touched.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylm import __version__
from raylm.errors import RaylmError, StorageError
from raylm.generation import Sampling
from raylm.storage import Connection, NotFound, StoragePath
from raylm.storage.errors import in_words
from raylm.trained import EXPORT_RECORD, Dtype, Trained, open_trained

if TYPE_CHECKING:
    from raylm.config.job import Job

_LAST = "config.json"
_COPY_BYTES = 16 << 20
_PATTERNED = ("cohere2", "gemma3_text")  # whose kinds of layers were given by a number before 4.53


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    folder: StoragePath
    files: tuple[str, ...]
    bytes: int
    step: int | None


def export(
    run: str | Path | StoragePath | Job | Trained,
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
        with _full_disk_in_words(staged):
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


@contextmanager
def _full_disk_in_words(folder: Path) -> Iterator[None]:
    """Raise StorageError where the files cannot be written on this machine; safetensors has errors of its own."""
    from safetensors import SafetensorError

    try:
        with in_words(str(folder), "write"):
            yield
    except SafetensorError as error:
        raise StorageError(
            f"cannot write {folder}: {error}", hint="free some space there, or let TMPDIR name another disk"
        ) from error


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
    from raylm.model.build import quietly

    tokenizer, model = trained.tokenizer, trained.model
    config = model.config
    config.use_cache = True
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is not None:
        config.tie_word_embeddings = outputs.weight is inputs.weight
    config.eos_token_id = _with_end(getattr(config, "eos_token_id", None), tokenizer.eos_token_id)
    model.generation_config = _generation(trained, config.eos_token_id)
    with quietly():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, legible in ((_LAST, older_config), ("tokenizer_config.json", older_tokenizer_config)):
        file = folder / name
        file.write_text(json.dumps(legible(json.loads(file.read_text())), indent=2, ensure_ascii=False) + "\n")


def _with_end(named: Any, end: int | None) -> Any:
    """The ends of text that the model's config names, with the tokenizer's among them."""
    ends = named if isinstance(named, list) else [named]
    return named if end is None or end in ends else end


def _generation(trained: Trained, ends: Any) -> Any:
    """The settings that the base model was published with, or usual ones; either way this tokenizer's end of text."""
    from transformers import GenerationConfig

    tokenizer = trained.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    base = base_generation(trained)
    if base is not None:
        base.eos_token_id = _with_end(base.eos_token_id, tokenizer.eos_token_id)
        base.pad_token_id = pad if base.pad_token_id is None else base.pad_token_id
        return base
    usual = Sampling()
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=pad,
        do_sample=True,
        temperature=usual.temperature,
        top_p=usual.top_p,
    )


def base_generation(trained: Trained) -> Any:
    """generation_config.json of the folder that the run's `model.path` names, where it is still there; else None."""
    from transformers import GenerationConfig

    from raylm.config.load import load_job
    from raylm.run.folder import RunFolder

    if trained.info.run is None:
        return None
    settings = RunFolder(trained.info.run).settings
    try:
        path = load_job(settings.url).model.path if settings.is_local and settings.exists() else None
        if path is None or not (Path(path) / "generation_config.json").is_file():
            return None
        return GenerationConfig.from_pretrained(path, local_files_only=True)
    except (RaylmError, OSError, ValueError, TypeError):
        return None  # that folder is not the run's any more


def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json that transformers 4.x and converters read as 5.x does: they know some settings by other names."""
    made = dict(config)
    if "dtype" in made:
        made.setdefault("torch_dtype", made["dtype"])
    if made.get("model_type") == "gpt2" and "n_positions" in made:
        made.setdefault("n_ctx", made["n_positions"])  # which llama.cpp's converter asks for
    if "num_local_experts" in made:
        made.setdefault("num_experts", made["num_local_experts"])  # Qwen3's name for it
    every = _full_attention_every(made.get("layer_types") or [])
    if made.get("model_type") in _PATTERNED and every is not None:
        made["sliding_window_pattern"] = every
    rope = made.get("rope_parameters")
    return made | _older_rope(made, rope) if isinstance(rope, dict) else made


def _full_attention_every(kinds: list[str]) -> int | None:
    """Each how-manieth layer attends to all tokens, one more than there are where none does; None if irregular."""
    full = [number for number, kind in enumerate(kinds, 1) if kind == "full_attention"]
    every = full[0] if full else len(kinds) + 1
    return every if kinds and full == list(range(every, len(kinds) + 1, every)) else None


def _older_rope(config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """What 4.x calls the parts of `rope_parameters`."""
    whole, local = rope, None
    if any(isinstance(value, dict) for value in rope.values()):  # one for each kind of layer
        whole, local = rope.get("full_attention") or {}, rope.get("sliding_attention")
    named: dict[str, Any] = {key: whole[key] for key in ("rope_theta", "partial_rotary_factor") if key in whole}
    if local and "rope_theta" in local:
        named["rope_local_base_freq"] = local["rope_theta"]
    if config.get("model_type") == "gpt_neox":  # which had names of its own
        named["rotary_emb_base"] = whole.get("rope_theta", config.get("rotary_emb_base"))
        named["rotary_pct"] = whole.get("partial_rotary_factor", config.get("rotary_pct"))
    scaling = {key: value for key, value in whole.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if config.get("model_type") == "phi3" and scaling.get("rope_type") == "longrope":
        scaling = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
        scaling.pop("original_max_position_embeddings", None)  # beside it, and no fourth key is taken
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    named["rope_scaling"] = scaling if kind != "default" else None
    return named


def older_tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json that transformers 4.x reads, too."""
    made = dict(config)
    if made.get("tokenizer_class") in ("TokenizersBackend", None):
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(more := made.get("extra_special_tokens"), list):
        del made["extra_special_tokens"]
        made["additional_special_tokens"] = more
    return made


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
