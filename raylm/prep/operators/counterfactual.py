"""Counterfactual augmentation: a copy of a document in which feminine and masculine words have changed places.

Words of one meaning go by a list. `her`, `his`, `him` and `hers` need a look at their neighbors: her book is his book,
but for her is for him. The rules see one word on each side, no parse; how often they are right is in docs/facts.md.
A copy may say what is not so of a person of the real world: names stay unless a list of pairs is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import Field

from raylm.config.base import Settings, Share
from raylm.config.paths import PathOrUrl
from raylm.prep.languages import may_be_english
from raylm.prep.operators.base import Operator, per_document
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.lexicon import word_pairs
from raylm.prep.operators.record import OperatorRecord
from raylm.prep.operators.sample import hash_uniform
from raylm.prep.operators.words import LETTERS
from raylm.prep.split import SPLIT_BY, split_hash
from raylm.records import Document
from raylm.storage import Connection

_PAUSE = re.compile(r"[^\s\"'“”‘’(]")  # between two words, anything but a blank, a quote or a bracket parts them


class Counterfactual(Settings):
    """Copies of documents in which gendered words are swapped; English only."""

    share: Share = Field(0.5, description="Share of the documents with such words that get a copy, by hash.")
    replace: bool = Field(False, description="The swapped document takes the original's place.")
    pairs: PathOrUrl | None = Field(
        None, description="File of `masculine feminine` pairs; those of the package when not set."
    )
    names: PathOrUrl | None = Field(None, description="File of pairs of first names to swap as well.")
    seed: int = Field(0, ge=0, description="Decides, with a document's id, which documents get a copy.")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# After these a determiner has ended: no noun of `her` begins here.
_NO_NOUN = _words(
    "a about after again against all although am among an and any are around as at away because been before but by "
    "can could did do does down during each either every everything for from had has have he here how i if in instead "
    "into is it just like may me might must my never not nothing now of off on once onto or our out over she should "
    "since so some someone something than that the their then there these they this those though through to today "
    "together tomorrow tonight too under until up upon us was we were what when where whether which while who whom why "
    "will with within without would yesterday you your his him"
)
# After these a pronoun owns nothing: `it was his` ends here, while `his all`, `his one` and `his every` go on.
_NO_NOUN_OF_HIS = _NO_NOUN - _words("all any each either every like now once some then")
# She is made or let do something, or seen doing it: what follows `her` is a verb.
_LETS = _words("help helped helping helps let lets letting made make makes making")
_DOES = _words(
    "become believe break choose come cry do eat feel find forget forgive get give go have keep know laugh learn leave "
    "live lose pay realise realize remember run say see seem sit sleep speak stand stay stop take talk tell think "
    "understand wait walk want wear win work"
)
_SEES = _words(
    "catch caught feel felt find found hear heard keep kept leave left notice noticed saw see seeing seen sees watch "
    "watched watching"
)
_THINGS_ING = _words(
    "being blessing building ceiling clothing dressing drawing dwelling earring evening everything feeling funding "
    "hearing king lightning living meeting morning offspring painting ring savings sibling spring string thing "
    "training understanding upbringing wedding wing writing"
)
# Words in -ly that come before a noun or an adjective as well; others say how something is done to her.
_NOT_MANNER = _words(
    "allegedly ally assembly belly bully clearly costly curly daily deadly deeply early elderly family fairly fully "
    "friendly freshly ghastly gravely highly holy increasingly likely lively lonely lovely monthly nearly newly only "
    "orderly perfectly physically previously really recently reply sickly silly supply truly ugly usually utterly "
    "weekly worldly yearly"
)


def counterfactual_operator(settings: Counterfactual, context: OperatorContext) -> Operator:
    """The operator that gives a share of the documents with gendered words a copy with these swapped."""
    swaps = _swaps(settings.pairs, settings.names, context.connection)

    def look(document: Document, record: OperatorRecord) -> tuple[Document, ...]:
        if not may_be_english(document.meta):
            record.tally("counterfactual", "other language")
            return (document,)
        text, count = swapped(document.text, swaps)
        if not count:
            record.tally("counterfactual", "nothing to swap")
            return (document,)
        if hash_uniform(f"counterfactual:{document.id}", settings.seed) >= settings.share:
            record.tally("counterfactual", "not chosen")
            return (document,)
        record.tally("counterfactual", "replaced" if settings.replace else "copied")
        record.change("swapped_word", count)
        # Both on one side: the held-out loss must not be that of texts which training has seen in another gender.
        together = {SPLIT_BY: split_hash(document.text), **document.meta}
        copy = replace(document, id=f"{document.id}+swapped", text=text, meta={**together, "counterfactual": 1})
        return (copy,) if settings.replace else (replace(document, meta=together), copy)

    return per_document(look)


def swapped(text: str, swaps: Mapping[str, str]) -> tuple[str, int]:
    """The text with gendered words swapped, and how many were; everything else, case as well, stays."""
    parts: list[str] = []
    done = count = 0
    words = list(LETTERS.finditer(text)) if not swaps.keys().isdisjoint(LETTERS.findall(text.lower())) else []
    lower = [word.group().lower() for word in words]
    for number, word in enumerate(words):
        other = swaps.get(lower[number])
        if other is None:
            continue
        if lower[number] in ("her", "his"):
            before = lower[number - 1] if number else ""
            after = lower[number + 1] if number + 1 < len(words) else ""
            if after and _PAUSE.search(text[word.end() : words[number + 1].start()]):
                after = ""
            other = _her(before, after) if lower[number] == "her" else _his(after)
        parts += [text[done : word.start()], _cased(other, word.group())]
        done = word.end()
        count += 1
    return "".join([*parts, text[done:]]), count


def _her(before: str, after: str) -> str:
    """`his` where a noun follows, as far as the neighbors tell; else `him`."""
    if not after or after in _NO_NOUN:
        return "him"
    if before in _LETS and after in _DOES:
        return "him"
    if after.endswith("ly") and after not in _NOT_MANNER:
        return "him"
    if before in _SEES and after.endswith("ing") and after not in _THINGS_ING:
        return "him"
    return "his"


def _his(after: str) -> str:
    return "hers" if not after or after in _NO_NOUN_OF_HIS else "her"


def _cased(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def _on_languages(settings: Counterfactual, languages: Sequence[str]) -> list[str]:
    return ["copies English documents only, and those whose language nobody says"]


def _swaps(pairs: str | None, names: str | None, connection: Connection) -> Mapping[str, str]:
    """Each word's partner: that of the first pair it stands in."""
    swaps = {"him": "her", "hers": "his", "her": "him", "his": "her"}
    listed = word_pairs(pairs, "gender_pairs.txt", connection)
    for masculine, feminine in [*listed, *(word_pairs(names, "", connection) if names is not None else [])]:
        swaps.setdefault(masculine, feminine)
        swaps.setdefault(feminine, masculine)
    return swaps


OPERATOR = OperatorKind(
    name="counterfactual",
    settings=Counterfactual,
    summary="adds copies with gendered words swapped",
    make=counterfactual_operator,
    languages=_on_languages,
)
