"""Names, addresses and organisations, which no rule finds: a spaCy pipeline with a recogniser of entities."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from raylm.errors import ConfigError, DataError
from raylm.prep.operators.personal.span import Span

# What pipelines call things: OntoNotes', WikiNER's and CoNLL's names, and those of recognisers for personal data.
_KINDS = {
    "PERSON": "name",
    "PER": "name",
    "ORG": "organisation",
    "ORGANIZATION": "organisation",
    "ADDRESS": "address",
    "STREET_ADDRESS": "address",
    "FAC": "address",
    "GPE": "place",
    "LOC": "place",
}
_AT_ONCE = 50_000  # characters: the recogniser's memory grows with them
_UNUSED = ("tagger", "morphologizer", "parser", "senter", "lemmatizer", "attribute_ruler", "textcat")


def named(text: str, model: str, kinds: frozenset[str]) -> Iterator[Span]:
    """What the pipeline recognises, of these kinds, without the space around it."""
    pipeline = loaded(model)
    for start, piece in _pieces(text):
        for entity in pipeline(piece).ents:
            kind = _KINDS.get(entity.label_)
            held = entity.text.strip()
            if kind in kinds and held:
                begin = start + entity.start_char + entity.text.index(held)
                yield Span(begin, begin + len(held), kind)


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
            f"step personal_data: model {model!r} recognises no entities; it has: "
            f"{', '.join(pipeline.pipe_names) or 'nothing'}",
            hint="choose a pipeline with `ner` or `entity_ruler`",
        )
    return pipeline


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """The text in pieces of whole lines where that can be, and where each begins."""
    start = 0
    while start < len(text):
        stop = min(len(text), start + _AT_ONCE)
        if stop < len(text):
            cut = max(text.rfind("\n", start, stop), text.rfind(" ", stop - 1000, stop))
            stop = cut + 1 if cut > start else stop
        yield start, text[start:stop]
        start = stop
