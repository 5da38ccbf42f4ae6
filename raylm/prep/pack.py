"""One unit of preparation: its documents are split, tokenized and packed into at most one shard per side.

Its shards lie under train/ and held_out/. Doing a unit again gives the same bytes, so that it does
not matter how often, or where, a task is started over.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raylm.config.job import Job
from raylm.prep.checks.measures import Measures
from raylm.prep.languages import language_of
from raylm.prep.operators import OperatorRecord
from raylm.prep.operators.base import batches
from raylm.prep.passes import Pass, UnitLog, UnitResult, pass_documents
from raylm.prep.report.fertility import Fertility
from raylm.prep.split import document_held_out
from raylm.prep.tokenizer import TokenizerFacts, partial_and_unknown
from raylm.prep.tokenizer import load as load_tokenizer
from raylm.prep.tokenizer.spelling import BYTE, byte_pieces, control_ids, lost_characters, may_lose, spelled_apart
from raylm.prep.units import Unit
from raylm.records import Document
from raylm.shards import TOKENIZER_FOLDER, RowFormat, Shard, ShardWriter, token_dtype
from raylm.storage import StoragePath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOKENIZE = "tokenize"  # what comes after the last operator, as its record is named
# Text handed to the tokenizer at once. With 4 MB, memory for its answers was mapped anew each time: 5 % slower.
BATCH_CHARACTERS = 500_000
_PACKED_ROWS = 256  # rows cut at once


def pack_unit(job: Job, output: StoragePath, current: Pass, unit: Unit) -> UnitResult:
    """Take the unit through the last pass and pack what it leaves."""
    log = UnitLog()
    packed = pack_documents(job, output, unit.number, pass_documents(job, output, current, unit, log))
    log.records.append(packed.record)
    counts = packed.counts
    fertility = {language: one.to_dict() for language, one in sorted(packed.fertility.items())}
    shards = (packed.shards[False], packed.shards[True])
    return UnitResult(unit.number, unit.source, log, *shards, counts, packed.measures.to_dict(), fertility)


@dataclass
class Packed:
    """What became of a unit's documents. shards: by whether they are held out. fertility: by language."""

    record: OperatorRecord
    measures: Measures
    counts: dict[str, int]
    shards: dict[bool, Shard | None] = field(default_factory=dict)
    fertility: dict[str, Fertility] = field(default_factory=dict)


def pack_documents(job: Job, output: StoragePath, number: int, documents: Iterable[Document]) -> Packed:
    """Tokenize the documents and write them as the unit's shards."""
    import numpy as np

    # One task is promised one CPU; the library would take them all.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = output / TOKENIZER_FOLDER
    tokenizer, facts = load_tokenizer(folder)
    packed = Packed(OperatorRecord(TOKENIZE), Measures(job, output), dict.fromkeys(_COUNTS, 0))
    with contextlib.ExitStack() as stack:
        packers = {
            held_out: stack.enter_context(_Packer(output, side, number, job.prepare.sequence_length, facts))
            for held_out, side in ((False, "train"), (True, "held_out"))
        }
        for batch in batches(documents, BATCH_CHARACTERS):
            for document in batch:
                packed.measures.add(document)
            texts = [document.text for document in batch]
            tokens, lost = _spelled(folder, tokenizer, facts, texts)
            sizes = np.fromiter((len(text.encode()) for text in texts), dtype=np.int64, count=len(texts))
            _measure(packed, batch, sizes, tokens, partial_and_unknown(folder), lost)
            for held_out, mine in _sides(batch, job.prepare.held_out):
                _count(packed.counts, "held_out_" if held_out else "", sizes[mine], tokens.lengths[mine])
                packers[held_out].add(tokens.of(mine))
        packed.shards = {held_out: packer.close() for held_out, packer in packers.items()}
    record, counts = packed.record, packed.counts
    record.documents = record.kept = counts["documents"] + counts["held_out_documents"]
    record.bytes = record.kept_bytes = counts["bytes"] + counts["held_out_bytes"]
    return packed


_COUNTS = ("documents", "held_out_documents", "bytes", "held_out_bytes", "tokens", "held_out_tokens")


@dataclass(frozen=True)
class _Tokens:
    """Documents' ids one after the other, each with its end of text, and how many each has."""

    ids: NDArray[Any]
    lengths: NDArray[np.int64]

    def of(self, mine: NDArray[np.bool_]) -> _Tokens:
        """Those of some documents."""
        import numpy as np

        if mine.all():
            return self
        return _Tokens(self.ids[np.repeat(mine, self.lengths)], self.lengths[mine])


def _spelled(
    folder: StoragePath, tokenizer: Any, facts: TokenizerFacts, texts: list[str]
) -> tuple[_Tokens, NDArray[np.int64]]:
    """The texts' tokens, and how many characters of each no token stands for. No text is cut into a control token."""
    import numpy as np

    lost = np.zeros(len(texts), dtype=np.int64)
    if may_lose(folder):
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        lost[:] = [lost_characters(text, one.offsets) for text, one in zip(texts, encodings, strict=True)]
    else:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ids = [encoding.ids for encoding in encodings]
    tokens = _tokens(ids, facts)
    control = control_ids(folder)[tokens.ids]
    ends = np.cumsum(tokens.lengths)
    control[ends - 1] = False
    apart = set(np.searchsorted(ends, np.flatnonzero(control), side="right").tolist())
    if byte_pieces(folder) is not None:
        apart |= {number for number, text in enumerate(texts) if "<0x" in text and BYTE.search(text)}
    if apart:
        for number in apart:
            ids[number] = spelled_apart(folder, texts[number])
        tokens = _tokens(ids, facts)
    return tokens, lost


def _tokens(documents: Sequence[Sequence[int]], facts: TokenizerFacts) -> _Tokens:
    """The documents' ids, each with the end of text."""
    import numpy as np

    # One array of all: making one per document takes longer than filling it when documents are short.
    lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents)) + 1
    ends = np.cumsum(lengths) - 1
    text = np.ones(lengths.sum(), dtype=bool)
    text[ends] = False
    ids = np.full(len(text), facts.eos_id, dtype=token_dtype(facts.vocab_size))
    numbers = itertools.chain.from_iterable(documents)
    ids[text] = np.fromiter(numbers, dtype=ids.dtype, count=len(ids) - len(lengths))
    return _Tokens(ids, lengths)


def _sides(batch: Sequence[Document], share: float) -> Iterator[tuple[bool, NDArray[np.bool_]]]:
    """Each side that documents fall to, and which."""
    import numpy as np

    held_out = np.array([document_held_out(document, share) for document in batch])
    for side in (False, True):
        mine = held_out == side
        if mine.any():
            yield side, mine


def _count(counts: dict[str, int], side: str, sizes: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
    counts[f"{side}documents"] += len(sizes)
    counts[f"{side}bytes"] += int(sizes.sum())
    counts[f"{side}tokens"] += int(lengths.sum())


def _measure(
    packed: Packed,
    batch: Sequence[Document],
    sizes: NDArray[np.int64],
    tokens: _Tokens,
    doubtful: Mapping[str, NDArray[np.bool_]],
    lost: NDArray[np.int64],
) -> None:
    """Keep what the report tells of these documents: their lengths, and how finely they are cut in each language.

    lost: characters of each that no token stands for; they count as unknown tokens.
    """
    import numpy as np

    lengths = Counter((tokens.lengths - 1).tolist())
    for length, count in lengths.items():
        packed.record.tally("tokens of a document, from", str(_power_of_two(length)), count)
    languages = np.array([language_of(document.meta) for document in batch])
    for language in sorted(set(languages.tolist())):
        mine = languages == language
        chosen = tokens.of(mine)
        texts = [document.text for document in itertools.compress(batch, mine)]
        packed.fertility.setdefault(language, Fertility()).add(
            Fertility(
                documents=len(texts),
                bytes=int(sizes[mine].sum()),
                characters=sum(map(len, texts)),
                words=len("\n".join(texts).split()),
                tokens=len(chosen.ids) - len(texts),
                partial=int(doubtful["partial"][chosen.ids].sum()),
                unknown=int(doubtful["unknown"][chosen.ids].sum() + lost[mine].sum()),
            )
        )


def _power_of_two(number: int) -> int:
    """The largest that is not above the number; 0 for 0."""
    return 1 << number.bit_length() - 1 if number else 0


class _Packer:
    """Joins documents into rows of fixed length and writes them; the shard begins with the first document."""

    def __init__(
        self, output: StoragePath, side: str, number: int, sequence_length: int, facts: TokenizerFacts
    ) -> None:
        self._path = f"{side}/{number:06d}.parquet"
        self._output = output
        self._sequence_length = sequence_length
        self._rows = RowFormat(sequence_length, facts.vocab_size, facts.fingerprint, facts.eos_id)
        self._stack = contextlib.ExitStack()
        self._writer: ShardWriter | None = None
        self._documents: list[_Tokens] = []
        self._held = 0
        self._fresh = True  # whether the next token begins a document

    def __enter__(self) -> _Packer:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, tokens: _Tokens) -> None:
        """Append documents."""
        if self._writer is None:
            self._writer = self._stack.enter_context(
                ShardWriter(self._output / self._path, self._rows, name=self._path)
            )
        self._documents.append(tokens)
        self._held += len(tokens.ids)
        if self._held >= self._sequence_length * _PACKED_ROWS:
            self._cut(last=False)

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
        tokens = np.concatenate([documents.ids for documents in self._documents])
        ends = np.cumsum(np.concatenate([documents.lengths for documents in self._documents]))
        # The first may be the rest of a document whose beginning is in an earlier row.
        starts = np.concatenate([[0], ends[:-1]]) if self._fresh else ends[:-1]
        step = self._sequence_length
        whole = len(tokens) if last else len(tokens) // step * step
        begins = np.arange(0, whole, step)
        firsts = np.searchsorted(starts, begins)
        stops = np.searchsorted(starts, np.minimum(begins + step, len(tokens)))
        for begin, first, stop in zip(begins.tolist(), firsts.tolist(), stops.tolist(), strict=True):
            inside = starts[first:stop] - begin
            if len(inside) == 0 or inside[0] != 0:
                inside = np.concatenate([[0], inside])
            self._writer.add(tokens[begin : begin + step], inside)
        self._keep(tokens[whole:], starts[starts >= whole] - whole)

    def _keep(self, rest: NDArray[Any], starts: NDArray[np.int64]) -> None:
        """Hold the tokens that do not fill a row, and where documents begin among them."""
        import numpy as np

        self._held = len(rest)
        self._fresh = len(rest) == 0 or (len(starts) > 0 and starts[0] == 0)
        cuts = [0, *starts[starts > 0].tolist(), len(rest)]
        self._documents = [_Tokens(rest.copy(), np.diff(cuts))] if len(rest) else []
