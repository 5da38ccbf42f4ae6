"""Takes out what evaluation sets hold too: once, before any unit, the sets become an index of their runs of words.

A run of 13 words is what GPT-3 ("Language Models are Few-Shot Learners", appendix C), lm-eval and, with 12, datatrove
call contamination.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raylm.config.base import Settings
from raylm.errors import DataError
from raylm.prep.operators.base import Operator, per_document
from raylm.prep.operators.decontaminate.evaluation_sets import EvaluationSet, records
from raylm.prep.operators.decontaminate.ngrams import (
    NgramHasher,
    NgramIndex,
    SetNgrams,
    Shared,
    ngrams_of_records,
    word_places,
)
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.record import OperatorRecord, cut_out
from raylm.prep.operators.words import SENTENCE_GAP
from raylm.prep.safetensors import from_safetensors, to_safetensors
from raylm.records import Document
from raylm.storage import StoragePath

INDEX_NAME = "runs.safetensors"
_FACTS = "raylm_runs"
_BEGINNINGS = "beginnings"
_RUNS = "runs"


class Decontaminate(Settings):
    """Take out what evaluation sets hold too: runs of equal words, whatever their case, accents and numbers."""

    sets: Annotated[list[EvaluationSet], Field(min_length=1)] = Field(description="The evaluation sets.")
    ngram: int = Field(
        13,
        ge=2,
        description="Length of a run of words that counts as taken over. In scripts without spaces between words, two "
        "characters (Chinese, Japanese), two syllables (Tibetan) or three letters (Thai, Lao, Khmer, Burmese) stand "
        "for a word.",
    )
    min_words: int = Field(
        8, ge=1, description="Evaluation texts of fewer than `ngram` words are looked for whole, down to this length."
    )
    min_matches: int = Field(1, ge=1, description="Different runs a document must share with a set to be contaminated.")
    action: Literal["drop", "cut", "label"] = Field(
        "drop",
        description="Drop the document, cut out the sentences around, or only name the set as `contaminated_by`.",
    )
    min_chars_left: int = Field(
        200, ge=0, description="With cut: a document of which fewer characters are left is dropped after all."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [one.name for one in self.sets]
        if len(names) != len(set(names)):
            raise ValueError(f"names of evaluation sets must differ, got {names}")
        return self


def fit_decontaminate(settings: Decontaminate, context: OperatorContext) -> None:
    """Read the evaluation sets and write their index to the folder."""
    import numpy as np

    hasher = NgramHasher()
    tensors = {}
    for number, one in enumerate(settings.sets):
        runs = ngrams_of_records(
            records(one, context.connection), hasher, words=settings.ngram, shortest=settings.min_words
        )
        if not runs.by_length and not len(runs.runs):
            raise DataError(
                f"evaluation set {one.name!r}: no text in {one.glob} has {_beginning(settings)} words or more",
                hint="lower `min_words`, or take the set out: nothing could be found",
            )
        tensors[f"{number}/{_BEGINNINGS}"] = runs.beginnings
        tensors[f"{number}/{_RUNS}"] = runs.runs
        tensors |= {f"{number}/{length}": np.ascontiguousarray(found) for length, found in runs.by_length.items()}
    names = [one.name for one in settings.sets]
    facts = {"sets": names, "beginning": _beginning(settings), "words": settings.ngram}
    (context.fitted() / INDEX_NAME).write_bytes(to_safetensors(tensors, _FACTS, facts))


def index_in(folder: StoragePath) -> NgramIndex:
    """What fit_decontaminate wrote."""
    tensors, facts = from_safetensors((folder / INDEX_NAME).read_bytes(), _FACTS)
    sets = {}
    for number, name in enumerate(facts["sets"]):
        mine = {key.partition("/")[2]: found for key, found in tensors.items() if key.startswith(f"{number}/")}
        beginnings, runs = mine.pop(_BEGINNINGS), mine.pop(_RUNS)
        short = {int(length): mine[length] for length in sorted(mine, key=int)}
        sets[name] = SetNgrams(facts["words"], runs, short, beginnings)
    return NgramIndex(sets, facts["beginning"])


def decontaminate_operator(settings: Decontaminate, context: OperatorContext) -> Operator:
    """The operator that drops documents, cuts sentences out, or labels them; the set that shares most is named."""
    index, hasher = index_in(context.fitted()), NgramHasher()

    def look(document: Document, record: OperatorRecord) -> tuple[Document, ...]:
        found = contaminating(index, hasher, document.text, settings.min_matches)
        if not found:
            return (document,)
        for one in found:
            record.tally("contaminated_by", one.name)
        most = max(found, key=lambda one: one.runs)
        why = ", ".join(f"{one.runs} runs of {one.name}" for one in found)
        if settings.action == "label":
            return (replace(document, meta={**document.meta, "contaminated_by": most.name}),)
        if settings.action == "drop":
            record.drop(f"contaminated_{most.name}", document, why)
            return ()
        text = document.text
        while found:  # what moves together may be a run again
            text = without(text, [place for one in found for place in one.places])
            found = contaminating(index, hasher, text, settings.min_matches)
        if len(text.strip()) < settings.min_chars_left or not text.strip():
            record.drop(f"contaminated_{most.name}", document, f"{why}; {len(text.strip())} characters left")
            return ()
        kind = f"cut_{most.name}"
        record.cut(kind, document, cut_out(document.text, text) if record.wants_example(kind) else "")
        return (replace(document, text=text),)

    return per_document(look)


def contaminating(index: NgramIndex, hasher: NgramHasher, text: str, min_matches: int) -> list[Shared]:
    """The sets of which the text holds at least so many different runs, and what it shares with each."""
    return [one for one in index.shared(hasher.read(text)) if one.runs >= min_matches]


def without(text: str, runs: Sequence[tuple[int, int]]) -> str:
    """The text less each sentence that shares a word with one of these runs (first word, words).

    Sentences end with . ! ? and white space, or with a line.
    """
    places = word_places(text)
    gaps = [match.span() for match in SENTENCE_GAP.finditer(text)]
    starts = [0, *(stop for _, stop in gaps)]
    stops = [*(start for start, _ in gaps), len(text)]
    taken: set[int] = set()
    for first, words in runs:
        begin = bisect.bisect_right(starts, places[first][0]) - 1
        end = bisect.bisect_right(starts, places[first + words - 1][0]) - 1
        taken.update(range(begin, end + 1))
    left = ""
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        gap = text[stop : starts[number + 1]] if number + 1 < len(starts) else ""
        if number not in taken:
            left += text[start:stop] + gap
        elif left and gap.count("\n") > len(left) - len(left.rstrip("\n")):
            left = left.rstrip() + gap  # lines and paragraphs around stay apart
    return left if text[-1:].isspace() else left.rstrip()


def _beginning(settings: Decontaminate) -> int:
    return min(settings.min_words, settings.ngram)


OPERATOR = OperatorKind(
    name="decontaminate",
    settings=Decontaminate,
    summary="drops, or cuts out, what evaluation sets hold too: runs of 13 equal words",
    make=decontaminate_operator,
    fit=fit_decontaminate,
)
