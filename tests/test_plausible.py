"""What is left out beyond what is plausible is told at the end: where, by what, how much, and where samples are."""

from __future__ import annotations

import json
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

import pytest

from raylm.cli.prepare import result_rows
from raylm.config.job import Job
from raylm.config.prepare.sources import SourceSettings
from raylm.config.prepare.steps import OPERATORS
from raylm.prep.checks.plausible import FEWEST, READING, STEPS, Account, warnings_on
from raylm.prep.checks.skipped import Skipped
from raylm.prep.operators import OperatorRecord
from raylm.prep.prepare import PrepareReport, prepare
from raylm.prep.ranges import FileRange
from raylm.prep.readers.read import read_range
from raylm.prep.tasks import here
from raylm.storage import Connection

TOKENIZER = {"vocab_size": 300, "sample_bytes": 100_000}


def prepared(folder: Path, sources: list[dict[str, Any]], **settings: Any) -> PrepareReport:
    given = {"sources": sources, "output": str(folder / "data"), "tokenizer": TOKENIZER, "held_out": 0, **settings}
    return prepare(Job.model_validate({"name": "x", "prepare": given}), session=here)


def lines(folder: Path, name: str, texts: list[str], **meta: str) -> dict[str, Any]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text, **meta}) + "\n" for text in texts))
    return {"name": name, "kind": "jsonl", "glob": str(path), "meta": sorted(meta)}


def sentences(count: int) -> list[str]:
    return [f"The committee met on day {number} to speak of the bridge. It went well." for number in range(count)]


def record(name: str, came: int, kept: int, *, language: str = "unknown", size: int = 100, left: int = 100) -> Any:
    found = OperatorRecord(name, came, came * size, kept, kept * left)
    found.languages[language], found.kept_languages[language] = came, kept
    return found


def account(*records: OperatorRecord, left: int = 1, skipped: Skipped | None = None) -> Account:
    return Account("web", 1, left, skipped or Skipped(documents=100), records)


def test_every_step_has_a_bound_that_was_thought_about() -> None:
    assert set(STEPS) >= {name for name, _ in OPERATORS.items()}


@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_step_that_drops_nothing_is_no_matter_for_a_warning(name: str) -> None:
    assert warnings_on([account(record(name, 100, 100))]) == []


@pytest.mark.parametrize("name", [name for name, bound in STEPS.items() if bound.documents is not None])
def test_a_step_that_drops_all_but_one_is_named_with_its_share(name: str) -> None:
    (told,) = warnings_on([account(record(name, 200, 1))])
    assert told.startswith(f"source 'web': step 1, {name.replace('_', ' ')}, dropped 100% of 200 documents; ")


def test_a_mixture_drops_what_the_job_says() -> None:
    assert warnings_on([account(record("sample", 200, 1))]) == []


def test_a_step_that_cuts_most_of_the_text_is_named_though_every_document_stays() -> None:
    (told,) = warnings_on([account(record("exact_duplicates", 50, 50, left=5))])
    assert told == (
        "source 'web': step 1, exact duplicates, took out 95% of 5,000 bytes of text; more than 80% is hardly meant"
    )


def test_few_documents_say_nothing_of_shares() -> None:
    assert warnings_on([account(record("quality", FEWEST - 1, 0))]) == []


def test_a_language_that_a_filter_was_not_made_for_is_named_within_a_source_that_passes() -> None:
    both = record("quality", 1000, 980, language="en")
    both.add(record("quality", 50, 1, language="am"))
    (told,) = warnings_on([account(both)])
    assert told == (
        "source 'web': step 1, quality, dropped most documents in 'am' (49 of 50); more than 50% is hardly meant"
    )


def test_languages_that_are_left_alone_are_counted() -> None:
    found = record("quality", 100, 100)
    found.tallies["not judged, for want of words"] = Counter({"bo": 12})
    assert warnings_on([account(found)]) == ["source 'web': step 1, quality, could not judge documents: 12 in 'bo'"]


@pytest.mark.parametrize("reason", [reason for reason, bound in READING.items() if bound.documents is not None])
def test_what_reading_skips_beyond_its_bound_is_named(reason: str) -> None:
    skipped = Skipped(documents=10, reasons=Counter({reason: 90}))
    (told,) = warnings_on([Account("web", 100, 1, skipped, ())])
    assert told.startswith("source 'web': reading skipped 90% of 100 ")
    assert f"as {reason.replace('_', ' ')}; more than" in told


@pytest.mark.parametrize("reason", [reason for reason, bound in READING.items() if bound.text is not None])
def test_text_that_reading_takes_out_beyond_its_bound_is_named(reason: str) -> None:
    told = warnings_on([account(skipped=Skipped(documents=9, characters=40, removed=Counter({reason: 960})))])
    assert [line.partition(";")[0] for line in told] == [
        f"source 'web': reading left out 96% of 1,000 characters as {reason.replace('_', ' ')}"
    ]


def test_a_source_that_gave_nothing_is_named_though_others_gave_enough(tmp_path: Path) -> None:
    good = lines(tmp_path, "good", sentences(30))
    empty = lines(tmp_path, "empty", ["", " ", ""])
    told = prepared(tmp_path, [good, empty]).warnings
    assert told == ("source 'empty' gave nothing: no document was read (3 empty)",)


def test_what_a_step_drops_of_one_source_is_not_hidden_by_another(tmp_path: Path) -> None:
    short = lines(tmp_path, "short", sentences(20))
    long = lines(tmp_path, "long", [" ".join(sentences(12))] * 200)
    steps = [{"quality": {"rules": ["gopher_quality"]}}]
    report = prepared(tmp_path, [short, long], steps=steps)
    first, second = report.warnings
    assert (
        first == "source 'short' gave nothing: none of its 20 documents is left (20 gopher_quality_short_doc)" or first
    )
    assert second.startswith("source 'short': step 1, quality, dropped 100% of 20 documents (20 gopher quality short")
    written = json.loads((tmp_path / "data/skipped.json").read_text())
    assert written["warnings"] == list(report.warnings)
    assert all(line in (tmp_path / "data/card.md").read_text() for line in report.warnings)
    assert "<h2>Warnings</h2>" in (tmp_path / "data/report.html").read_text()
    assert prepared(tmp_path, [short, long], steps=steps).warnings == report.warnings, "told again"


def test_nothing_is_told_where_all_is_as_it_should_be(tmp_path: Path) -> None:
    report = prepared(tmp_path, [lines(tmp_path, "good", sentences(30))], steps=["normalize", "exact_duplicates"])
    assert report.warnings == ()
    assert "Warnings" not in (tmp_path / "data/card.md").read_text()


def test_the_command_ends_with_the_warnings_and_says_where_samples_are(tmp_path: Path) -> None:
    good, empty = lines(tmp_path, "good", sentences(30)), lines(tmp_path, "empty", [""])
    rows = dict(result_rows(prepared(tmp_path, [good, empty])))
    assert rows["WARNING"] == "source 'empty' gave nothing: no document was read (1 empty)"
    assert rows[""] == f"samples are in {tmp_path}/data/skipped.json"


# --- what reading takes out of documents -------------------------------------------------------------------------


def told(folder: Path, source: dict[str, Any]) -> tuple[list[str], Skipped]:
    """The warnings on a source of one file, and what reading left out of it."""
    settings = SourceSettings.model_validate({"name": "x", **source})
    path, skipped = Path(str(source["glob"])), Skipped()
    documents = list(read_range(settings, FileRange(str(path), path.stat().st_size), Connection(), skipped))
    return warnings_on([Account("x", 1, len(documents), skipped, ())]), skipped


def book(folder: Path, *paragraphs: str) -> dict[str, Any]:
    path = folder / "book.txt"
    path.write_text("\n\n".join(paragraphs) + "\n")
    return {"kind": "book", "glob": str(path)}


STORY = "Winter came early that year, and nobody had thought of the lamps; the bridge was closed before a letter came. "


def chapters(count: int) -> list[str]:
    return [part for number in range(1, count + 1) for part in (f"CHAPTER {number}", f"Day {number}. {STORY * 30}")]


def test_front_matter_is_counted_in_characters(tmp_path: Path) -> None:
    dedication = "For the keepers of the lamp."
    warnings, skipped = told(tmp_path, book(tmp_path, "Dedication", dedication, *chapters(3)))
    assert warnings == []
    assert skipped.removed == {"front_matter": len("Dedication") + len(dedication)}
    assert skipped.characters == sum(map(len, chapters(3))) + 2 * 5


def test_much_front_matter_is_told_of_one_book(tmp_path: Path) -> None:
    thanks = [f"We thank lamp keeper number {number} of the old bridge." for number in range(150)]
    warnings, skipped = told(tmp_path, book(tmp_path, *chapters(6), "Acknowledgments", *thanks))
    share, one = warnings
    assert skipped.reasons["much_front_matter"] == 1
    assert skipped.examples["much_front_matter"][0].startswith(f"{tmp_path}/book.txt#0: ")
    assert "as much front matter" in share
    assert "characters as front matter; more than 20% is hardly meant" in one


def test_what_would_be_more_than_half_of_a_book_is_kept_and_told(tmp_path: Path) -> None:
    thanks = [f"We thank lamp keeper number {number} of the old bridge." for number in range(300)]
    (warning,), skipped = told(tmp_path, book(tmp_path, *chapters(2), "Acknowledgments", *thanks))
    assert warning == (
        "source 'x': reading skipped 50% of 2 documents as kept front matter; more than 1% is hardly meant"
    ), warning
    assert not skipped.removed
    assert skipped.characters > sum(map(len, thanks))


def test_what_a_wiki_page_only_shows_beside_its_sentences_is_counted_by_its_kind(tmp_path: Path) -> None:
    template, table = "{{Infobox bridge|length=10}}", '{| class="a"\n| x\n|}'
    reference, file = "<ref>{{cite|a}}</ref>", "[[File:A.jpg|thumb|A bridge]]"
    markup = f"{template}\n{table}\n{file}The bridge{reference} is {{{{nowrap|10 km}}}} long."
    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en"><siteinfo/>'
    revision = f"<revision><id>1</id><text>{escape(markup)}</text></revision>"
    path = tmp_path / "wiki.xml"
    path.write_text(f"{head}<page><title>Bridge</title><ns>0</ns><id>7</id>{revision}</page></mediawiki>")
    _, skipped = told(tmp_path, {"kind": "wikipedia", "glob": str(path)})
    assert skipped.removed == {
        "templates": len(template),
        "tables": len(table),
        "references": len(reference),
        "files_and_categories": len(file),
    }
    assert skipped.examples["templates"] == [f"{path}#7: {template}"]


def test_a_page_of_which_a_sliver_is_main_content_is_an_example(tmp_path: Path) -> None:
    links = "".join(f'<li><a href="/{number}">Lamp {number} of the bridge</a></li>' for number in range(200))
    page = f"<html><body><ul>{links}</ul><article><h1>H</h1><p>{STORY * 2}</p></article></body></html>"
    message = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{page}".encode()
    head = "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.org/\r\nContent-Type: application/http\r\n"
    path = tmp_path / "a.warc"
    path.write_bytes(f"{head}Content-Length: {len(message)}\r\n\r\n".encode() + message + b"\r\n\r\n")
    (warning,), skipped = told(tmp_path, {"kind": "warc", "glob": str(path)})
    assert "characters as beside main text; more than 80% is hardly meant" in warning
    assert "characters of http://a.org/ are main content" in skipped.examples["beside_main_text"][0]


def test_text_that_steps_cut_out_of_documents_is_sampled(tmp_path: Path) -> None:
    texts = [f"{' '.join(sentences(6))}\nShare this page\nNumber {number} is the last of them." for number in range(30)]
    steps = [{"exact_duplicates": {"part": "line", "min_chars": 5}}]
    prepared(tmp_path, [lines(tmp_path, "x", texts)], steps=steps)
    first, _ = json.loads((tmp_path / "data/skipped.json").read_text())["steps"]
    found = first["changed"]["repeated_line"]
    assert found["count"] == 58
    assert all("The committee met on day 0" in example for example in found["examples"])
    assert len(found["examples"]) == 5
