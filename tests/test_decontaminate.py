"""Decontamination: what evaluation sets hold too is found, whatever its case and punctuation, and nothing else."""

from __future__ import annotations

import gzip
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_prepare import job, run

from raylm.config.prepare.steps import OperatorSettings
from raylm.errors import DataError
from raylm.prep.operators import OperatorRecord, applied, operator_of
from raylm.prep.operators.build import fit
from raylm.prep.operators.decontaminate.evaluation_sets import EvaluationSet, records
from raylm.prep.operators.decontaminate.ngrams import NgramHasher, NgramIndex, ngrams_of_records
from raylm.prep.operators.decontaminate.operator import without
from raylm.records import Document
from raylm.storage import Connection, StoragePath
from raylm.testing.external import external_data, needs_data

XQUAD = external_data("qa/xquad.en.json.gz")
QUESTION = "Which of the seven bridges of Königsberg did the old mathematician cross twice on his Sunday walk in 1736?"
ANSWER = "None, because he never went for a walk without his umbrella."
LISTED = """
river stone house garden water people under small large old new said morning evening because before after road town
school letter music number three window winter summer tall green quiet market bread paper engine cloud
"""
WORDS = LISTED.split()


def prose(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words)).capitalize() + "."


def decontaminate_operator(
    folder: Path, lines: list[Any], texts: list[str], **settings: Any
) -> tuple[list[Document], OperatorRecord]:
    """What the step leaves of these texts when a set has these lines (texts, or JSON values), and its record."""
    written = [line if isinstance(line, dict) else {"text": line} for line in lines]
    (folder / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    one = {"name": "quiz", "glob": str(folder / "set.jsonl"), **settings.pop("set", {})}
    wanted = OperatorSettings.model_validate({"decontaminate": {"sets": [one], **settings}})
    fit(wanted, StoragePath(str(folder / "fitted")), Connection())
    record = OperatorRecord("decontaminate")
    given = [Document(f"x#{number}", text, "x", {}) for number, text in enumerate(texts)]
    return list(applied(operator_of(wanted, Connection(), StoragePath(str(folder / "fitted"))), given, record)), record


@pytest.mark.parametrize(
    "copy",
    [
        QUESTION,
        QUESTION.upper(),
        QUESTION.replace(" ", "\n"),
        QUESTION.replace("ö", "o\u0308"),
        QUESTION.replace(" of ", ", of – ").replace("1736", "1835"),
        " ".join(QUESTION.split()[2:16]),
    ],
)
def test_a_document_with_a_run_of_an_evaluation_text_is_dropped(tmp_path: Path, copy: str) -> None:
    texts = [prose(1), f"{prose(2)} {copy} {prose(3)}", prose(4)]
    kept, record = decontaminate_operator(tmp_path, [QUESTION, prose(9)], texts)
    assert [document.id for document in kept] == ["x#0", "x#2"]
    assert record.dropped == {"contaminated_quiz": 1}
    assert record.tallies["contaminated_by"] == {"quiz": 1}
    assert re.match(r"x#1 \(\d+ runs of quiz\): ", record.examples["contaminated_quiz"][0])


def test_fewer_words_than_a_run_are_no_contamination(tmp_path: Path) -> None:
    twelve = " ".join(QUESTION.split()[:12])
    kept, _ = decontaminate_operator(tmp_path, [QUESTION], [f"{prose(1)} {twelve} {prose(2)}"])
    assert len(kept) == 1
    kept, _ = decontaminate_operator(tmp_path, [QUESTION], [f"{prose(1)} {twelve} {prose(2)}"], ngram=12)
    assert kept == []
    copied = " ".join(QUESTION.split()[:14])
    kept, _ = decontaminate_operator(tmp_path, [QUESTION], [copied], min_matches=3)
    assert len(kept) == 1, "14 words are two runs of 13"


def test_short_evaluation_texts_are_looked_for_whole(tmp_path: Path) -> None:
    nine = "who lost the only key to the quiet archive"
    texts = [f"{prose(1)} {nine}? {prose(2)}", f"{prose(1)} {nine.removesuffix(' archive')}. {prose(2)}"]
    kept, _ = decontaminate_operator(tmp_path, [nine, QUESTION], texts)
    assert [document.id for document in kept] == ["x#1"]
    assert len(decontaminate_operator(tmp_path, [nine, QUESTION], texts, min_words=10)[0]) == 2


def test_a_run_goes_from_the_question_into_its_answer(tmp_path: Path) -> None:
    answer = "I will surely be back home again before noon."
    record = {"items": [{"q": "What did the old man say when he left?", "a": answer}]}
    text = "say when he left? I will surely be gone. And so it was."
    settings: dict[str, Any] = {"set": {"columns": ["q", "a"]}, "ngram": 8}
    assert decontaminate_operator(tmp_path, [record], [text], **settings)[0] == []
    assert len(decontaminate_operator(tmp_path, [record], [text], set={"columns": ["a"]}, ngram=8)[0]) == 1


def test_tables_of_numbers_are_not_alike(tmp_path: Path) -> None:
    chance = random.Random(0)
    rows = [" ".join(str(chance.randrange(1000)) for _ in range(40)) for _ in range(2)]
    kept, _ = decontaminate_operator(tmp_path, [rows[0]], rows)
    assert [document.id for document in kept] == ["x#1"]


def test_sentences_around_may_be_cut_out(tmp_path: Path) -> None:
    text = f"{prose(1)} {prose(2)}\n{QUESTION} {prose(3)}\n{prose(4)}"
    kept, record = decontaminate_operator(tmp_path, [QUESTION], [text, f"{QUESTION} Yes."], action="cut")
    assert [document.text for document in kept] == [f"{prose(1)} {prose(2)}\n{prose(3)}\n{prose(4)}"]
    assert record.changed == {"cut_quiz": 1}
    assert record.dropped == {"contaminated_quiz": 1}, "too little was left of the second"


def test_documents_may_only_be_labelled(tmp_path: Path) -> None:
    kept, record = decontaminate_operator(tmp_path, [QUESTION], [prose(1), QUESTION], action="label")
    assert [document.meta for document in kept] == [{}, {"contaminated_by": "quiz"}]
    assert record.dropped == {}


INSTITUTE = "中国科学院计算技术研究所"
CHINESE = "春天的时候委员会在星期二开会讨论了新桥的计划经过长时间的辩论大家都同意了"
JAPANESE = "委員会は火曜日に新しい橋の計画について話し合い長い議論の末に全員が賛成しました"
THAI = "คณะกรรมการประชุมเมื่อวันอังคารเพื่อหารือเกี่ยวกับแผนสะพานใหม่และหลังจากถกเถียงกันนานทุกคนก็เห็นด้วย"
KHMER = "គណៈកម្មាធិការបានជួបប្រជុំគ្នានៅថ្ងៃអង្គារដើម្បីពិភាក្សាអំពីផែនការស្ពានថ្មីហើយបន្ទាប់ពីការជជែក"
TIBETAN = "བོད་ཀྱི་སྐད་ཡིག་ནི་ལོ་རྒྱུས་རིང་པོ་ཡོད་པའི་སྐད་ཡིག་ཅིག་ཡིན་ཞིང་མི་མང་པོས་བེད་སྤྱོད་བྱེད་ཀྱི་ཡོད་པ་རེད་"


@pytest.mark.parametrize(
    "name",
    [
        f"位于北京的{INSTITUTE}",
        "国立研究開発法人産業技術総合研究所",
        "กระทรวงศึกษาธิการแห่งประเทศไทย",
    ],
    ids=["Chinese", "Japanese", "Thai"],
)
@pytest.mark.parametrize("around", ["", CHINESE])
def test_the_name_of_an_institute_is_no_contamination(tmp_path: Path, name: str, around: str) -> None:
    (tmp_path / "one").mkdir()
    question = f"{around[:20]}{name}{THAI}？{CHINESE}"
    kept, record = decontaminate_operator(tmp_path / "one", [question], [f"他在{name}工作了很多年。 {prose(1)}"])
    assert (len(kept), record.dropped) == (1, {})


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, THAI, KHMER, TIBETAN])
def test_a_passage_without_spaces_is_found_wherever_it_stands(tmp_path: Path, text: str) -> None:
    question = f"{QUESTION} {text}"
    for number, copy in enumerate((text, f"前{text}後", f"x {text} y", f"ก{text}", text.replace("的", "的，"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        kept, record = decontaminate_operator(folder, [question], [copy, prose(1)])
        assert len(kept) == 1, record.dropped


def test_a_part_of_a_passage_without_spaces_is_found_from_26_characters_on(tmp_path: Path) -> None:
    copies = [f"甲{CHINESE[5 : 5 + length]}乙" for length in (25, 26)]
    kept, _ = decontaminate_operator(tmp_path, [CHINESE], copies)
    assert [document.text for document in kept] == copies[:1]


def test_a_short_question_without_spaces_is_looked_for_whole(tmp_path: Path) -> None:
    short, shorter = CHINESE[:16], JAPANESE[:15]
    texts = [f"问{short}答", f"问{short[:-1]}答", f"問{shorter}答"]
    kept, _ = decontaminate_operator(tmp_path, [short, shorter, QUESTION], texts)
    assert [document.text for document in kept] == texts[1:]


@pytest.mark.parametrize("text", [CHINESE, THAI])
def test_what_has_no_spaces_is_cut_out_with_its_sentence(tmp_path: Path, text: str) -> None:
    given = f"{prose(1, 80)}\n{text}\n{prose(2, 80)}"
    (kept,), _ = decontaminate_operator(tmp_path, [text], [given], action="cut")
    assert kept.text == f"{prose(1, 80)}\n{prose(2, 80)}"


@pytest.mark.parametrize("kind", ["json", "jsonl", "text"])
@pytest.mark.parametrize("begins", ["", "\n"], ids=["", "blank"])
def test_a_byte_order_mark_is_no_part_of_a_set(tmp_path: Path, kind: str, begins: str) -> None:
    path = tmp_path / f"set.{kind}"
    lines = {"text": QUESTION, "jsonl": json.dumps({"text": QUESTION}), "json": json.dumps([{"text": QUESTION}])}
    path.write_bytes(f"\ufeff{begins}{lines[kind]}\n".encode())
    found = list(records(EvaluationSet(name="quiz", glob=str(path), kind=kind), Connection()))
    assert found == [[QUESTION]]


@pytest.mark.parametrize("kind", ["json", "parquet", "text", "jsonl.gz"])
def test_sets_are_read_as_they_are_found(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / f"other.{kind}"
    if kind == "json":
        path.write_text(json.dumps({"data": [{"text": prose(5)}, {"inner": {"text": [QUESTION]}}]}))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": [prose(5), QUESTION]}), path)
    elif kind == "text":
        path.write_text(f"{prose(5)}\n{QUESTION}\n")
    else:
        path.write_bytes(gzip.compress(f"{json.dumps({'text': QUESTION})}\n".encode()))
    one = {"glob": str(path), "kind": kind.removesuffix(".gz")}
    kept, _ = decontaminate_operator(tmp_path, [prose(8)], [QUESTION, prose(1)], set=one)
    assert [document.id for document in kept] == ["x#1"]


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        (None, {}, r"'quiz': no file matches .*bad\.jsonl"),
        ('{"text": "a"}\n{"text": ', {}, r"bad\.jsonl line 2 is not JSON"),
        ('{"body": "some text"}\n', {}, r"holds no text under text; there is: body"),
        ('{"text": "too short"}\n', {}, r"has 8 words or more"),
        ('{"q": "a text", "b": 1}\n', {"columns": ["q", "a"]}, r"has nothing under a; there is: b, q"),
        (b'{"text": "\xff"}', {}, r"line 1 is not UTF-8"),
        (b"\xff\xfe{}", {}, r"bad\.jsonl is no UTF-8 text but UTF-16"),
        ("no table", {"kind": "parquet"}, r"cannot be read as Parquet"),
    ],
)
def test_a_set_that_cannot_be_used_is_named(
    tmp_path: Path, content: str | bytes | None, given: dict[str, Any], message: str
) -> None:
    if content is not None:
        (tmp_path / "bad.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        decontaminate_operator(tmp_path, [], [], set={"glob": str(tmp_path / "bad.jsonl"), **given})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sets": []}, "at least 1"),
        ({"sets": [{"name": "a", "glob": "x"}, {"name": "a", "glob": "y"}]}, "names of evaluation sets must differ"),
        ({"sets": [{"name": "a b", "glob": "x"}]}, "name"),
        ({}, "sets"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OperatorSettings.model_validate({"decontaminate": settings})


words_ = st.lists(st.sampled_from(WORDS[:6]), max_size=40)


@given(st.lists(words_, min_size=1, max_size=4), words_, st.integers(2, 6))
def test_as_many_runs_are_found_as_a_plain_search_finds(sets: list[list[str]], text: list[str], length: int) -> None:
    def runs_of(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}

    hasher = NgramHasher()
    held = ngrams_of_records([[" ".join(words)] for words in sets], hasher, words=length, shortest=length)
    wanted = len(set().union(*map(runs_of, sets)) & runs_of(text))
    if len(held.runs):
        found = NgramIndex({"a": held}, length).shared(hasher.read(" ".join(text)))
        assert sum(one.runs for one in found) == wanted
    else:
        assert wanted == 0


@pytest.mark.parametrize(
    ("run", "left"),
    [
        ((0, 1), "Three four!\nFive six.  Seven\n\nEight"),
        ((2, 2), "One two.\nFive six.  Seven\n\nEight"),
        ((3, 2), "One two.\nSeven\n\nEight"),
        ((5, 2), "One two. Three four!\n\nEight"),
        ((7, 1), "One two. Three four!\nFive six.  Seven"),
    ],
)
def test_cutting_leaves_the_rest_as_it_is(run: tuple[int, int], left: str) -> None:
    assert without("One two. Three four!\nFive six.  Seven\n\nEight", [run]) == left


@pytest.mark.parametrize("space", [" ", "\n", "\t", "\n "])
def test_long_white_space_takes_no_squared_time(space: str) -> None:
    began = time.monotonic()
    without(f"One two.{space * 200_000}three four. five", [(2, 1)])
    assert time.monotonic() - began < 5


def test_the_rule_counts_what_goes_into_the_shards(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(json.dumps({"text": QUESTION}) + "\n")
    (tmp_path / "a.txt").write_text("\n".join([*(prose(seed) for seed in range(19)), QUESTION]) + "\n")
    source = {"name": "a", "glob": f"{tmp_path}/a.txt", "document": "line"}
    one = {"name": "quiz", "glob": str(tmp_path / "set.jsonl")}
    none: dict[str, Any] = {"held_out": 0.0, "require": {"contamination": {"max": 0}}}
    label = [{"decontaminate": {"sets": [one], "action": "label"}}]
    with pytest.raises(DataError, match=r"contamination is 0\.05, required at most 0"):
        run(job(tmp_path / "labelled", [source], steps=label, **none))
    assert not (tmp_path / "labelled" / "manifest.json").exists()
    done = run(job(tmp_path / "dropped", [source], steps=[{"decontaminate": {"sets": [one]}}], **none))
    assert done.documents == 19
    card = (tmp_path / "dropped" / "card.md").read_text()
    assert "contamination is 0, required at most 0" in card
    with pytest.raises(ValidationError, match=r"require\.contamination needs the step decontaminate"):
        job(tmp_path / "none", [source], **none)


@needs_data("qa/xquad.en.json.gz")
def test_real_questions_and_passages_are_found(tmp_path: Path) -> None:
    with gzip.open(XQUAD) as file:
        articles = json.load(file)["data"]
    passages = [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]
    pages = [f"{prose(number)} {passage} {prose(-number - 1)}" for number, passage in enumerate(passages[:40])]
    one = {"name": "xquad", "glob": str(XQUAD), "kind": "json", "columns": ["context", "question"]}
    kept, record = decontaminate_operator(tmp_path, [], [*pages, *(prose(1000 + seed) for seed in range(40))], set=one)
    assert [document.id for document in kept] == [f"x#{number}" for number in range(40, 80)]
    assert record.dropped == {"contaminated_xquad": 40}
