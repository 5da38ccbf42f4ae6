"""A score of toxic language: the weight of toxic words in all words, and the probability that a model gives.

The list of English words is that of better-profanity (MIT license) less words/harmless.txt: a third of it names groups
of people, the body, or what news report, and would call a text toxic for what it is about. A model is a folder as
transformers loads it, weights as safetensors only; detoxify's own checkpoints are pickles and are not loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field

from raylm.config.base import Settings, Share
from raylm.config.paths import PathOrUrl
from raylm.errors import DataError
from raylm.prep.extras import not_installed
from raylm.prep.languages import language_of, may_be_english
from raylm.prep.operators.base import Operator, in_batches, per_document
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.lexicon import Lexicon, lines_of
from raylm.prep.operators.record import NOT_JUDGED, OperatorRecord
from raylm.prep.operators.resources import Resources
from raylm.prep.operators.words import words_of
from raylm.records import Document
from raylm.storage import Connection, StoragePath

# The probability that each of these texts is toxic.
Scorer: TypeAlias = Callable[[Sequence[str]], Sequence[float]]

_MODEL_TOKENS = 512  # read at once; a longer text is scored in parts, and the worst part counts
_BATCH_TOKENS = 8192  # of parts that the model reads together, padding included
_BATCH_DOCUMENTS = 128


class Toxicity(Settings):
    """A score of toxic language, by a list of words and, where one is given, by a model."""

    words: PathOrUrl | None = Field(
        None, description="File of words or phrases, one per line, with a weight after a tab; English when not set."
    )
    max_share: Share = Field(0.01, description="Weight of toxic words in all words that a document may have.")
    model: PathOrUrl | None = Field(None, description="Folder of a transformers model that classifies sequences.")
    label: str = Field("toxic", description="The model's label whose probability is the score.")
    max_probability: Share = Field(0.5, description="Probability that a document may have.")
    gpus: float = Field(0, ge=0, description="GPUs, or a part of one, that each task takes for the model.")
    action: Literal["drop", "label"] = Field("drop", description="Drop what is above, or only write the scores.")


def toxicity_operator(settings: Toxicity, context: OperatorContext, scorer: Scorer | None = None) -> Operator:
    """The operator that scores documents; `scorer` in place of the model that the settings name."""
    lexicon = _lexicon(settings.words, context.connection)
    if settings.model is not None and scorer is None:
        scorer = _model(settings.model, settings.label, context.connection).probabilities
    if scorer is None:
        return per_document(lambda document, record: _judged(settings, lexicon, document, None, record))
    score = scorer

    def look(batch: Sequence[Document], record: OperatorRecord) -> Iterator[Document]:
        probabilities = score([document.text for document in batch])
        for document, probability in zip(batch, probabilities, strict=True):
            yield from _judged(settings, lexicon, document, probability, record)

    return in_batches(look, documents=_BATCH_DOCUMENTS)


def _judged(
    settings: Toxicity, lexicon: Lexicon[float], document: Document, probability: float | None, record: OperatorRecord
) -> tuple[Document, ...]:
    scores: dict[str, float] = {}
    reason = ""
    if settings.words is not None or may_be_english(document.meta):
        share = scores["toxicity"] = toxic_share(document.text, lexicon)
        record.tally("toxicity", _band(share))
        reason = "toxic_words" if share > settings.max_share else ""
    elif probability is None:
        record.tally(NOT_JUDGED, language_of(document.meta))
    if probability is not None:
        scores["toxicity_model"] = round(probability, 4)
        record.tally("toxicity_model", f"{min(9, int(scores['toxicity_model'] * 10)) / 10:.1f}")
        if scores["toxicity_model"] > settings.max_probability:
            reason = reason or "toxic_by_model"
    if reason and settings.action == "drop":
        record.drop(reason, document, ", ".join(f"{name} {score}" for name, score in scores.items()))
        return ()
    if reason:
        record.change(reason)
    return (replace(document, meta={**document.meta, **scores}),)


def _on_languages(settings: Toxicity, languages: Sequence[str]) -> list[str]:
    if settings.words is not None:
        return []
    model = "" if settings.model is None else "; the model judges all"
    return [f"looks for toxic words in English documents only, and in those whose language nobody says{model}"]


def toxic_share(text: str, lexicon: Lexicon[float]) -> float:
    """The weight of toxic words and phrases in all words, at most 1, rounded to 4 digits."""
    words = words_of(text)
    return min(1.0, round(sum(lexicon.find(words)) / len(words), 4)) if words else 0.0


def _band(share: float) -> str:
    if share == 0:
        return "none"
    return next((f"up to {most:g}" for most in (0.001, 0.005, 0.01, 0.05, 0.1) if share <= most), "above 0.1")


def _lexicon(url: str | None, connection: Connection) -> Lexicon[float]:
    if url is None:
        return Lexicon(dict.fromkeys(_packaged_words(connection), 1.0))
    weights = {}
    for where, line in lines_of(url, "", connection):
        phrase, _, weight = line.partition("\t")
        try:
            weights[phrase] = float(weight or 1)
        except ValueError as error:
            raise DataError(f"{where}: {weight!r} is no weight", hint="write a phrase, a tab and a number") from error
        if not words_of(phrase) or not 0 < weights[phrase] < float("inf"):
            raise DataError(f"{where}: {line!r} is no phrase with a weight above 0", hint="correct it, or take it out")
    return Lexicon(weights)


def _packaged_words(connection: Connection) -> list[str]:
    """better-profanity's list, a file beside its code, less what is harmless."""
    try:
        import better_profanity
    except ImportError as error:
        raise not_installed("toxicity without a list of words", error) from error
    path = Path(better_profanity.__file__).parent / "profanity_wordlist.txt"
    harmless = {line for _, line in lines_of(None, "harmless.txt", connection)}
    entries = (line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines())
    # Signs within a word end it here: what is left of `sh!t` or `a_s_s` must not be letters alone.
    return sorted(
        entry
        for entry in entries
        if entry not in harmless and (words := words_of(entry)) and len(max(words, key=len)) > 2
    )


@dataclass(frozen=True)
class _Model:
    """A classifier of sequences on its device; `label` is the number of the class that is asked for."""

    tokenizer: Any
    model: Any
    label: int

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        """The probability of the label for each text: that of its worst part."""
        length = min(_MODEL_TOKENS, self.model.config.max_position_embeddings)
        cut = self.tokenizer(list(texts), truncation=True, max_length=length, return_overflowing_tokens=True)
        parts: list[list[int]] = cut["input_ids"]
        worst = [0.0] * len(texts)
        for numbers in self._together(parts):
            found = self._scores([parts[number] for number in numbers])
            for number, probability in zip(numbers, found, strict=True):
                text = cut["overflow_to_sample_mapping"][number]
                worst[text] = max(worst[text], probability)
        return worst

    def _together(self, parts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """The parts' numbers in groups of similar length, of so many tokens with what pads the shorter ones."""
        padded = self.tokenizer.pad_token_id is not None and self.model.config.pad_token_id is not None
        group: list[int] = []
        for number in sorted(range(len(parts)), key=lambda number: -len(parts[number])):
            if group and (not padded or (len(group) + 1) * len(parts[group[0]]) > _BATCH_TOKENS):
                yield group
                group = []
            group.append(number)
        if group:
            yield group

    def _scores(self, parts: Sequence[Sequence[int]]) -> list[float]:
        import torch

        inputs = self.tokenizer.pad({"input_ids": parts}, return_tensors="pt") if len(parts) > 1 else None
        tensors = {"input_ids": torch.tensor(parts)} if inputs is None else dict(inputs)
        with torch.inference_mode():
            placed = {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
            logits = self.model(**placed).logits.double()
        several = getattr(self.model.config, "problem_type", None) == "multi_label_classification"
        chances = torch.sigmoid(logits) if several or logits.shape[1] == 1 else torch.softmax(logits, 1)
        scores: list[float] = chances[:, self.label].tolist()
        return scores


@functools.lru_cache(maxsize=2)
def _model(url: str, label: str, connection: Connection) -> _Model:
    """The model in this folder, on a GPU where the task has one."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = StoragePath(url, connection).local_path()
    if path is None:
        raise DataError(f"toxicity: {url} is not on disk", hint="copy the model to a folder that every node has")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            str(path), local_files_only=True, use_safetensors=True
        ).eval()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"toxicity: {url} is no model that transformers can load: {error}",
            hint="name a folder with config.json, model.safetensors and its tokenizer",
        ) from error
    labels = {str(name).lower(): int(number) for number, name in model.config.id2label.items()}
    if label.lower() not in labels:
        raise DataError(
            f"toxicity: the model in {url} has no label {label!r}; it has {', '.join(sorted(labels))}",
            hint="set `label` to one of them",
        )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return _Model(tokenizer, model, labels[label.lower()])


def _resources(settings: Toxicity) -> Resources:
    return Resources(gpus=settings.gpus if settings.model is not None else 0)


OPERATOR = OperatorKind(
    name="toxicity",
    settings=Toxicity,
    summary="scores toxic words (and a model, where one is given), and drops or labels",
    make=toxicity_operator,
    resources=_resources,
    languages=_on_languages,
)
