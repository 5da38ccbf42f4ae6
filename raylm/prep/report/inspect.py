"""What a person wants to see of a prepared dataset, without reading all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from raylm.prep.tokenizer import load as load_tokenizer
from raylm.shards import TOKENIZER_FOLDER, DatasetManifest, Shard, read_manifest, read_rows
from raylm.storage import StoragePath

Item = TypeVar("Item")
_SHARDS = 8  # looked into, evenly spread
_ROWS = 128  # read of each


@dataclass(frozen=True)
class DatasetSample:
    """lengths: tokens of the documents that were looked at, ascending. samples: their text, decoded, in order."""

    manifest: DatasetManifest
    lengths: tuple[int, ...]
    samples: tuple[str, ...]

    def quantile(self, share: float) -> int:
        """The length that this share of the documents does not exceed; 0 when none was seen whole."""
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))] if self.lengths else 0


def inspect_dataset(folder: StoragePath, samples: int) -> DatasetSample:
    """Read the manifest and some rows of a few shards; documents that go on beyond those rows are left out."""
    manifest = read_manifest(folder)
    tokenizer, _ = load_tokenizer(folder / TOKENIZER_FOLDER)
    found = [
        list(_documents(folder, shard, manifest)) for shard in _spread(manifest.train or manifest.held_out, _SHARDS)
    ]
    lengths = sorted(len(ids) for documents in found for ids in documents)
    chosen = _spread([documents[0] for documents in found if documents], samples)
    if len(chosen) < samples:
        chosen = _spread([ids for documents in found for ids in documents], samples)
    texts = tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in chosen)
    return DatasetSample(manifest, tuple(lengths), texts)


def _documents(folder: StoragePath, shard: Shard, manifest: DatasetManifest) -> Iterator[list[int]]:
    rows = read_rows(folder, shard, 0, min(shard.rows, _ROWS), manifest)
    tokens: list[int] = []
    starts: list[int] = []
    for row, begins, length in zip(rows.tokens, rows.document_starts, rows.lengths, strict=True):
        # A row begins with a start of its own, also where it goes on with a document of the row before.
        fresh = not tokens or tokens[-1] == manifest.eos_id
        starts += [len(tokens) + int(begin) for begin in begins if begin or fresh]
        tokens += row[:length].tolist()
    if tokens and tokens[-1] == manifest.eos_id:
        starts.append(len(tokens))
    for start, stop in pairwise(starts):
        yield tokens[start:stop]


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    return [items[index * len(items) // most] for index in range(most)] if len(items) > most else list(items)
