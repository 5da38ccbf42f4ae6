"""Names, addresses and organizations, which no rule finds: a spaCy pipeline with a recognizer of entities."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from raylm.errors import ConfigError, DataError
from raylm.prep.operators.personal.span import Span

# What pipelines call things: OntoNotes', WikiNER's and CoNLL's names, and those of recognizers for personal data.
_KINDS = {
    "PERSON": "name",
    "PER": "name",
    "ORG": "organization",
    "ORGANIZATION": "organization",
    "ADDRESS": "address",
    "STREET_ADDRESS": "address",
    "FAC": "address",
    "GPE": "place",
    "LOC": "place",
}
_AT_ONCE = 50_000  # characters: the recognizer's memory grows with them
_UNUSED = ("tagger", "morphologizer", "parser", "senter", "lemmatizer", "attribute_ruler", "textcat")


def named(texts: Sequence[str], model: str, kinds: frozenset[str]) -> list[list[Span]]:
    """What the pipeline recognizes in each text, of these kinds, without the space around it."""
    pipeline = loaded(model)
    found: list[list[Span]] = [[] for _ in texts]
    for parts in _together(texts):
        documents = pipeline.pipe([part for _, _, part in parts], batch_size=len(parts))
        for (number, start, _), document in zip(parts, documents, strict=True):
            for entity in document.ents:
                kind = _KINDS.get(entity.label_)
                held = entity.text.strip()
                if kind in kinds and held:
                    begin = start + entity.start_char + entity.text.index(held)
                    found[number].append(Span(begin, begin + len(held), kind))
    return found


def _together(texts: Sequence[str]) -> Iterator[list[tuple[int, int, str]]]:
    """(number of the text, first character, part of it), in groups that the recognizer's memory allows."""
    group: list[tuple[int, int, str]] = []
    held = 0
    for number, text in enumerate(texts):
        for start, part in _parts(text):
            if group and held + len(part) > _AT_ONCE:
                yield group
                group, held = [], 0
            group.append((number, start, part))
            held += len(part)
    if group:
        yield group


@functools.cache
def loaded(model: str) -> Any:
    """The pipeline, once a process, without the parts that do not matter here."""
    try:
        import spacy
    except ImportError as error:
        raise DataError(
            f"step personal_data with model {model!r} needs {error.name}, which is not installed",
            hint="pip install 'raylm[prepare-models]'",
        ) from error
    try:
        pipeline = spacy.load(model, exclude=list(_UNUSED))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"step personal_data: spaCy has no model {model!r}: {str(error).splitlines()[0]}",
            hint="install the model's package on every node, or name the folder of a pipeline",
        ) from error
    if not {"ner", "entity_ruler"} & set(pipeline.pipe_names):
        raise ConfigError(
            f"step personal_data: model {model!r} recognizes no entities; it has: "
            f"{', '.join(pipeline.pipe_names) or 'nothing'}",
            hint="choose a pipeline with `ner` or `entity_ruler`",
        )
    return pipeline


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """The text in parts of whole lines where that can be, and where each begins."""
    start = 0
    while start < len(text):
        stop = min(len(text), start + _AT_ONCE)
        if stop < len(text):
            cut = max(text.rfind("\n", start, stop), text.rfind(" ", stop - 1000, stop))
            stop = cut + 1 if cut > start else stop
        yield start, text[start:stop]
        start = stop
