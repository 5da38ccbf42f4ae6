"""Normal forms of texts: what changes, what stays, and that doing it again changes nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.config.prepare.steps import OperatorSettings
from raylm.prep.operators import OperatorRecord, applied, operator_of
from raylm.records import Document
from raylm.storage import Connection

pytest.importorskip("ftfy", reason="ftfy is not installed")

ODD = "aé\u0301e A\tﬁ１²\u212a \xa0\u3000\n\r\n\u2028\x85\x0b\x00\x07\xad\u200b\u200c\u200d\ufeffकشمی👩\u200d👧-.\u200f"


def normal(text: str, **settings: Any) -> tuple[str | None, OperatorRecord]:
    """The text as the step leaves it, None where it is dropped; and the step's record."""
    record = OperatorRecord("normalize")
    step = operator_of(OperatorSettings.model_validate({"normalize": settings}), Connection())
    kept = list(applied(step, [Document("x#0", text, "x", {})], record))
    return (kept[0].text if kept else None), record


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cafe\u0301", "café"),
        ("one\r\ntwo\rthree\u2028four\x85five\x0csix", "one\ntwo\nthree\nfour\nfive\nsix"),
        ("so\xadft and\u200b zero\ufeff \x00\x07width", "soft and zero width"),
        ("a  b\t\tc\xa0d\u3000e \n  f  ", "a b c d e\n  f"),
        ("\tdef f():\n\t    return  1", "\tdef f():\n\t    return 1"),
        ("one\n\n\n\n\ntwo\n \n\t\nthree\n\n", "one\n\ntwo\n\nthree"),
        ("می\u200cخواهم क्\u200dष 👩\u200d👧", "می\u200cخواهم क्\u200dष 👩\u200d👧"),
        ("jo\u200din\u200cer\u200d", "joiner"),
        ("ﬁne １２", "ﬁne １２"),
        ("שלום\u200f!", "שלום\u200f!"),
    ],
)
def test_texts_come_into_one_form(text: str, wanted: str) -> None:
    assert normal(text)[0] == wanted


def test_settings_say_what_is_done() -> None:
    assert normal("ﬁne １²", form="NFKC")[0] == "fine 12"
    assert normal("e\u0301", form="none")[0] == "e\u0301"
    assert normal("  x\n   y", indentation=False)[0] == "x\ny"
    assert normal("x\n\n\ny", blank_lines=0)[0] == "x\ny"
    assert normal("x\n\n\n\ny", blank_lines=2)[0] == "x\n\n\ny"
    assert normal("so\xadft", invisible=False)[0] == "so\xadft"
    assert normal("a  b \r\n c", spaces=False)[0] == "a  b \r\n c"


def test_mojibake_is_repaired_where_it_is_asked_for() -> None:
    broken = "Das schÃ¶ne MÃ¤dchen\nschöne Straße\n"
    assert normal(broken)[0] == broken.strip("\n")
    repaired, record = normal(broken, mojibake=True)
    assert repaired == "Das schöne Mädchen\nschöne Straße"
    assert record.changed == {"mojibake": 1, "blank_lines": 1}


def test_what_was_done_is_counted_and_nothing_is_no_document() -> None:
    assert normal("plain text")[1].changed == {}
    assert normal("a  b\r\nc\xad")[1].changed == {"spaces": 1, "line_ends": 1, "invisible": 1}
    text, record = normal(" \u200b\ufeff\n\t")
    assert (text, record.dropped) == (None, {"nothing_visible": 1})


@given(
    st.text(st.sampled_from(ODD) | st.characters(codec="utf-8"), max_size=60),
    st.sampled_from(["NFC", "NFKC", "none"]),
    st.booleans(),
)
def test_done_again_nothing_changes(text: str, form: str, indentation: bool) -> None:
    once, _ = normal(text, form=form, indentation=indentation)
    if once is not None:
        assert normal(once, form=form, indentation=indentation)[0] == once


@given(st.text(st.sampled_from(ODD) | st.characters(codec="utf-8"), max_size=60))
def test_no_letter_is_lost(text: str) -> None:
    kept = normal(text, form="none")[0] or ""
    assert [letter for letter in kept if letter.isalnum()] == [letter for letter in text if letter.isalnum()]


@pytest.mark.parametrize("sign", [" ", "\u200d", "\n", "\xa0", "\t"])
def test_long_runs_take_no_squared_time(sign: str) -> None:
    began = time.monotonic()
    normal(f"é{sign * 300_000}é")
    normal(f"{sign * 300_000}é")
    assert time.monotonic() - began < 5
