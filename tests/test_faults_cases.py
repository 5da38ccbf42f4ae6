"""Small files of other people that once failed, each read as its settings say, where their folder is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raylm.config.job import Job
from raylm.config.prepare.sources import SOURCES, SourceSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import Skipped
from raylm.prep.operators.language import identifier
from raylm.prep.operators.personal.internet import emails, ips
from raylm.prep.operators.personal.numbers import ibans
from raylm.prep.operators.personal.phones import phones
from raylm.prep.prepare import PrepareReport, prepare
from raylm.prep.ranges import FileRange
from raylm.prep.readers.read import read_range
from raylm.prep.tasks import here
from raylm.records import Document
from raylm.shards import read_rows
from raylm.storage import Connection, StoragePath
from raylm.testing.external import external_data

INPUTS = external_data("../faults/inputs")
pytestmark = pytest.mark.skipif(not INPUTS.exists(), reason="../faults/inputs is not beside RAYLM_TEST_DATA")


def case(name: str) -> tuple[list[Document], Skipped]:
    settings: dict[str, Any] = json.loads((INPUTS / "cases.json").read_text())[name]
    own = {key: value for key, value in settings.items() if key not in ("glob", "steps", "tokenizer", "quarantine")}
    path = INPUTS / settings["glob"]
    source = SourceSettings.model_validate({"name": "x", **own, "glob": str(path)})
    skipped = Skipped()
    found = list(read_range(source, FileRange(str(path), path.stat().st_size), Connection(), skipped))
    return found, skipped


def text_of(name: str) -> str:
    documents, _ = case(name)
    return "\n\n".join(document.text for document in documents)


def test_book_contents() -> None:
    given = (INPUTS / "book-contents.txt").read_text()
    body = given[given.index("\nTHE GOLDEN LAMP\n\n") :].strip()
    assert len(text_of("book-contents")) > 0.95 * len(body)


def test_book_letters() -> None:
    given = (INPUTS / "book-letters.txt").read_text()
    assert len(text_of("book-letters")) > 0.95 * len(given[given.index("\nA\n\n") :].strip())


def test_epub_pre() -> None:
    assert "    if x:\n        return 1\n    return 2" in text_of("epub-pre")


def test_epub_ruby() -> None:
    assert text_of("epub-ruby") == "山に登る。"


def test_epub_math() -> None:
    assert "Let x=\\frac{1}{2} hold for 10" in text_of("epub-math")


@pytest.mark.parametrize("name", ["epub-footer", "epub-links", "epub-backslash", "epub-ampersand", "epub-missing-page"])
def test_epub_keeps_its_chapters(name: str) -> None:
    documents, skipped = case(name)
    assert len(documents) == 1
    assert not skipped.counts().get("skipped_front_matter")
    wanted = {"epub-links": ["River", "Chapter Two"], "epub-ampersand": ["Chapter One"]}
    assert all(heading in documents[0].text for heading in wanted.get(name, ["Chapter One", "Chapter Two"]))


def test_epub_nav_elsewhere() -> None:
    documents, _ = case("epub-nav-elsewhere")
    assert [document.meta.get("chapter") for document in documents] == ["One", "Two"]


def test_wiki_de() -> None:
    assert text_of("wiki-de") == "Brücke\n\nEine Brücke führt über den Fluss."


def test_wiki_en() -> None:
    colons, templates, code, history = (document.text for document in case("wiki-en")[0])
    assert colons.startswith("Colons\n\nThe list has two parts:\none\ntwo\n\nHe said:")
    assert "__NOTOC__" not in colons
    wanted = "At 1300 mi, it is long (from γέφυρα). It is 3 old, see 10 km. Let x^2 be."
    assert templates == f"Templates\n\n{wanted}"
    assert "for x in y:\n    f(x)" in code
    assert "if a:\n    b" in code
    assert history == "History\n\nThe newest text."


def test_warc_one_bad_byte() -> None:
    assert "Der Ausschuß traf sich am Dienstag, um über die neue Brücke" in text_of("warc-one-bad-byte")


@pytest.mark.parametrize(("name", "count"), [("warc-gzip-decoded", 2), ("warc-content-type", 2)])
def test_warc_heads(name: str, count: int) -> None:
    documents, _ = case(name)
    assert len(documents) >= count
    assert all("it agreed" in document.text for document in documents)


def test_warc_ul() -> None:
    assert "Add two cups of flour to the bowl" in text_of("warc-ul")


def test_warc_angle_uri() -> None:
    (document,), _ = case("warc-angle-uri")
    assert document.meta["url"] == "http://blocked.example/a"


def test_warc_garbage_behind() -> None:
    documents, skipped = case("warc-garbage-behind")
    assert len(documents) == 3, "every whole page"
    assert skipped.reasons["broken_file"] == 1


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("csv-cr-only", 2),
        ("csv-bom-quoted", 1),
        ("csv-open-quote", 1000),
        ("csv-latin1-meta", 2),
        ("jsonl-nul", 51),
        ("jsonl-array", 2),
        ("jsonl-language-tags", 5),
    ],
)
def test_tables_keep_every_whole_record(name: str, texts: int) -> None:
    documents, _ = case(name)
    assert len(documents) == texts


def test_jsonl_language_tags_are_spelled_in_one_way() -> None:
    found = [document.meta.get("language") for document in case("jsonl-language-tags")[0]]
    assert found == ["en", "en", "en", "en", None]


@pytest.mark.parametrize("name", ["parquet-damaged", "zstd-long-window"])
def test_files_that_cannot_be_read_are_set_aside(name: str) -> None:
    documents, skipped = case(name)
    assert not documents
    assert skipped.reasons["broken_file"] == 1
    assert name != "zstd-long-window" or "--long=31" in str(skipped.hint)


def test_parquet_two_columns() -> None:
    with pytest.raises(DataError, match="has 2 columns 'text'"):
        case("parquet-two-columns")


@pytest.mark.parametrize("name", ["glob-stars"])
def test_patterns_are_refused_in_words(name: str) -> None:
    source = SourceSettings.model_validate({"name": "x", "kind": "text", "glob": str(INPUTS / "**.txt")})
    with pytest.raises(DataError, match="is no pattern of files"):
        SOURCES.get("text").files(source, Connection())


def test_hf_data_dir() -> None:
    settings = {"name": "x", "kind": "huggingface", "glob": str(INPUTS / "hf-data-dir"), "config": "en"}
    files = SOURCES.get("huggingface").files(SourceSettings.model_validate(settings), Connection())
    assert [path.url[-26:] for path, _ in files] == ["hf-data-dir/en/train.jsonl"]


def test_pii() -> None:
    lines = [json.loads(line)["text"] for line in (INPUTS / "pii.jsonl").read_text().splitlines()]
    mail = [[text[start:stop] for start, stop in emails(text)] for text in lines]
    assert mail[:2] == [["nobody@example.com"], ["nobody@example.jp"]]
    assert mail[4] == ["nobody@example.org"]
    assert mail[5] == []
    numbers = [[text[a:b] for a, b in phones(text, (0, len(text)), ["CN", "JP"])] for text in lines]
    assert numbers[2:4] == [["13900000000"], ["03-0000-1234"]]
    assert not list(ips(lines[6]))
    assert len(list(ibans(lines[7], (0, len(lines[7]))))) == 1


def test_language_capitals() -> None:
    for line in (INPUTS / "language-capitals.jsonl").read_text().splitlines():
        language, score = identifier()(json.loads(line)["text"])
        assert language in ("de", "en", "fr", "es", "it", "ru", "nl", "pt"), line
        assert score > 0.5


# --- every case from its file to a dataset, or to an error in words ----------------------------------------------

BROKEN = r" \(1 of 1 files of source 'x' are broken; prepare\.max_broken_share allows 0\.01\)"
# How many documents a case gives, or what it is refused for.
ENDS: dict[str, int | str] = {
    **dict.fromkeys(("book-contents", "book-letters", "epub-pre", "epub-ruby", "epub-math", "epub-footer"), 1),
    **dict.fromkeys(("epub-missing-page", "epub-backslash", "epub-ampersand", "epub-links"), 1),
    "epub-nav-elsewhere": 2,
    **dict.fromkeys(("warc-one-bad-byte", "warc-ul"), 1),
    **dict.fromkeys(("warc-gzip-decoded", "warc-content-type"), 3),
    "warc-garbage-behind": r"warc-garbage-behind\.warc\.gz cannot be unpacked: .*" + BROKEN,
    "warc-angle-uri": r"the sources hold no document: .* \(1 blocked domain; such as .*\(blocked\.example\)",
    "wiki-de": 1,
    "wiki-en": 4,
    "wiki-multistream-cut": r"multistream\.xml\.bz2 ends \d+ bytes before its index says" + BROKEN,
    **dict.fromkeys(("csv-cr-only", "csv-latin1-meta", "jsonl-array"), 2),
    **dict.fromkeys(("csv-bom-quoted", "csv-empty", "hf-data-dir", "near-duplicates-zh"), 1),
    "csv-open-quote": 1000,
    "jsonl-nul": r"jsonl-nul\.jsonl line 2 is not JSON: .* \(1 of 52 records of source 'x' are broken;",
    "jsonl-language-tags": 5,
    "parquet-damaged": r"parquet-damaged\.parquet cannot be read as Parquet: .*" + BROKEN,
    "parquet-two-columns": r"parquet-two-columns\.parquet has 2 columns 'text'",
    "zstd-long-window": r"zstd-long-window\.jsonl\.zst cannot be unpacked: .*" + BROKEN,
    "glob-stars": r"source 'x': .*\*\*\.txt is no pattern of files",
    "pii": 8,
    "language-capitals": 3,
    "eos-unigram": r"the tokenizer cannot spell 12\.2% of the text of source 'x', more than 5\.0%",
    "tokenizer-no-unknown": r"the tokenizer cannot spell 80\.0% of the text of source 'x', more than 5\.0%",
}
# What is there beside the damage, where a share of that is allowed.
BESIDE = {"warc-garbage-behind": 3, "wiki-multistream-cut": 40, "jsonl-nul": 51, "eos-unigram": 2}


def prepared(folder: Path, name: str, **changed: Any) -> PrepareReport:
    """The dataset that `raylm prepare` makes of a case."""
    settings: dict[str, Any] = json.loads((INPUTS / "cases.json").read_text())[name]
    steps, tokenizer = settings.pop("steps", []), settings.pop("tokenizer", {})
    tokenizer = {"path": str(INPUTS / tokenizer["path"])} if tokenizer else {"vocab_size": 300}
    source = {"name": "x", **settings, "glob": str(INPUTS / settings["glob"])}
    given = {
        "unit_bytes": source.pop("unit_bytes", 1_000_000),
        "max_broken_share": source.pop("quarantine", 0.01),
        "sources": [source],
        "steps": steps,
        "tokenizer": tokenizer,
        "held_out": 0,
        "output": str(folder / "data"),
    }
    for key, value in changed.items():
        given[key] = {**given[key], **value} if isinstance(value, dict) else value
    return prepare(Job.model_validate({"name": "x", "prepare": given}), session=here)


def test_every_case_has_an_end() -> None:
    assert set(json.loads((INPUTS / "cases.json").read_text())) == set(ENDS)


@pytest.mark.parametrize("name", ENDS)
def test_a_case_becomes_a_dataset_or_is_refused_in_words(tmp_path: Path, name: str) -> None:
    end = ENDS[name]
    if isinstance(end, int):
        assert prepared(tmp_path, name).documents == end
    else:
        with pytest.raises(DataError, match=end) as caught:
            prepared(tmp_path, name)
        assert caught.value.hint


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_beside_the_damage_is_kept_where_damage_is_allowed(tmp_path: Path, name: str) -> None:
    unknown = {"tokenizer": {"max_unknown": 1}} if name == "eos-unigram" else {}
    report = prepared(tmp_path, name, max_broken_share=1, **unknown)
    assert report.documents == BESIDE[name]
    assert bool(report.warnings) == (name != "eos-unigram")


def test_control_tokens_in_a_text_end_no_document(tmp_path: Path) -> None:
    report = prepared(tmp_path, "eos-unigram", tokenizer={"max_unknown": 1})
    manifest, output = report.manifest, StoragePath(report.output)
    (shard,) = manifest.train
    rows = read_rows(output, shard, 0, shard.rows, manifest)
    ends = sum(
        int((tokens[:length] == manifest.eos_id).sum())
        for tokens, length in zip(rows.tokens, rows.lengths, strict=True)
    )
    assert ends == report.documents


def test_csv_empty_is_counted_and_told(tmp_path: Path) -> None:
    report = prepared(tmp_path, "csv-empty")
    assert report.skipped == {"empty_file": 1}
    assert "reading skipped 50% of 2 files as empty file" in report.warnings[0]
