"""Quality rules: the same verdicts as datatrove's filters with spaCy's own words, and counts of each."""

from __future__ import annotations

import gzip
import json
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raylm.config.prepare.steps import OperatorSettings
from raylm.errors import DataError
from raylm.prep.operators import OperatorRecord, applied, operator_of
from raylm.records import Document
from raylm.storage import Connection
from raylm.testing.external import external_data, needs_data

pytest.importorskip("datatrove", reason="datatrove is not installed")

C4 = external_data("pretrain-text/c4_docs.jsonl.gz")
LISTED = """
the be to of and that have with river stone house garden water people went over under small large old new said morning
evening because before after road town school letter music number three window winter summer
"""
WORDS = LISTED.split()


def judge(texts: list[str], meta: dict[str, Any] | None = None, **given: Any) -> tuple[list[Document], OperatorRecord]:
    """What the step makes of these texts, and its record."""
    record = OperatorRecord("quality")
    step = operator_of(OperatorSettings.model_validate({"quality": given}), Connection())
    documents = [Document(f"x#{number}", text, "x", meta or {}) for number, text in enumerate(texts)]
    return list(applied(step, documents, record)), record


def prose(seed: int, sentences: int = 30) -> str:
    """Sentences in lines of three, no run of words twice."""
    chance = random.Random(seed)
    made = [" ".join(chance.choices(WORDS, k=12)).capitalize() + "." for _ in range(sentences)]
    return "\n".join(" ".join(made[number : number + 3]) for number in range(0, sentences, 3))


GOOD = prose(0)


@pytest.mark.parametrize(
    ("rule", "text", "reason"),
    [
        ("gopher_quality", "too short", "gopher_quality_short_doc"),
        ("gopher_quality", "a b c d e f g h i j " * 20, "gopher_quality_below_avg_threshold"),
        ("gopher_quality", GOOD.replace(" ", " # "), "gopher_quality_too_many_hashes"),
        ("gopher_quality", "- " + GOOD.replace("\n", "\n- "), "gopher_quality_too_many_bullets"),
        ("gopher_quality", GOOD.replace(" and ", " 12 ").replace(" ", " 345 "), "gopher_quality_below_alpha_threshold"),
        ("gopher_quality", " ".join(["river stone house garden water"] * 12), "gopher_quality_enough_stop_words"),
        ("gopher_repetition", "\n".join([GOOD.splitlines()[0]] * 9), "gopher_repetition_dup_line_frac"),
        ("gopher_repetition", "\n\n".join([GOOD.splitlines()[0]] * 9), "gopher_repetition_dup_para_frac"),
        ("gopher_repetition", "river stone " * 60, "gopher_repetition_top_2_gram"),
        ("c4", GOOD + "\nlorem ipsum dolor sit.", "c4_lorem_ipsum"),
        ("c4", GOOD + "\nfunction f() { return 1; }.", "c4_curly_bracket"),
        ("c4", "One sentence alone is not enough.", "c4_too_few_sentences"),
        ("fineweb", GOOD.replace(".", ""), "fineweb_line_punct_ratio"),
        ("fineweb", "Short line.\n" * 3 + GOOD[:300].replace(" ", ".\n"), "fineweb_short_line_ratio"),
        ("fineweb", " \n\n ", "empty"),
    ],
)
def test_each_rule_says_why(rule: str, text: str, reason: str) -> None:
    kept, record = judge([text], rules=[rule])
    assert (kept, dict(record.dropped)) == ([], {reason: 1})


def test_good_text_stays_as_it_is() -> None:
    kept, record = judge([GOOD, prose(1)])
    assert [document.text for document in kept] == [GOOD, prose(1)]
    assert (record.dropped, record.changed) == ({}, {})


def test_lines_that_c4_cuts_are_counted() -> None:
    lines = GOOD.splitlines()
    text = "\n".join(
        [*lines[:5], "Home | About", "Please enable Javascript.", "We use cookies here.", *lines[5:], "Ok."]
    )
    kept, record = judge([text], rules=["c4"])
    assert kept[0].text == GOOD
    assert record.changed == {
        "c4_line_no_terminal_punc": 1,
        "c4_line_javascript": 1,
        "c4_line_policy": 1,
        "c4_line_too_few_words": 1,
    }


def test_thresholds_are_those_of_the_job() -> None:
    assert judge(["Just a few of the words that count."], rules=["gopher_quality"])[0] == []
    few: dict[str, Any] = {"min_doc_words": 3}
    assert judge(["Just a few of the words that count."], rules=["gopher_quality"], gopher_quality=few)[0]
    assert judge([GOOD], rules=["c4"], c4={"min_num_sentences": 31})[1].dropped == {"c4_too_few_sentences": 1}
    assert judge([GOOD], rules=["gopher_repetition"], gopher_repetition={"top_n_grams": {2: 0.0}})[1].dropped


def test_words_are_those_of_the_documents_language() -> None:
    german = "Die Kinder gingen mit der Frau zum Fluss und warfen Steine ins Wasser, bis es dunkel wurde. " * 6
    assert judge([german], rules=["gopher_quality"])[1].dropped == {"gopher_quality_enough_stop_words": 1}
    assert judge([german], {"language": "de"}, rules=["gopher_quality"])[0]


def test_a_language_without_words_is_dropped_kept_or_refused() -> None:
    for language in ("xx-none", "bzj"):  # one that nobody knows, one whose model would be fetched
        kept, record = judge([GOOD], {"language": language}, without_words="drop")
        assert (kept, record.dropped) == ([], {"language_without_words": 1})
        assert judge([GOOD], {"language": language})[0], "a rule leaves languages alone that it cannot judge"
        with pytest.raises(DataError, match=rf"x#0 is in '{language}', whose words"):
            judge([GOOD], {"language": language}, without_words="stop")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rules": ["c4", "c4"]}, "each rule may come once"),
        ({"rules": []}, "at least 1"),
        ({"rules": ["gopher"]}, "gopher_quality"),
        ({"c4": {"min_sentences": 3}}, "min_sentences"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OperatorSettings.model_validate({"quality": given})


# -- the words ---------------------------------------------------------------------------------------------------------

SAID = """
Hello don't U.S. e.g. 3.14 10% $5 (a) [b] :) ;-) :-( and/or w/o C++ ... … . ! ? !? ?! ”Yes.” 'tis co-op x's * #tag @me
http://a.b/c?d=e me@x.org 1,000.50 12:30 8) :D :/ <3 °C. Mr. St. naïve 日本語 مرحبا 你好。 ¿Qué? «non» -- — –
"""
PIECES = [*SAID.split(), " ", "  ", "\n", "\n\n", "\t", "\xa0", "\u3000", " \n "]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=40).flatmap(
    lambda parts: st.sampled_from(["", " "]).map(lambda between: between.join(parts))
)


@pytest.mark.parametrize("language", ["en", "de", "es", "fr", "ru"])
def test_remembered_words_and_sentences_are_those_of_spacy(language: str) -> None:
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    from raylm.prep.operators.spacy_words import RememberingTokenizer, tokenizer_of

    ours, theirs = tokenizer_of(language), load_word_tokenizer(language)
    assert isinstance(ours, RememberingTokenizer)

    @settings(max_examples=150)
    @given(texts)
    @example(":) :) and/or :)")
    @example(") : ( 8 ) :")
    @example("One.Two. Three  Four.\n\nFive! six?Seven")
    def same(text: str) -> None:
        assert ours.word_tokenize(text) == theirs.word_tokenize(text)
        if text:
            assert ours.span_tokenize(text) == theirs.span_tokenize(text)
            assert ours.sent_tokenize(text) == theirs.sent_tokenize(text)

    same()


def test_words_are_forgotten_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from datatrove.utils.word_tokenizers import SpaCyTokenizer

    from raylm.prep.operators import spacy_words as words

    monkeypatch.setattr(words, "_REMEMBERED_CHARACTERS", 500)
    plain = SpaCyTokenizer("en")
    ours = words.RememberingTokenizer(SpaCyTokenizer("en"))
    for number in range(60):
        text = f"Word{number} and other{number} things{number}. Then:) {number}."
        assert ours.word_tokenize(text) == plain.word_tokenize(text)
        assert sum(map(len, ours._pieces)) <= 500


@needs_data("pretrain-text/c4_docs.jsonl.gz")
def test_real_pages_get_the_verdicts_of_datatrove_alone() -> None:
    from datatrove.data import Document as Judged
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    with gzip.open(C4, "rt") as file:
        pages = [json.loads(line)["text"] for line in file][::3]
    filters = [GopherQualityFilter(), GopherRepetitionFilter(), C4QualityFilter(), FineWebQualityFilter()]
    wanted = []
    for number, page in enumerate(pages):
        judged = Judged(text=page, id="")
        if all(one.filter(judged) is True for one in filters):
            wanted.append((f"x#{number}", judged.text))
    kept, record = judge(pages)
    assert [(document.id, document.text) for document in kept] == wanted
    assert sum(record.dropped.values()) == len(pages) - len(wanted) > 10
