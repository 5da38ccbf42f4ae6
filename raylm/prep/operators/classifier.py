"""A classifier of quality: hashed runs of words and logistic regression, trained once before any unit.

It learns from examples of what is wanted and of what is not, or takes a model trained before: a safetensors file in
the step's folder. Each document gets a score from 0 (like the bad examples) to 1 (like the good ones).

The trained weights are rounded to whole numbers, so that a score's sum is the same in any order and on any processor.
Training is plain Adagrad, one example at a time.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from raylm.config.base import Settings, Share
from raylm.config.paths import PathOrUrl
from raylm.errors import DataError
from raylm.prep.operators.base import Operator, per_document
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.record import OperatorRecord
from raylm.prep.operators.sample import hash_uniform
from raylm.prep.operators.words import WORDS_AND_SIGNS
from raylm.prep.safetensors import from_safetensors, to_safetensors
from raylm.records import Document
from raylm.rows import RowFile, kind_of, read_rows
from raylm.storage import Connection, NotFound, StoragePath, find

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL_NAME = "classifier.safetensors"
_FACTS = "raylm_classifier"
_UNIT = 1 << 16  # a weight of 1 as it is stored
_HELD_OUT = 10  # every so many-th example is not trained on, but scored
_FEWEST = 10  # examples of a side
_RATE = 0.5
_MIX, _SPREAD = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9  # odd numbers with many set bits


Globs = Annotated[list[PathOrUrl], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class Classifier(Settings):
    """A score of quality from a classifier that is trained once on good and bad examples, or loaded."""

    good: Globs = Field(default_factory=list, description="Files of good examples: text, jsonl, csv, parquet or arrow.")
    bad: Globs = Field(default_factory=list, description="Files of examples of what is not wanted.")
    column: str = Field("text", description="For jsonl, csv, parquet and arrow: the column that holds the text.")
    document: Literal["file", "line", "block"] = Field("line", description="For text: what one example is.")
    model: PathOrUrl | None = Field(None, description="In place of examples: the file of a classifier trained before.")
    threshold: Share | None = Field(None, description="Drop documents whose score is below this.")
    pareto: float | None = Field(
        None,
        gt=0,
        description="Keep a document when a draw from a Pareto distribution of this shape exceeds 1 - score, as GPT-3 "
        "did with 9; the draw goes by the document's id.",
    )
    key: str = Field("quality", min_length=1, description="Key of the metadata that takes the score, from 0 to 1.")
    ngrams: int = Field(2, ge=1, le=5, description="Longest run of words that is a feature.")
    buckets: int = Field(1 << 18, ge=1 << 10, le=1 << 24, description="Features are hashed into this many.")
    epochs: int = Field(5, ge=1, description="Passes over the examples.")
    max_examples: int = Field(50_000, ge=20, description="Examples of each side, at most; chosen by hash.")
    seed: int = Field(0, ge=0, description="Decides, with a document's id, the draw of pareto.")

    @model_validator(mode="after")
    def _examples_or_model(self) -> Self:
        if (self.model is None) != bool(self.good and self.bad) or (self.model and (self.good or self.bad)):
            raise ValueError("give good and bad examples, or a model")
        if self.threshold is not None and self.pareto is not None:
            raise ValueError("give either threshold or pareto")
        return self


@dataclass(frozen=True, eq=False)
class Model:
    """Weights in units of 1 / 65536. facts: how it was trained, and how it did on examples that it had not seen."""

    weights: NDArray[np.int32]
    bias: int
    ngrams: int
    facts: dict[str, Any]

    def score(self, text: str) -> float:
        """How much the text is like the good examples, rounded to 4 digits."""
        found = features(text, self.ngrams, len(self.weights))
        total = int(self.weights[found].sum(dtype="int64"))
        return round(_sigmoid((total / math.sqrt(len(found) or 1) + self.bias) / _UNIT), 4)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        import numpy as np

        arrays = {"weights": self.weights, "bias": np.array([self.bias])}
        return to_safetensors(arrays, _FACTS, {"ngrams": self.ngrams, **self.facts})

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> Model:
        """What to_bytes gave; a DataError that names the file when it is something else."""
        from safetensors import SafetensorError

        try:
            arrays, facts = from_safetensors(content, _FACTS)
            return cls(arrays["weights"], int(arrays["bias"][0]), facts.pop("ngrams"), facts)
        except (SafetensorError, KeyError, ValueError) as error:
            raise DataError(
                f"{name} is no classifier of raylm: {error!r}",
                hint=f"name a {MODEL_NAME} that a preparation left in its fitted folder",
            ) from error


def features(text: str, ngrams: int, buckets: int) -> NDArray[np.int64]:
    """The buckets of the text's words, signs and runs of up to `ngrams` of them: each once, in ascending order."""
    import numpy as np

    words = np.array([_word_hash(word) for word in WORDS_AND_SIGNS.findall(text.lower())], dtype=np.uint64)
    runs, joined = [words], words
    for length in range(2, ngrams + 1):
        joined = joined[:-1] * np.uint64(_MIX) + words[length - 1 :]
        runs.append(joined)
    hashes = np.concatenate(runs) * np.uint64(_SPREAD)
    return np.unique((hashes >> np.uint64(24)) % np.uint64(buckets)).astype(np.int64)


@functools.lru_cache(1 << 16)
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode()) + 1


def train(good: Sequence[str], bad: Sequence[str], settings: Classifier) -> Model:
    """A model that tells good from bad; the same one for the same texts, in whatever order they come."""
    import numpy as np

    texts = sorted((_order(text), label, text) for label, side in ((1, good), (0, bad)) for text in side)
    examples = [(features(text, settings.ngrams, settings.buckets), label) for _, label, text in texts]
    held_out = examples[::_HELD_OUT]
    trained = [example for number, example in enumerate(examples) if number % _HELD_OUT]
    weights, bias = _fitted(trained, settings)
    facts = {"good": len(good), "bad": len(bad), "epochs": settings.epochs, "held_out": len(held_out)}
    model = Model(np.round(weights * _UNIT).astype(np.int32), round(bias * _UNIT), settings.ngrams, facts)
    scores = [float(model.weights[found].sum(dtype="int64")) / math.sqrt(len(found) or 1) for found, _ in held_out]
    area = area_under_curve(scores, [label for _, label in held_out])
    return replace(model, facts=facts | {"held_out_auc": None if area is None else round(area, 4)})


def area_under_curve(scores: Sequence[float], labels: Sequence[int]) -> float | None:
    """How often a good example scores above a bad one, ties half; None when one side is missing."""
    import numpy as np

    good = np.sort([score for score, label in zip(scores, labels, strict=True) if label])
    bad = np.array([score for score, label in zip(scores, labels, strict=True) if not label])
    if not len(good) or not len(bad):
        return None
    above = len(good) - np.searchsorted(good, bad, side="right")
    tied = np.searchsorted(good, bad, side="right") - np.searchsorted(good, bad, side="left")
    return float((above + tied / 2).sum() / (len(good) * len(bad)))


def _fitted(examples: Sequence[tuple[NDArray[np.int64], int]], settings: Classifier) -> tuple[NDArray[Any], float]:
    """Weights and bias after the epochs. Both sides count the same in all, however many examples each has."""
    import numpy as np

    weights, squares = np.zeros(settings.buckets), np.full(settings.buckets, 1e-8)
    bias, bias_squares = 0.0, 1e-8
    good = sum(label for _, label in examples)
    side = {1: len(examples) / (2 * max(1, good)), 0: len(examples) / (2 * max(1, len(examples) - good))}
    for _ in range(settings.epochs):
        for found, label in examples:
            if not len(found):
                continue
            scale = 1 / math.sqrt(len(found))
            error = side[label] * (_sigmoid(float(weights[found].sum()) * scale + bias) - label)
            squares[found] += (error * scale) ** 2
            weights[found] -= _RATE * error * scale / np.sqrt(squares[found])
            bias_squares += error**2
            bias -= _RATE * error / math.sqrt(bias_squares)
    return weights, bias


def fit_classifier(settings: Classifier, context: OperatorContext) -> None:
    """Train the classifier, or fetch the one that is named, into the folder."""
    connection = context.connection
    if settings.model is not None:
        path = StoragePath(settings.model, connection)
        try:
            content = path.read_bytes()
        except NotFound as error:
            raise DataError(f"classifier: there is no model at {path.url}", hint="correct `model`") from error
        Model.from_bytes(content, path.url)
    else:
        good = _examples("good", settings.good, settings, connection)
        bad = _examples("bad", settings.bad, settings, connection)
        content = train(good, bad, settings).to_bytes()
    (context.fitted() / MODEL_NAME).write_bytes(content)


def classifier_operator(settings: Classifier, context: OperatorContext) -> Operator:
    """The operator that scores documents, and drops those that the settings do not want."""
    path = context.fitted() / MODEL_NAME
    model = Model.from_bytes(path.read_bytes(), path.url)

    def look(document: Document, record: OperatorRecord) -> tuple[Document, ...]:
        score = model.score(document.text)
        record.tally(settings.key, f"{min(9, int(score * 10)) / 10:.1f}")
        if not _wanted(score, document.id, settings):
            record.drop(f"low_{settings.key}", document, f"{settings.key} {score}")
            return ()
        return (replace(document, meta={**document.meta, settings.key: score}),)

    return per_document(look)


def _wanted(score: float, identity: str, settings: Classifier) -> bool:
    if settings.threshold is not None:
        return score >= settings.threshold
    if settings.pareto is not None:
        left = 1 - hash_uniform(f"{settings.key}:{identity}", settings.seed)
        return bool(left ** (-1 / settings.pareto) - 1 > 1 - score)  # the draw, by the inverse of its distribution
    return True


def _examples(side: str, globs: Sequence[str], settings: Classifier, connection: Connection) -> list[str]:
    """The side's texts, at most so many: those whose hash is smallest, so that the order of files is no matter."""
    read = (text for glob in globs for text in _texts(side, glob, settings, connection))
    texts = heapq.nsmallest(settings.max_examples, read, key=lambda text: (_order(text), text))
    if len(texts) < _FEWEST:
        raise DataError(
            f"classifier: {', '.join(globs)} holds {len(texts)} {side} examples, at least {_FEWEST} are needed",
            hint=f"give more files in `{side}`, or set `document` to line or block for text files",
        )
    return texts


def _texts(side: str, glob: str, settings: Classifier, connection: Connection) -> Iterator[str]:
    """The side's texts in the files of a glob: a column of tables, or what `document` makes of text; no blank ones."""
    files = find(glob, connection)
    if not files:
        raise DataError(f"classifier.{side}: no file matches {glob}", hint="check the path and the wildcards")
    for path, _ in files:
        try:
            yield from (text for text in _texts_in(path, settings) if text.strip())
        except DataError as error:
            raise DataError(f"classifier.{side}: {error.message}", hint=error.hint or f"correct `{side}`") from error


def _texts_in(path: StoragePath, settings: Classifier) -> Iterator[str]:
    kind = kind_of(path) or "text"
    if kind != "text":
        for row in read_rows(RowFile(path, columns=(settings.column,)), kind):
            text = row.value[settings.column]
            if not isinstance(text, str | None):
                raise DataError(
                    f"{path.url}: {settings.column!r} is {type(text).__name__}, not text",
                    hint="set `column` to the one that holds the text",
                )
            yield text or ""
        return
    lines = (str(row.value["text"]) for row in read_rows(RowFile(path), "text"))
    if settings.document == "line":
        yield from lines
    elif settings.document == "file":
        yield "\n".join(lines)
    else:
        for blank, block in itertools.groupby(lines, key=lambda line: not line.strip()):
            if not blank:
                yield "\n".join(block)


def _sigmoid(value: float) -> float:
    # Beyond this a float holds 0 or 1 anyway, and exp would overflow.
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, value))))


def _order(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


OPERATOR = OperatorKind(
    name="classifier",
    settings=Classifier,
    summary="scores quality by examples of good and bad texts, and drops by score",
    make=classifier_operator,
    fit=fit_classifier,
)
