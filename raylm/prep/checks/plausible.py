"""How much each way of leaving text out may plausibly leave out; what goes beyond is a warning, never an error.

A filter that takes nearly everything was hardly meant so: rules for another language, a wrong column, a book that is
taken for its own table of contents. Shares are of what came to a step, source by source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raylm.prep.checks.skipped import BROKEN_RECORD, OF_FILES, Skipped
from raylm.prep.languages import UNKNOWN_LANGUAGE
from raylm.prep.operators.record import NOT_JUDGED, OperatorRecord

FEWEST = 10  # documents, of which a share says anything
_LEAST = 1000  # characters or bytes of text
_BROKEN = (*OF_FILES, BROKEN_RECORD)
_ONE_IS_ENOUGH = (*_BROKEN, "encrypted", "much_front_matter", "kept_front_matter")
_NAMED = 5  # languages, or reasons, in one warning


@dataclass(frozen=True)
class Bound:
    """The largest shares of documents, and of text, that are plausible; None where any is."""

    documents: float | None = None
    text: float | None = None


_ANY = Bound()
_UNHEARD_OF = Bound(0.5, 0.5)  # a step of a plugin: more than it keeps
STEPS: Mapping[str, Bound] = {
    "normalize": Bound(0.01, 0.2),  # only what nobody sees goes, and few documents are made of that
    "language": Bound(0.9, 0.9),  # a crawl has one document in ten in a large language; less is a wrong code
    "blocklist": Bound(0.5, 0.5),  # lists of domains take a few hundredths of a crawl, lists of words some tenths
    "quality": Bound(0.5, 0.5),  # published pipelines keep about half of web pages, and nearly all of books
    "classifier": Bound(0.95, 0.95),  # the best tenth is what some want
    "toxicity": Bound(0.2, 0.2),  # a few hundredths of the web; more is a list that fits no text
    "exact_duplicates": Bound(0.8, 0.8),  # crawls of many years; more is one file under several names
    "near_duplicates": Bound(0.8, 0.8),
    "decontaminate": Bound(0.05, 0.05),  # tests are rare in texts; more is a phrase that stands in many
    "personal_data": Bound(0.01, 0.05),  # placeholders are about as long as what they stand for
    "fairness": Bound(0.0, 0.0),  # it only counts
    "counterfactual": Bound(0.0, 0.5),
    "sample": _ANY,  # how much it takes is what the job says
}
READING: Mapping[str, Bound] = {
    **dict.fromkeys(("encoding", "too_large", "encrypted", "broken_page"), Bound(documents=0.01)),
    **dict.fromkeys(_BROKEN, Bound(documents=0.01)),  # files of files, records of records
    **dict.fromkeys(("empty", "no_text"), Bound(documents=0.5)),  # a column that few rows fill
    "no_main_text": Bound(documents=0.2),  # pages of menus alone; more is a site that cannot be read so
    **dict.fromkeys(("front_matter", "contents", "index"), Bound(text=0.2)),  # an index takes a tenth of a book
    # Books of which more than is plausible was taken for front matter; of half a book, nothing is taken out.
    **dict.fromkeys(("much_front_matter", "kept_front_matter"), Bound(documents=0.01)),
    "boilerplate": Bound(text=0.5),  # Project Gutenberg's license is longer than a short story
    "beside_main_text": Bound(text=0.8),  # without menus that say so; half of a page is usual
    "templates": Bound(text=0.6),  # a third of the markup of large Wikipedias
    **dict.fromkeys(("references", "files_and_categories", "galleries_and_such"), Bound(text=0.6)),
    "tables": Bound(text=0.8),  # lists of places and results are little else
    # What an archive or a dump holds beside what is asked for, as its makers meant it.
    **dict.fromkeys(("namespace", "redirect", "no_page", "http_status", "other_record", "revisit"), _ANY),
    "beside_the_text": _ANY,
}


@dataclass(frozen=True)
class Account:
    """What became of one source. files: how many it has. left: documents in the dataset. records: of all steps."""

    source: str
    files: int
    left: int
    skipped: Skipped
    records: Sequence[OperatorRecord]


def warnings_on(accounts: Sequence[Account]) -> list[str]:
    """What was left out beyond what is plausible: where, by what, how much, and where samples are."""
    return [line for account in accounts for line in _warnings(account)]


def nothing_held_out(share: float, documents: int, held_out_rows: int) -> list[str]:
    """A warning where the job's share holds out documents, and none of them fell to that side."""
    if share == 0 or held_out_rows or not documents:
        return []
    return [
        f"nothing is held out: none of {documents:,} documents fell to the held-out side (prepare.held_out={share:g}), "
        "so no loss can be measured on text that training never sees; give more documents or raise prepare.held_out "
        "in another prepare.output, or train without evaluation"
    ]


def _warnings(account: Account) -> Iterator[str]:
    skipped, source = account.skipped, f"source {account.source!r}"
    if not account.left:
        read = f"none of its {skipped.documents:,} documents is left" if skipped.documents else "no document was read"
        yield f"{source} gave nothing: {read}{_reasons(skipped.reasons)}"
    for reason, count in sorted(skipped.reasons.items()):
        bound = READING.get(reason, _UNHEARD_OF).documents
        of, what = (account.files, "files") if reason in OF_FILES else (skipped.documents + count, "documents")
        if _beyond(count, of, bound, 1 if reason in _ONE_IS_ENOUGH else FEWEST):
            yield f"{source}: reading skipped {_share(count, of, what)} as {_words(reason)}{_allowed(bound)}"
    for reason, count in sorted(skipped.removed.items()):
        bound = READING.get(reason, _UNHEARD_OF).text
        of = skipped.characters + skipped.removed.total()
        if _beyond(count, of, bound, _LEAST):
            yield f"{source}: reading left out {_share(count, of, 'characters')} as {_words(reason)}{_allowed(bound)}"
    for number, record in enumerate(account.records, 1):
        yield from _of_step(f"{source}: step {number}, {_words(record.name)},", record)


def _of_step(step: str, record: OperatorRecord) -> Iterator[str]:
    bound = STEPS.get(record.name, _UNHEARD_OF)
    dropped = record.dropped.total() or record.documents - record.kept
    several = record.documents >= FEWEST or record.kept == record.documents
    if _beyond(dropped, record.documents, bound.documents):
        share = _share(dropped, record.documents, "documents")
        yield f"{step} dropped {share}{_reasons(record.dropped)}{_allowed(bound.documents)}"
    elif several and _beyond(record.bytes - record.kept_bytes, record.bytes, bound.text, _LEAST):
        share = _share(record.bytes - record.kept_bytes, record.bytes, "bytes of text")
        yield f"{step} took out {share}{_reasons(record.changed)}{_allowed(bound.text)}"
    elif record.name != "language" and (languages := _hit(record, bound.documents)):
        yield f"{step} dropped most documents in {languages}{_allowed(bound.documents)}"
    alone = record.tallies.get(NOT_JUDGED) or Counter[str]()
    if _beyond(alone.total(), record.documents, 0.01):
        named = ", ".join(f"{count:,} in {language!r}" for language, count in _largest(alone))
        yield f"{step} could not judge documents: {named}"


def _hit(record: OperatorRecord, bound: float | None) -> str:
    """The languages of which a step dropped more than it may, the largest first."""
    lost = {
        language: came - record.kept_languages[language]
        for language, came in record.languages.items()
        if language != UNKNOWN_LANGUAGE and _beyond(came - record.kept_languages[language], came, bound)
    }
    named = ((language, count, record.languages[language]) for language, count in _largest(lost))
    return ", ".join(f"{language!r} ({count:,} of {came:,})" for language, count, came in named)


def _beyond(count: int, of: int, bound: float | None, fewest: int = FEWEST) -> bool:
    return bound is not None and of >= fewest and count > bound * of


def _share(count: int, of: int, what: str) -> str:
    return f"{count / of:.0%} of {of:,} {what}"


def _allowed(bound: float | None) -> str:
    return f"; more than {bound:.0%} is hardly meant" if bound else "; it should drop none"


def _reasons(counts: Mapping[str, int]) -> str:
    named = ", ".join(f"{count:,} {_words(reason)}" for reason, count in _largest(counts))
    return f" ({named})" if named else ""


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_NAMED]


def _words(name: str) -> str:
    return name.replace("_", " ")
