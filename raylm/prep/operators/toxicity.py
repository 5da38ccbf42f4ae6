"""A score of toxic language: the weight of toxic words in all words, and the probability that a model gives.

The list of English words is that of better-profanity (MIT license) less words/harmless.txt: a third of it names groups
of people, the body, or what news report, and would call a text toxic for what it is about. A model is a folder as
transformers loads it, weights as safetensors only; detoxify's own checkpoints are pickles and are not loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from raylm.config.steps import Toxicity
from raylm.errors import DataError
from raylm.prep.extras import not_installed
from raylm.prep.operators.lexicon import Lexicon, lines_of, words_of
from raylm.prep.operators.record import OperatorRecord, Step
from raylm.records import Document
from raylm.storage import Connection, StoragePath

# The probability that a text is toxic.
Scorer = Callable[[str], float]

_MODEL_TOKENS = 512  # read at once; a longer text is scored in parts, and the worst part counts


def toxicity(settings: Toxicity, connection: Connection, scorer: Scorer | None = None) -> Step:
    """The step that scores documents; `scorer` in place of the model that the settings name."""
    lexicon = _lexicon(settings.words, connection)
    if settings.model is not None and scorer is None:
        scorer = _model(settings.model, settings.label, connection)

    def step(document: Document, record: OperatorRecord) -> tuple[Document, ...]:
        share = toxic_share(document.text, lexicon)
        scores = {"toxicity": share}
        record.tally("toxicity", _band(share))
        reason = "toxic_words" if share > settings.max_share else ""
        if scorer is not None:
            scores["toxicity_model"] = round(scorer(document.text), 4)
            record.tally("toxicity_model", f"{min(9, int(scores['toxicity_model'] * 10)) / 10:.1f}")
            if scores["toxicity_model"] > settings.max_probability:
                reason = reason or "toxic_by_model"
        if reason and settings.action == "drop":
            record.drop(reason, document, ", ".join(f"{name} {score}" for name, score in scores.items()))
            return ()
        if reason:
            record.change(reason)
        return (replace(document, meta={**document.meta, **scores}),)

    return step


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


@functools.lru_cache(maxsize=2)
def _model(url: str, label: str, connection: Connection) -> Scorer:
    """The probability that the model in this folder gives to the label."""
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
    return functools.partial(_probability, torch, tokenizer, model, labels[label.lower()])


def _probability(torch: Any, tokenizer: Any, model: Any, label: int, text: str) -> float:
    length = min(_MODEL_TOKENS, model.config.max_position_embeddings)
    parts = tokenizer(text, truncation=True, max_length=length, return_overflowing_tokens=True)["input_ids"]
    several = getattr(model.config, "problem_type", None) == "multi_label_classification"
    worst = 0.0
    for ids in parts:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        chances = torch.sigmoid(logits) if several or len(logits) == 1 else torch.softmax(logits, 0)
        worst = max(worst, float(chances[label]))
    return worst
