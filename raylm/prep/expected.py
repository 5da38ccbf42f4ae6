"""What training will find: vocabulary and row length of shards that are there, or of those that prepare would make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raylm.config.job import Job
from raylm.config.model import ModelSettings
from raylm.errors import StorageError
from raylm.shards import MANIFEST_NAME, read_manifest
from raylm.storage import StoragePath

_SECONDS = 5.0  # of patience with an object store, for a question of arithmetic


@dataclass(frozen=True)
class Sizes:
    """Vocabulary and row length, and where they are from, in words."""

    vocabulary: int
    sequence_length: int
    origin: str


def expected_sizes(job: Job) -> Sizes:
    """The sizes of the job's shards where they can be read now, else those of its `prepare` section."""
    url = job.mixture[0].path
    store = job.object_store.connection()
    place = StoragePath(url, replace(store, retries=0, timeout_seconds=min(_SECONDS, store.timeout_seconds)))
    try:
        if (place / MANIFEST_NAME).exists():
            manifest = read_manifest(place)
            return Sizes(manifest.vocab_size, manifest.sequence_length, f"of the shards in {place.url}")
        why = f"no shards in {place.url} yet"
    except StorageError:
        why = f"{place.url} cannot be read from here"
    vocabulary, said = _vocabulary(job)
    length = job.prepare.sequence_length
    if url != job.shards_url:  # not what this job prepares: the model's own sizes say as much as there is to know
        given = _given_config(job.model)
        vocabulary = int(given.get("vocab_size") or vocabulary)
        length = min(length, int(given.get("max_position_embeddings") or length))
    return Sizes(vocabulary, length, f"as the job's prepare section says{said} ({why})")


def _given_config(model: ModelSettings) -> Mapping[str, Any]:
    """What the model's config says by itself; nothing where it cannot be read, which whoever builds it will say."""
    if isinstance(model.config, Mapping):
        return model.config
    named = model.path or model.config
    if named is None:
        return {}
    file = Path(named) / "config.json" if Path(named).is_dir() else Path(named)
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _vocabulary(job: Job) -> tuple[int, str]:
    settings = job.prepare.tokenizer
    if settings.path is None:
        return settings.vocab_size, ""
    from raylm.prep.first_look import tokenizer_facts

    try:
        return tokenizer_facts(job).vocab_size, ""
    except StorageError:
        return settings.vocab_size, ", but for the tokenizer, which cannot be read from here"
