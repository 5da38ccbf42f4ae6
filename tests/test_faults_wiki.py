"""Wikipedia in any language: sentences keep their words, and what a page only shows beside them goes."""

from __future__ import annotations

import bz2
import itertools
from html import escape
from pathlib import Path

import pytest

from raylm.config.job import Job
from raylm.config.prepare.sources import SourceSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import Skipped
from raylm.prep.prepare import prepare
from raylm.prep.ranges import FileRange
from raylm.prep.readers.read import read_range
from raylm.prep.readers.wikipedia import SOURCE, stream_begins
from raylm.prep.readers.wikitext import Site, renderer
from raylm.prep.tasks import here
from raylm.records import Document
from raylm.storage import Connection, StoragePath


def shown(markup: str, **namespaces: str) -> str:
    keys = {"file": "6", "category": "14", "media": "-2"}
    return renderer(Site.of({keys[name]: text for name, text in namespaces.items()}))(markup)


def page(number: int, *texts: str, title: str = "T") -> str:
    revisions = "".join(
        f"<revision><id>{number * 10 + n}</id><timestamp>2024-01-0{n + 1}T00:00:00Z</timestamp>"
        f"<text xml:space='preserve'>{escape(text)}</text></revision>"
        for n, text in enumerate(texts)
    )
    return f"<page><title>{title}</title><ns>0</ns><id>{number}</id>{revisions}</page>"


def dump(*pages: str, language: str = "en", namespaces: str = "") -> str:
    head = f"<siteinfo><namespaces>{namespaces}</namespaces></siteinfo>"
    space = "http://www.mediawiki.org/xml/export-0.11/"
    return f'<mediawiki xmlns="{space}" xml:lang="{language}">{head}{"".join(pages)}</mediawiki>'


def read(path: Path) -> list[Document]:
    source = SourceSettings.model_validate({"name": "x", "kind": "wikipedia", "glob": str(path)})
    return list(read_range(source, FileRange(str(path), path.stat().st_size), Connection(), Skipped()))


def test_a_colon_at_the_end_of_a_line_stays_and_indentation_goes() -> None:
    assert shown("It has two parts:\n:* one\n::said:") == "It has two parts:\none\nsaid:"


@pytest.mark.parametrize(
    ("language", "file", "category"),
    [
        ("de", "Datei", "Kategorie"),
        ("ru", "Файл", "Категория"),
        ("xx", "Fayl", "Turkum"),
        ("ja", "ファイル", "Category"),
    ],
)
def test_files_and_categories_go_by_the_names_of_the_dump(
    tmp_path: Path, language: str, file: str, category: str
) -> None:
    names = f'<namespace key="6">{file}</namespace><namespace key="14">{category}</namespace>'
    text = f"[[{file}:b.jpg|mini|Ein Bild]] Eine Brücke.\n\n[[{category}:Bauwerk]]\n[[en:Bridge]]"
    path = tmp_path / "dump.xml"
    path.write_text(dump(page(1, text), page(2, text), language=language, namespaces=names))
    assert [document.text for document in read(path)] == ["T\n\nEine Brücke."] * 2


def test_the_parts_of_a_multistream_dump_know_the_names_too(tmp_path: Path) -> None:
    names = '<namespace key="6">Fayl</namespace><namespace key="14">Turkum</namespace>'
    whole = dump(language="uz", namespaces=names)
    streams = [whole.removesuffix("</mediawiki>"), *(page(n, "[[Turkum:A]] Matn.[[Fayl:b.jpg]]") for n in (1, 2))]
    packed, index = b"", b""
    for number, stream in enumerate(streams):
        if number:
            index += f"{len(packed)}:{number}:T\n".encode()
        packed += bz2.compress(stream.encode())
    packed += bz2.compress(b"</mediawiki>")
    path = tmp_path / "x-pages-articles-multistream.xml.bz2"
    path.write_bytes(packed)
    (tmp_path / "x-pages-articles-multistream-index.txt.bz2").write_bytes(bz2.compress(index))
    source = SourceSettings.model_validate({"name": "x", "kind": "wikipedia", "glob": str(path)})
    begins = stream_begins(StoragePath(str(path)))
    assert begins is not None
    found: list[Document] = []
    for start, stop in itertools.pairwise([*begins, len(packed)]):
        found += read_range(source, FileRange(str(path), len(packed), start, stop), Connection(), Skipped())
    assert [document.text for document in found] == ["T\n\nMatn."] * 2


def test_links_to_other_languages_go_and_those_in_a_sentence_stay() -> None:
    assert shown("A.[[fr:Pont]] See [[:fr:Pont|pont]] and [[Re:Zero]].") == "A. See pont and Re:Zero."


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("-{zh-hans:计算机;zh-hant:電腦;}-很快。", "计算机很快。"),
        ("-{漢字}-。", "漢字。"),
        ("-{T|zh-hans:标题;zh-hant:標題}-正文。", "正文。"),
        ("-{zh-cn:软件; zh-tw:軟體}-。", "软件。"),
    ],
)
def test_one_spelling_of_several_is_shown(markup: str, text: str) -> None:
    assert shown(markup) == text


@pytest.mark.parametrize("word", ["__NOTOC__", "__KEIN_INHALTSVERZEICHNIS__", "__БЕЗ_ОГЛАВЛЕНИЯ__", "__无目录__"])
def test_words_for_the_site_go_and_names_of_code_stay(word: str) -> None:
    assert shown(f"{word}A text with __init__ in it.{word}") == "A text with __init__ in it."


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("At {{convert|1300|mi|km}}, long.", "At 1300 mi, long."),
        ("From {{convert|5|to|10|km|mi}} away.", "From 5 to 10 km away."),
        ("A {{lang|grc|γέφυρα}} and {{lang-de|Brücke}}.", "A γέφυρα and Brücke."),
        ("It is {{formatnum:3}} old, {{nowrap|10 km}} far.", "It is 3 old, 10 km far."),
        ("A {{val|12.5|u=km}} walk.", "A 12.5 km walk."),
        ("Read {{w|Hamlet|the play}}, {{w|Emma}}.", "Read the play, Emma."),
        ("{{Quote|text=To be.}}", "To be."),
        ("{{quote|To be, {{nowrap|or not}}.|Hamlet}}", "To be, or not."),
        ("{{unité|5|km}} le {{date|1|janvier|2000}}.", "5 km le 1 janvier 2000."),
        ("{{frac|1|2}} of it; {{infobox|name=x}}gone.", "1/2 of it; gone."),
        ("Let <math>x^2</math> be, and <chem>H2O</chem>.", "Let x^2 be, and H2O."),
    ],
)
def test_templates_that_only_give_a_form_show_what_they_are_given(markup: str, text: str) -> None:
    assert shown(markup) == text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("Bern ({{IPAc-en|b}}) is old.", "Bern is old."),
        ("Bern ({{IPA|b}}; from {{lang|la|Berna}}) is old.", "Bern (from Berna) is old."),
        ("Bern (born 1850, {{x}}) is old.", "Bern (born 1850) is old."),
        ("北京（{{x}}）是首都。", "北京是首都。"),
        ("f() and a[0] stay, as (a) does.", "f() and a[0] stay, as (a) does."),
    ],
)
def test_brackets_that_templates_leave_empty_go(markup: str, text: str) -> None:
    assert shown(markup) == text


def test_code_keeps_its_lines() -> None:
    code = "<syntaxhighlight lang=python>\nfor x in y:\n    f(x)\n</syntaxhighlight>"
    markup = f"Run:\n{code}\n<pre>\nif a:\n    b\n</pre>\nEnd."
    assert "Run:\n\nfor x in y:\n    f(x)\n" in shown(markup)
    assert "\nif a:\n    b\n\nEnd." in shown(markup)


def test_the_newest_revision_of_a_page_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml"
    path.write_text(dump(page(4, "The oldest text.", "The newest text.")))
    (document,) = read(path)
    assert document.text == "T\n\nThe newest text."
    assert str(document.meta["date"]).startswith("2024-01-02")


def test_an_index_that_is_cut_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "x-pages-articles-multistream.xml.bz2"
    path.write_bytes(bz2.compress(dump(page(1, "A.")).encode()))
    index = bz2.compress(b"".join(b"%d:%d:T\n" % (n * 100, n) for n in range(5000)))
    (tmp_path / "x-pages-articles-multistream-index.txt.bz2").write_bytes(index[: len(index) // 2])
    with pytest.raises(DataError, match="cannot be unpacked"):
        stream_begins(StoragePath(str(path)))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_dump_that_ends_before_its_index_says_costs_what_is_missing(tmp_path: Path, share: float) -> None:
    head, *streams = [
        bz2.compress(part.encode())
        for part in (dump().removesuffix("</mediawiki>"), *(page(n, f"Page {n} is a long one.") for n in range(1, 9)))
    ]
    begins = list(itertools.accumulate(map(len, [head, *streams])))[:-1]
    whole = b"".join([head, *streams, bz2.compress(b"</mediawiki>")])
    path = tmp_path / "x-pages-articles-multistream.xml.bz2"
    path.write_bytes(whole[: begins[5] + 20])
    index = "".join(f"{begin}:{number}:T\n" for number, begin in enumerate(begins, 1))
    (tmp_path / "x-pages-articles-multistream-index.txt.bz2").write_bytes(bz2.compress(index.encode()))
    given = {
        "sources": [{"name": "dump", "kind": "wikipedia", "glob": str(path)}],
        "output": str(tmp_path / "data"),
        "unit_bytes": 200,
        "held_out": 0,
        "max_broken_share": share,
        "tokenizer": {"vocab_size": 270, "sample_bytes": 10_000},
    }
    preparation = Job.model_validate({"name": "x", "prepare": given})
    if not share:
        with pytest.raises(DataError, match=r"ends \d+ bytes before its index says \(1 of 1 files of source 'dump'"):
            prepare(preparation, session=here)
        return
    report = prepare(preparation, session=here)
    assert report.documents == 5, "every page that is whole"
    assert report.skipped == {"broken_file": 1}
    assert report.warnings[0].startswith("source 'dump': reading skipped 100% of 1 files as broken file; ")


def test_an_index_of_another_dump_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x-pages-articles-multistream.xml.bz2"
    path.write_bytes(bz2.compress(dump(page(1, "A.")).encode()))
    index = tmp_path / "x-pages-articles-multistream-index.txt.bz2"
    for text in ("", "900000:1:T\n"):
        index.write_bytes(bz2.compress(text.encode()))
        assert SOURCE.cut(SOURCE.settings(glob=str(path)), StoragePath(str(path)), path.stat().st_size, 10) is None
    index.write_bytes(bz2.compress(b"-5:1:T\n"))
    with pytest.raises(DataError, match="begins at byte -5"):
        stream_begins(StoragePath(str(path)))


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("日本の<ruby>漢字<rp>(</rp><rt>かんじ</rt><rp>)</rp></ruby>です", "日本の漢字です"),
        ("{{ruby|漢字|かんじ}}と{{読み仮名|東京|とうきょう}}", "漢字と東京"),
        ("{{仮リンク|橋|en|Bridge}}や{{tsl|en|Bridge|桥}}", "橋や桥"),
        ("{{нп5|Мост|мост||Bridge}} и {{нп5|Река}}", "мост и Река"),
        ("au {{s-|XIX|e}}, au {{s|XIX|e}}, au {{XIXe siècle}}", "au XIXe, au XIXe siècle, au XIXe siècle"),
        ("el {{siglo|XIX||s}} y el siglo {{siglo|XX}}", "el siglo XIX y el siglo XX"),
        ("{{nihongo|Tokyo|東京|Tōkyō}} is", "Tokyo (東京, Tōkyō) is"),
        ("{{font color|red|a word}} {{ill|Foo|de|lt=Bar}}", "a word Bar"),
        ("{{frac|3|1|2}} or {{1/2}} {{val|1|e=5|u=m}}", "3 1/2 or 1/2 1×10^5 m"),
        ("a{{ndash}}b costs {{USD|5}}, {{circa|1900}}", "a–b costs US$5, c. 1900"),
        ("{{ubl|one|two}}", "one\ntwo"),
        (";Term: definition\n: more", "Term: definition\nmore"),
        ("The macros __FILE__ and __STDC_VERSION__.__NOTOC__", "The macros __FILE__ and __STDC_VERSION__."),
    ],
)
def test_words_that_stand_in_templates_and_marks_of_many_languages_stay(markup: str, text: str) -> None:
    assert shown(markup) == text


def test_pages_of_old_dumps_and_other_content_are_told_apart(tmp_path: Path) -> None:
    redirects = ("#REDIRECT [[X]]", "#WEITERLEITUNG [[X]]", "#перенаправление [[X]]", "#重定向 [[X]]")
    pages = [page(number, text) for number, text in enumerate(redirects)]
    pages += [page(10, "#one\n#two", title="List"), page(11, "Cat.", title="Kategorie:X").replace("<ns>0</ns>", "")]
    data = page(12, '{"id": "Q1"}').replace("<text", "<model>wikibase-item</model><text")
    pages += [data, page(13, "Words.", title="Old").replace("<ns>0</ns>", "").replace("<id>13</id>", "<id>x</id>")]
    path = tmp_path / "a.xml"
    path.write_text(dump(*pages, namespaces='<namespace key="14">Kategorie</namespace><namespace key="0"/>'))
    assert [document.text for document in read(path)] == ["List\n\none\ntwo", "Old\n\nWords."]
