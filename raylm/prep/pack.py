"""One unit of preparation: its documents are split, tokenized and packed into at most one shard a side.

Comes in: a `Unit`. Leaves: shards under train/ and held_out/. Doing a unit again gives the same bytes, so that it does
not matter how often, or where, a task is started over.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raylm.config.schema import Job
from raylm.prep.measures import Measures
from raylm.prep.plan import Unit
from raylm.prep.split import document_held_out
from raylm.prep.stages import Stage, UnitLog, UnitResult, batches, stage_documents
from raylm.prep.steps import StepRecord
from raylm.prep.tokenizer import TokenizerFacts
from raylm.prep.tokenizer import load as load_tokenizer
from raylm.shards import TOKENIZER_FOLDER, Shard, ShardWriter, token_dtype
from raylm.storage import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOKENIZE = "tokenize"  # what comes after the last step, in its record
_BATCH_BYTES = 4_000_000  # text handed to the tokenizer at once
_PACKED_ROWS = 256  # rows cut at once


def pack_unit(job: Job, output: Place, stages: Sequence[Stage], unit: Unit) -> UnitResult:
    """Take the unit through the last of these stages and pack what it leaves."""
    # One task is promised one CPU; the library would take them all.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer, facts = load_tokenizer(output / TOKENIZER_FOLDER)
    log = UnitLog()
    lengths = StepRecord(TOKENIZE)
    measures = Measures(job)
    held_out_share = job.prepare.held_out
    counts = dict.fromkeys(
        ("documents", "held_out_documents", "bytes", "held_out_bytes", "tokens", "held_out_tokens"), 0
    )
    with contextlib.ExitStack() as stack:
        sides = {
            held_out: stack.enter_context(_Packer(output, folder, unit.number, job.prepare.sequence_length, facts))
            for held_out, folder in ((False, "train"), (True, "held_out"))
        }
        for batch in batches(stage_documents(job, output, stages, unit, log), _BATCH_BYTES):
            texts = [document.text for document in batch]
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            for document, encoding in zip(batch, encodings, strict=True):
                measures.add(document)
                lengths.tally("tokens of a document, from", str(_power_of_two(len(encoding.ids))))
                held_out = document_held_out(document, held_out_share)
                prefix = "held_out_" if held_out else ""
                counts[f"{prefix}documents"] += 1
                counts[f"{prefix}bytes"] += len(document.text.encode())
                counts[f"{prefix}tokens"] += sides[held_out].add(encoding.ids)
        shards = {held_out: packer.close() for held_out, packer in sides.items()}
    lengths.documents = lengths.kept = counts["documents"] + counts["held_out_documents"]
    lengths.bytes = lengths.kept_bytes = counts["bytes"] + counts["held_out_bytes"]
    log.steps.append(lengths)
    return UnitResult(unit.number, unit.source, log, shards[False], shards[True], counts, measures.to_dict())


def _power_of_two(number: int) -> int:
    """The largest that is not above the number; 0 for 0."""
    return 1 << number.bit_length() - 1 if number else 0


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
