"""Blocklists: what is listed goes, what only looks like it stays, and wrong lists stop the job before it begins."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_prepare import documents, job, run

from raylm.config.prepare.steps import OperatorSettings
from raylm.errors import ConfigError, DataError
from raylm.prep.operators import OperatorRecord, applied, operator_of
from raylm.prep.operators.blocklist import finder, host_of, listed_domain
from raylm.records import Document
from raylm.storage import Connection, StoragePath


def left(settings: dict[str, Any], *given: tuple[str, str] | str) -> tuple[list[str], OperatorRecord]:
    """The texts that the step leaves of these: texts, or texts with their URLs."""
    pairs = [(one, "") if isinstance(one, str) else one for one in given]
    record = OperatorRecord("blocklist")
    step = operator_of(OperatorSettings.model_validate({"blocklist": settings}), Connection())
    texts = [Document(f"x#{n}", text, "x", {"url": url} if url else {}) for n, (text, url) in enumerate(pairs)]
    return [document.text for document in applied(step, texts, record)], record


@pytest.mark.parametrize(
    ("url", "blocked"),
    [
        ("https://bad.example/a", True),
        ("http://www.BAD.example:8080/?q=1", True),
        ("https://user:word@deep.down.bad.example.#x", True),
        ("bad.example/page", True),
        ("//bad.example", True),
        ("https://notbad.example/", False),
        ("https://bad.example.org/", False),
        ("https://good.example/?u=bad.example", False),
        ("https://bücher.example/", True),
        ("https://shop.xn--bcher-kva.example/", True),
        ("http://192.0.2.7/x", True),
        ("http://[broken/", False),
        ("https://" + "a" * 70 + "é.example", False),
    ],
)
def test_a_domain_blocks_what_is_below_it_and_nothing_beside(url: str, blocked: bool) -> None:
    kept, record = left({"domains": ["Bad.example", "*.Bücher.example", "192.0.2.7"]}, ("text", url))
    assert kept == ([] if blocked else ["text"])
    assert record.dropped == ({"blocked_domain": 1} if blocked else {})


def test_a_document_without_a_url_passes_and_is_counted() -> None:
    kept, record = left({"domains": ["bad.example"]}, "no url", ("url", "https://good.example"))
    assert kept == ["no url", "url"]
    assert record.tallies["blocklist_url"] == {"none": 1, "given": 1}


def test_words_of_a_url_are_whole_ones() -> None:
    settings = {"url_words": ["casino", "free money", "café"]}
    kept, record = left(
        settings,
        ("1", "https://a.example/best-CASINO.html"),
        ("2", "https://a.example/free_money/"),
        ("3", "https://a.example/caf%C3%A9"),
        ("4", "https://a.example/casinos/free/the/money"),
    )
    assert kept == ["4"]
    assert record.dropped == {"blocked_url_word": 3}
    assert record.examples["blocked_url_word"][0] == "x#0 (casino): 1"


def test_words_and_phrases_of_a_text() -> None:
    settings = {"words": ["bad", "very  Bad\tthing", "c++"]}
    texts = ["A BAD day", "badly", "a_bad_day", "I write C++ code", "embed", "that (bad!) one"]
    kept, record = left(settings, *texts)
    assert kept == ["badly", "embed"]
    assert record.examples["blocked_words"][0] == "x#0 (bad): A BAD day"
    assert left(settings | {"whole_words": False}, *texts)[0] == ["embed"]
    assert left({"words": ["坏话"], "whole_words": False}, "他说坏话了", "他说好话了")[0] == ["他说好话了"]


def test_a_number_and_a_share_have_to_be_reached() -> None:
    texts = ["bad", "bad bad", "bad bad " + "good " * 8, "a very\nbad thing, bad"]
    assert left({"words": ["bad"], "min_matches": 2}, *texts)[0] == texts[:1]
    kept, _ = left({"words": ["bad", "very bad thing"], "min_matches": 2, "min_share": 0.3}, *texts)
    assert kept == [texts[0], texts[2]], "words in a phrase that counts do not count again"


ENTRIES = st.lists(st.text("ab ", min_size=1).filter(str.strip), min_size=1, max_size=6)


@given(ENTRIES, st.text("aAbB -", max_size=30))
def test_whole_words_are_what_a_pattern_finds(entries: list[str], text: str) -> None:
    tidy = sorted({" ".join(entry.split()) for entry in entries}, key=len, reverse=True)
    pattern = r"(?<![ab])(?:" + "|".join(map(re.escape, tidy)) + r")(?![ab])"
    assert finder(entries, whole_words=True)(text) == re.findall(pattern, " ".join(text.lower().split()))


@given(st.lists(st.sampled_from(["a.b", "b", "c.a.b", "x"]), max_size=3), st.lists(st.sampled_from("abcx"), max_size=4))
def test_a_host_is_listed_when_a_suffix_of_its_names_is(listed: list[str], names: list[str]) -> None:
    host = ".".join(names)
    wanted = any(host == one or host.endswith(f".{one}") for one in listed)
    assert (listed_domain(host_of(f"https://{host}/"), frozenset(listed)) is not None) == wanted


def test_long_lists_are_read_from_files(tmp_path: Path) -> None:
    chance = random.Random(0)
    names = {f"{chance.randrange(16**8):x}.example" for _ in range(100_000)}
    (tmp_path / "domains.txt").write_text("# adult\n\n" + "\n".join(sorted(names)) + "\n")
    words = {"".join(chance.choices("bcdfghjk", k=9)) for _ in range(10_000)}
    (tmp_path / "words.txt").write_text("\n".join(sorted(words)))
    settings = {"domain_files": [f"{tmp_path}/domains.txt"], "word_files": [f"{tmp_path}/words.txt"]}
    some, word = min(names), max(words)
    kept, record = left(settings, ("a", f"https://www.{some}/"), ("b", "https://example/"), f"say {word}!", "nothing")
    assert kept == ["b", "nothing"]
    assert record.dropped == {"blocked_domain": 1, "blocked_words": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no list of words"),
        (b"good.example\n\nhttps://bad.example/x\n", "line 3: 'https://bad.example/x' is no domain"),
        (b"0.0.0.0 bad.example", "line 1: '0.0.0.0 bad.example' is no domain"),
        (b"\xff\xfe", "is no list of words"),
    ],
)
def test_a_wrong_list_stops_the_job_before_any_unit(tmp_path: Path, content: bytes | None, message: str) -> None:
    (tmp_path / "x.txt").write_text("one text")
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    sources = [{"name": "x", "glob": f"{tmp_path}/x.txt"}]
    steps = [{"blocklist": {"domain_files": [f"{tmp_path}/list.txt"]}}]
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        run(job(tmp_path / "data", sources, steps=steps))
    assert f"{tmp_path}/list.txt" in caught.value.message
    assert not (tmp_path / "data" / "_work").exists()


def test_wrong_entries_are_refused() -> None:
    with pytest.raises(ValidationError, match="a blocklist needs an entry in one of domains"):
        OperatorSettings.model_validate({"blocklist": {"min_matches": 2}})
    with pytest.raises(ConfigError, match=r"blocklist.domains\[1\]: 'a/b' is no domain"):
        left({"domains": ["a.example", "a/b"]})
    with pytest.raises(ConfigError, match=r"blocklist.words\[0\]: '--' holds no letter or digit"):
        left({"words": ["--"]})


def test_a_job_tells_what_its_blocklist_dropped(tmp_path: Path) -> None:
    rows = [
        {"text": f"text number {n} about tea", "url": f"https://{'bad' if n % 4 == 0 else 'good'}.example/{n}"}
        for n in range(40)
    ]
    rows[1]["text"] = "something nasty"
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = [{"name": "x", "kind": "jsonl", "glob": f"{tmp_path}/x.jsonl", "meta": ["url"]}]
    steps = [{"blocklist": {"domains": ["bad.example"], "words": ["nasty"]}}]
    report = run(job(tmp_path / "data", sources, steps=steps, held_out=0.0))
    assert report.manifest.steps[0]["dropped"] == {"blocked_domain": 10, "blocked_words": 1}
    assert len(documents(StoragePath(str(tmp_path / "data")))) == 29
