"""One unit of preparation: its documents are split, tokenized and packed into at most one shard a side.

Comes in: a `Unit`. Leaves: shards under train/ and held_out/, and then a marker that says that the unit is done. Doing
a unit again gives the same bytes, so that it does not matter how often, or where, a task is started over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raylm.config.schema import PrepareSettings, TextSource
from raylm.prep.documents import read_piece
from raylm.prep.left_out import LeftOut
from raylm.prep.plan import Unit
from raylm.prep.tokenizer import TokenizerFacts
from raylm.prep.tokenizer import load as load_tokenizer
from raylm.records import Document
from raylm.shards import TOKENIZER_FOLDER, Shard, ShardWriter, token_dtype
from raylm.storage import NotFound, Place, Reach

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORK_FOLDER = "_work"
_BATCH_BYTES = 4_000_000  # text handed to the tokenizer at once
_PACKED_ROWS = 256  # rows cut at once


@dataclass(frozen=True)
class UnitResult:
    """What one unit gave; `counts` go into the manifest, examples of what was left out beside it."""

    number: int
    source: str
    train: Shard | None
    held_out: Shard | None
    counts: dict[str, int]
    left_out: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As the marker holds it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> UnitResult:
        """What to_json wrote."""
        content = json.loads(text)
        for side in ("train", "held_out"):
            content[side] = Shard(**content[side]) if content[side] else None
        return cls(**content)


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is kept for held-out loss: by its hash, so that equal texts are on the same side."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def marker(output: Place, number: int) -> Place:
    """The file that says that a unit is done, and what it gave."""
    return output / WORK_FOLDER / "units" / f"{number:06d}.json"


def finished(output: Place, number: int) -> UnitResult | None:
    """What a unit gave, if it is done."""
    try:
        return UnitResult.from_json(marker(output, number).read_text())
    except NotFound:
        return None


def unit_documents(source: TextSource, unit: Unit, reach: Reach, left_out: LeftOut) -> Iterator[Document]:
    """The unit's documents in order."""
    for piece in unit.pieces:
        yield from read_piece(source, piece, reach, left_out)


def prepare_unit(output: Place, settings: PrepareSettings, source: TextSource, unit: Unit, reach: Reach) -> UnitResult:
    """Do the unit unless it is done; `reach` is for the sources."""
    done = finished(output, unit.number)
    if done is not None:
        return done
    # One task is promised one CPU; the library would take them all.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer, facts = load_tokenizer(output / TOKENIZER_FOLDER)
    left_out = LeftOut()
    counts = dict.fromkeys(
        ("documents", "held_out_documents", "bytes", "held_out_bytes", "tokens", "held_out_tokens"), 0
    )
    with contextlib.ExitStack() as stack:
        sides = {
            held_out: stack.enter_context(_Packer(output, folder, unit.number, settings.sequence_length, facts))
            for held_out, folder in ((False, "train"), (True, "held_out"))
        }
        for batch in _batches(unit_documents(source, unit, reach, left_out), _BATCH_BYTES):
            texts = [document.text for document in batch]
            for text, encoding in zip(texts, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
                held_out = is_held_out(text, settings.held_out)
                prefix = "held_out_" if held_out else ""
                counts[f"{prefix}documents"] += 1
                counts[f"{prefix}bytes"] += len(text.encode())
                counts[f"{prefix}tokens"] += sides[held_out].add(encoding.ids)
        shards = {held_out: packer.close() for held_out, packer in sides.items()}
    counts |= left_out.counts()
    result = UnitResult(unit.number, unit.source, shards[False], shards[True], counts, left_out.to_dict())
    marker(output, unit.number).write_text(result.to_json())
    return result


def _batches(documents: Iterable[Document], most_bytes: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document.text)
        if held >= most_bytes:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


class _Packer:
    """Joins documents into rows of fixed length and writes them; the shard begins with the first document."""

    def __init__(self, output: Place, side: str, number: int, sequence_length: int, facts: TokenizerFacts) -> None:
        self._path = f"{side}/{number:06d}.parquet"
        self._output = output
        self._sequence_length = sequence_length
        self._facts = facts
        self._dtype = token_dtype(facts.vocab_size)
        self._stack = contextlib.ExitStack()
        self._writer: ShardWriter | None = None
        self._documents: list[NDArray[Any]] = []
        self._held = 0
        self._fresh = True  # whether the next token begins a document

    def __enter__(self) -> _Packer:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, ids: list[int]) -> int:
        """Append one document and its end-of-text token; the number of tokens."""
        import numpy as np

        if self._writer is None:
            self._writer = self._stack.enter_context(
                ShardWriter(
                    self._output / self._path,
                    self._sequence_length,
                    self._dtype,
                    path=self._path,
                    tokenizer=self._facts.fingerprint,
                    eos_id=self._facts.eos_id,
                )
            )
        self._documents.append(np.array([*ids, self._facts.eos_id], dtype=self._dtype))
        self._held += len(ids) + 1
        if self._held >= self._sequence_length * _PACKED_ROWS:
            self._cut(last=False)
        return len(ids) + 1

    def close(self) -> Shard | None:
        """Write what is left, the last row padded; None when there was no document."""
        if self._writer is None:
            return None
        self._cut(last=True)
        return self._writer.close()

    def _cut(self, last: bool) -> None:
        import numpy as np

        if not self._documents or self._writer is None:
            return
        tokens = np.concatenate(self._documents)
        ends = np.cumsum([len(document) for document in self._documents])
        # The first array may be the rest of a document whose beginning is in an earlier row.
        starts = np.concatenate([[0], ends[:-1]]) if self._fresh else ends[:-1]
        step = self._sequence_length
        whole = len(tokens) if last else len(tokens) // step * step
        for begin in range(0, whole, step):
            row = tokens[begin : begin + step]
            first, stop = np.searchsorted(starts, [begin, begin + len(row)])
            inside = starts[first:stop] - begin
            if len(inside) == 0 or inside[0] != 0:
                inside = np.concatenate([[0], inside])
            self._writer.add(row, inside)
        rest = tokens[whole:]
        self._keep(rest, starts[starts >= whole] - whole)

    def _keep(self, rest: NDArray[Any], starts: NDArray[np.int64]) -> None:
        """Hold the tokens that do not fill a row, cut where documents begin."""
        import numpy as np

        self._held = len(rest)
        self._fresh = len(rest) == 0 or (len(starts) > 0 and starts[0] == 0)
        cuts = starts[starts > 0]
        self._documents = [part for part in np.split(rest, cuts) if len(part)]
