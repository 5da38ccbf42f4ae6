"""Web pages as servers and crawlers leave them: nothing of their text is lost to a byte, a head or a list."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from base64 import b32encode, b64encode
from pathlib import Path

import pyarrow as pa
import pytest

from raylm.config.prepare.sources import SourceSettings
from raylm.prep.checks.skipped import Skipped
from raylm.prep.ranges import FileRange
from raylm.prep.readers.http_body import body_of, media_type
from raylm.prep.readers.page_text import PageText, page_reader
from raylm.prep.readers.read import read_range
from raylm.records import Document
from raylm.storage import Connection

PROSE = "The committee met on Tuesday to discuss the plans for the new bridge, and after a long debate it agreed. "
GERMAN = "Der Ausschuß traf sich am Dienstag, um über die neue Brücke zu beraten, und nach längerer Debatte. "


def page(body: str, head: str = '<meta charset="utf-8">') -> str:
    return f"<html><head>{head}<title>T</title></head><body>{body}</body></html>"


def article(body: str) -> str:
    return page(f"<article><h1>H</h1><p>{PROSE * 3}</p>{body}</article>")


def shown(html: str | bytes, charset: str | None = None, *, whole: bool = False) -> PageText:
    return page_reader(whole=whole)(html.encode() if isinstance(html, str) else html, charset)


def warc(folder: Path, *records: tuple[str, bytes]) -> tuple[list[Document], Skipped]:
    """A WARC file of (head of an HTTP message, body); both are framed as responses."""
    path = folder / "a.warc"
    data = b""
    for number, (head, body) in enumerate(records):
        message = f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body
        data += (
            f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.org/{number}\r\n"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(message)}\r\n\r\n"
        ).encode() + message
        data += b"\r\n\r\n"
    path.write_bytes(data)
    return read(path)


def read(path: Path) -> tuple[list[Document], Skipped]:
    source = SourceSettings.model_validate({"name": "x", "kind": "warc", "glob": str(path)})
    skipped = Skipped()
    found = list(read_range(source, FileRange(str(path), path.stat().st_size), Connection(), skipped))
    return found, skipped


# --- bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("charset", ["utf-8", None, "iso-8859-1"])
def test_one_bad_byte_costs_itself_and_not_the_pages_encoding(charset: str | None) -> None:
    html = page(f"<article><p>{GERMAN * 4}</p></article>").encode()
    at = html.index(b"Debatte")
    text = shown(html[:at] + b"\xe4" + html[at:], charset).text
    assert text.count("Ausschuß") == 4
    assert text.count("über die neue Brücke") == 4


@pytest.mark.parametrize("encoding", ["iso-8859-1", "windows-1252", "koi8-r", "shift_jis", "gb18030", "utf-16"])
def test_pages_in_other_encodings_are_read_as_before(encoding: str) -> None:
    words = {
        "koi8-r": "Комитет собрался во вторник",
        "shift_jis": "委員会は火曜日に集まった",
        "gb18030": "委员会星期二开会",
    }
    sentence = words.get(encoding, "Der Ausschuß traf sich")
    html = page(f"<article><p>{(sentence + '. ') * 40}</p></article>", f'<meta charset="{encoding}">')
    assert shown(html.encode(encoding), encoding).text.count(sentence) == 40


# --- heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        "Content-Type: TEXT/HTML; charset=UTF-8",
        "Content-Type: text/html, text/html; charset=utf-8",
        "content-type:text/html;charset='utf-8'",
        "Content-Type: application/xhtml+xml",
        "X-Other: no type at all",
    ],
)
def test_a_pages_kind_is_known_however_its_server_spells_it(tmp_path: Path, head: str) -> None:
    (found,), skipped = warc(tmp_path, (head, article("").encode()))
    assert "it agreed" in found.text
    assert not skipped.counts()


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "br", "zstd", "UTF-8", "identity", "none", "chunked"])
def test_a_body_that_is_not_packed_as_its_head_says_is_taken_as_it_is(tmp_path: Path, coding: str) -> None:
    name = "Transfer-Encoding" if coding == "chunked" else "Content-Encoding"
    (found,), skipped = warc(tmp_path, (f"Content-Type: text/html\r\n{name}: {coding}", article("").encode()))
    assert "it agreed" in found.text
    assert not skipped.counts()


def packed(coding: str, body: bytes) -> bytes:
    if coding == "gzip":
        return gzip.compress(body)
    if coding == "deflate":
        return zlib.compress(body)
    if coding == "bare deflate":
        return zlib.compress(body)[2:-4]
    if coding == "chunked":
        parts = [body[at : at + 100] for at in range(0, len(body), 100)]
        return b"".join(b"%x;note=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    return pa.Codec("brotli" if coding == "br" else "zstd").compress(body, asbytes=True)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "bare deflate", "br", "zstd", "chunked"])
def test_a_packed_body_is_unpacked(coding: str) -> None:
    name = "transfer-encoding" if coding == "chunked" else "content-encoding"
    body = article("").encode()
    assert body_of(packed(coding, body), {name: coding.removeprefix("bare ")}) == body


def test_a_packed_body_that_is_cut_off_costs_its_record(tmp_path: Path) -> None:
    whole = gzip.compress(article("").encode())
    head = "Content-Type: text/html\r\nContent-Encoding: gzip"
    (found,), skipped = warc(tmp_path, (head, whole[:-40]), (head, whole))
    assert "it agreed" in found.text
    assert skipped.reasons["broken_record"] == 1


def test_a_head_that_came_twice_counts_once() -> None:
    assert media_type('Text/HTML, text/html; Charset="KOI8-R"', b"") == ("text/html", "KOI8-R")
    assert media_type(None, b"\n<!-- x --><!DOCTYPE html><html>") == ("text/html", None)
    assert media_type(None, b"GIF89a") == ("", None)


def test_a_record_without_a_type_is_damaged_and_types_are_known_in_any_letters(tmp_path: Path) -> None:
    (_,), _ = warc(tmp_path, ("Content-Type: text/html", article("").encode()))
    path = tmp_path / "a.warc"
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"WARC-Type: response", b"warc-type: RESPONSE") + data.replace(b"WARC-Type", b"X-Type")
    )
    documents, skipped = read(path)
    assert len(documents) == 1
    assert skipped.reasons["broken_record"] == 1


def test_the_brackets_that_wget_puts_around_an_address_are_no_part_of_it(tmp_path: Path) -> None:
    warc(tmp_path, ("Content-Type: text/html", article("").encode()))
    path = tmp_path / "a.warc"
    path.write_bytes(path.read_bytes().replace(b"http://a.org/0", b"<http://a.org/0>"))
    (found,), _ = read(path)
    assert found.meta["url"] == "http://a.org/0"


# --- what belongs to a page's text --------------------------------------------------------------------------------


def test_a_list_of_prose_stays_and_a_menu_goes() -> None:
    recipe = "<ul><li>Add two cups of flour to the bowl and stir.</li><li>Leave it for an hour.</li></ul>"
    links = "".join(f'<li><a href="/{n}">Section number {n}</a></li>' for n in range(9))
    html = article(recipe).replace("<body>", f"<body><nav><ul>{links}</ul></nav>")
    text = shown(html.replace("</body>", f"<div><ul>{links}</ul></div></body>")).text
    assert "• Add two cups of flour to the bowl and stir." in text
    assert "• Leave it for an hour." in text
    assert "Section number" not in text


def test_lists_within_lists_and_definitions_stay() -> None:
    inner = "<ul><li>Outer words.<ul><li>Inner words.</li></ul></li></ul><dl><dt>Bridge</dt><dd>Leads over.</dd></dl>"
    text = shown(article(inner)).text
    assert text.index("Outer words.") < text.index("Inner words.") < text.index("Bridge") < text.index("Leads over.")


@pytest.mark.parametrize(
    ("formula", "shown_as"),
    [
        ('<math alttext="x=1/2"><mi>x</mi><mo>=</mo><mfrac><mn>1</mn><mn>2</mn></mfrac></math>', "x=1/2"),
        ("<math><mi>x</mi><mo>=</mo><mfrac><mn>1</mn><mn>2</mn></mfrac></math>", "x=1/2"),
        ('<script type="math/tex">x=\\frac{1}{2}</script>', "x=\\frac{1}{2}"),
        (
            '<span class="katex"><span class="katex-mathml"><math><semantics><mrow><mi>x</mi></mrow>'
            '<annotation encoding="application/x-tex">x=\\tfrac12</annotation></semantics></math></span>'
            '<span class="katex-html" aria-hidden="true">x=12</span></span>',
            "x=\\tfrac12",
        ),
    ],
    ids=["by its words", "by its parts", "TeX in a script", "KaTeX"],
)
def test_a_formula_is_shown_once_as_its_author_spells_it(formula: str, shown_as: str) -> None:
    text = shown(article(f"<p>Let {formula} hold for all of them, as was said before.</p>")).text
    assert f"Let {shown_as} hold" in text


def test_where_the_main_text_is_a_sliver_of_a_page_of_prose_all_of_it_is_taken() -> None:
    parts = "".join(f'<div class="sidebar-comment"><p>{number}. {PROSE * 3}</p></div>' for number in range(6))
    html = page(
        f'<header>Head</header><nav><a href="/">Menu</a></nav><div class="footer">{parts}</div><footer>F</footer>'
    )
    found = shown(html)
    assert found.text.count("it agreed") == 18
    assert "Menu" not in found.text


def test_a_page_of_menus_alone_is_counted_under_a_name_of_its_own(tmp_path: Path) -> None:
    links = "".join(f'<li><a href="/{n}">Section {n}</a></li>' for n in range(50))
    html = page(f"<div><ul>{links}</ul></div>")
    documents, skipped = warc(tmp_path, ("Content-Type: text/html", html.encode()))
    assert not documents
    assert skipped.counts() == {"skipped_no_main_text": 1}


@pytest.mark.parametrize("garbage", [b"xxxx", b"\x1f\x8b\x08\x00broken", gzip.compress(b"WARC/1.0")[:-6]])
def test_damage_behind_good_pages_costs_none_of_them(tmp_path: Path, garbage: bytes) -> None:
    warc(tmp_path, *[("Content-Type: text/html", article("").encode())] * 3)
    plain = (tmp_path / "a.warc").read_bytes()
    each = len(plain) // 3
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(gzip.compress(plain[at : at + each]) for at in range(0, 3 * each, each)) + garbage)
    documents, skipped = read(path)
    assert len(documents) == 3
    assert skipped.reasons["broken_file"] == 1


MANY_BYTES = {
    "gbk": "委员会于星期二开会讨论新桥的计划，经过长时间的辩论后达成了一致意见。",
    "big5": "委員會於星期二開會討論新橋的計劃，經過長時間的辯論後達成了一致意見。",
    "shift_jis": "委員会は火曜日に新しい橋の計画について議論し、長い議論の末に合意しました。",
    "euc-jp": "委員会は火曜日に新しい橋の計画について議論し、長い議論の末に合意しました。",
    "euc-kr": "위원회는 화요일에 새 다리의 계획을 논의하기 위해 모였고 긴 토론 끝에 합의했습니다. ",
    "iso-8859-7": "Η επιτροπή συνεδρίασε την Τρίτη για να συζητήσει τα σχέδια. ",
    "windows-874": "คณะกรรมการประชุมเมื่อวันอังคารเพื่อหารือเกี่ยวกับแผนสะพานใหม่ ",
}


@pytest.mark.parametrize("told", ["server", "page", "nobody"])
@pytest.mark.parametrize("encoding", sorted(MANY_BYTES))
def test_one_bad_byte_costs_itself_in_any_encoding(encoding: str, told: str) -> None:
    if encoding == "euc-kr" and told == "nobody":
        pytest.skip("Korean with spaces, of which nobody says the encoding, is not told from Latin letters")
    text = MANY_BYTES[encoding]
    head = f'<meta charset="{encoding}">' if told == "page" else ""
    html = page(f"<article><p>{text * 6}</p><p>End.</p></article>", head).encode(encoding.replace("windows-", "cp"))
    html = html.replace(b"End.", b"\xffEnd.")
    assert shown(html, encoding if told == "server" else None).text.count(text.strip()) == 6


@pytest.mark.parametrize(
    "given",
    [
        *("text/html charset=utf-8", '"text/html"', "text/html:charset=utf-8", "content-type: text/html"),
        *("html", "*/*", "unknown/unknown", "application/unknown", "application/vnd.wap.xhtml+xml"),
    ],
)
def test_a_kind_that_is_misspelt_or_none_costs_no_page(tmp_path: Path, given: str) -> None:
    documents, _ = warc(tmp_path, (f"Content-Type: {given}", article("").encode()))
    assert len(documents) == 1
    assert media_type("text/html charset=koi8-r", b"")[1] == "koi8-r"


@pytest.mark.parametrize("spelled", ["upper", "lower", "base64", "hex", "none", "unknown"])
def test_a_digest_is_compared_however_it_is_spelled(tmp_path: Path, spelled: str) -> None:
    documents = []
    for right in (True, False):
        message = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + article("").encode()
        digest = hashlib.sha1(message if right else b"other").digest()
        base = b32encode(digest).decode()
        given = {"upper": base, "lower": base.lower(), "base64": b64encode(digest).decode(), "hex": digest.hex()}
        value = {"none": "-", "unknown": "tiger:ABCD"}.get(spelled) or f"sha1:{given[spelled]}"
        head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.org/\r\nWARC-Block-Digest: {value}\r\n"
        head += f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(message)}\r\n\r\n"
        path = tmp_path / "a.warc"
        path.write_bytes(head.encode() + message + b"\r\n\r\n")
        documents.append(len(read(path)[0]))
    assert documents == ([1, 1] if spelled in ("none", "unknown") else [1, 0])


def test_the_reading_of_characters_is_left_out_of_pages() -> None:
    ruby = (
        "<p>"
        + "<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp>字<rt>じ</rt></ruby>を読むことができる人は少ない。" * 4
        + "</p>"
    )
    assert "漢字を読むことができる人は少ない。" * 4 in shown(article(ruby)).text


@pytest.mark.parametrize(
    ("kind", "head", "body"),
    [
        ("conversion", "text/plain", b"\xef\xbb\xbf" + GERMAN.encode()),
        ("conversion", "text/plain; charset=iso-8859-1", GERMAN.encode("latin-1")),
        ("response", "text/html", article(f"<p>{GERMAN * 3}</p>").encode()),
    ],
    ids=["byte order mark", "another encoding", "no head"],
)
def test_records_as_other_crawlers_write_them(tmp_path: Path, kind: str, head: str, body: bytes) -> None:
    frame = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a.org/\r\nContent-Type: {head}\r\n"
    path = tmp_path / "a.warc"
    path.write_bytes(f"{frame}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n")
    (document,) = read(path)[0]
    assert GERMAN.strip() in document.text
    assert "\ufeff" not in document.text
