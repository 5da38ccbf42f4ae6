"""Toxicity, the fairness report and counterfactual copies: counts that add up, and swaps that are right."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import content, documents, job, run

from raylm.config.prepare.steps import OperatorSettings
from raylm.errors import ConfigError, DataError
from raylm.prep.operators import OperatorContext, OperatorRecord, applied, operator_of
from raylm.prep.operators.counterfactual import swapped
from raylm.prep.operators.lexicon import named_terms, word_pairs
from raylm.prep.operators.toxicity import Toxicity, toxicity_operator
from raylm.prep.operators.words import words_of
from raylm.prep.report.fairness import EVERYONE, associations, fairness_lines, feelings
from raylm.prep.split import document_held_out
from raylm.records import Document
from raylm.storage import Connection, StoragePath
from raylm.testing.external import external_data, needs_data

BIAS = external_data("bias-toxicity")
needs_bias = needs_data("bias-toxicity")
TEXTS_FOLDER = external_data("pretrain-text")
PAIRS = {
    one: other
    for masculine, feminine in reversed([*word_pairs(None, "gender_pairs.txt", Connection())])
    for one, other in ((masculine, feminine), (feminine, masculine))
} | {"him": "her", "hers": "his", "her": "him", "his": "her"}


def step(settings: dict[str, Any], texts: list[str], **meta: Any) -> tuple[list[Document], OperatorRecord]:
    """What a step makes of these texts, and its record."""
    wanted = OperatorSettings.model_validate(settings)
    record = OperatorRecord(wanted.name)
    given = [Document(f"x#{number}", text, "x", meta) for number, text in enumerate(texts)]
    return list(applied(operator_of(wanted, Connection()), given, record)), record


# -- toxicity ------------------------------------------------------------------------------------------------------

GROUPS = named_terms(None, "groups.txt", Connection())


@pytest.mark.parametrize("term", sorted(GROUPS))
def test_naming_a_group_is_not_toxic(term: str) -> None:
    kept, _ = step({"toxicity": {"max_share": 0}}, [f"The {term} met the neighbours and talked about the new school."])
    assert [document.meta["toxicity"] for document in kept] == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        "Tests for HIV and breast cancer, of the uterus and the rectum, are free at the sexual health clinic.",
        "He was charged with the murder and rape of two women, and the Nazi past of his family came to light.",
        "The virgin forest is home to sniper rifles only in stupid films, screw it, god and hell, damn.",
    ],
)
def test_medicine_and_news_are_not_toxic(text: str) -> None:
    assert step({"toxicity": {"max_share": 0}}, [text])[1].kept == 1


def test_toxic_words_are_weighed_against_all_words() -> None:
    texts = ["you bitch", "you son of a bitch " + "and so on " * 40, "Nice to meet you.", "BULL SHIT, he said"]
    kept, record = step({"toxicity": {"action": "label"}}, texts)
    assert [document.meta["toxicity"] for document in kept] == [0.5, 0.008, 0.0, 0.25]
    assert record.tallies["toxicity"] == {"above 0.1": 2, "up to 0.01": 1, "none": 1}
    assert record.changed == {"toxic_words": 2}
    kept, record = step({"toxicity": {}}, texts)
    assert [document.id for document in kept] == ["x#1", "x#2"]
    assert record.dropped == {"toxic_words": 2}
    assert record.examples["toxic_words"][0] == "x#0 (toxicity 0.5): you bitch"


def test_a_list_of_ones_own_has_weights(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("# mine\nnasty\t2\nvery bad thing\n")
    settings = {"words": f"{tmp_path}/words.txt", "action": "label"}
    kept, _ = step({"toxicity": settings}, ["a nasty one here", "a Very bad, thing", "a bad thing bitch"])
    assert [document.meta["toxicity"] for document in kept] == [0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("written", "message"),
    [("fine\nnasty\tmuch\n", "words.txt, line 2: 'much' is no weight"), ("nasty\t-1\n", "line 1: .* weight above 0")],
)
def test_a_wrong_list_is_named_before_any_unit(tmp_path: Path, written: str, message: str) -> None:
    (tmp_path / "words.txt").write_text(written)
    (tmp_path / "a.txt").write_text("some text")
    sources = [{"glob": f"{tmp_path}/a.txt"}]
    for settings in ({"words": f"{tmp_path}/words.txt"}, {"words": f"{tmp_path}/none.txt"}):
        with pytest.raises(DataError, match=message if "words.txt" in settings["words"] else "no list of words"):
            run(job(tmp_path / "data", sources, steps=[{"toxicity": settings}]))
    assert not (tmp_path / "data/_work/pass-0").exists()


def test_a_models_score_counts_beside_the_words() -> None:
    wanted = Toxicity(max_probability=0.6)

    def scorer(texts: Sequence[str]) -> list[float]:
        return [0.71234567 * ("loathe" in text) for text in texts]

    record = OperatorRecord("toxicity")
    given = [Document(str(number), text, "x") for number, text in enumerate(["I loathe you", "I like you"])]
    kept = list(applied(toxicity_operator(wanted, OperatorContext(Connection()), scorer), given, record))
    assert [document.meta for document in kept] == [{"toxicity": 0.0, "toxicity_model": 0.0}]
    assert record.dropped == {"toxic_by_model": 1}
    assert record.tallies["toxicity_model"] == {"0.7": 1, "0.0": 1}
    assert record.examples["toxic_by_model"] == ["0 (toxicity 0.0, toxicity_model 0.7123): I loathe you"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of sequences with its tokenizer, as transformers saves one."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, "you", "fool", "friend"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "initializer_range": 1.0,
    }
    config = BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=16, id2label={0: "fine", 1: "toxic"}, **shape
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_model_in_a_folder_scores_all_parts_of_a_text(model_folder: Path) -> None:
    def scores(label: str, texts: list[str]) -> list[float]:
        settings = {"model": str(model_folder), "label": label, "action": "label"}
        return [float(document.meta["toxicity_model"]) for document in step({"toxicity": settings}, texts)[0]]

    short, long = "you fool", "friend " * 40 + "you fool"
    toxic, fine = scores("toxic", [short, long]), scores("FINE", [short, long])
    assert toxic[0] + fine[0] == pytest.approx(1, abs=1e-3)
    # Of a long text the worst part counts, whichever the label.
    assert toxic[1] + fine[1] >= 1 - 1e-3
    assert scores("toxic", ["friend " * 14]) != toxic[:1]


def test_documents_scored_together_get_the_scores_that_they_get_alone(model_folder: Path) -> None:
    settings = {"model": str(model_folder), "action": "label", "max_probability": 1}
    chance = random.Random(3)
    words = [*string.ascii_lowercase, "you", "fool", "friend"]
    texts = [" ".join(chance.choices(words, k=chance.randint(1, 60))) for _ in range(150)]
    together, record = step({"toxicity": settings}, texts)
    alone = [step({"toxicity": settings}, [text])[0][0] for text in texts]
    assert [document.meta for document in together] == [document.meta for document in alone]
    assert len({document.meta["toxicity_model"] for document in together}) > 10
    assert (record.documents, record.kept) == (150, 150)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "rude"}, "has no label 'rude'; it has fine, toxic"),
        ({"model": "/nowhere/at/all"}, "is no model that transformers can load"),
        ({"model": "s3://bucket/model"}, "is not on disk"),
    ],
)
def test_a_wrong_model_is_named(model_folder: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        step({"toxicity": {"model": str(model_folder), **change}}, ["x"])


@needs_bias
def test_toxicity_judges_hardly_any_pair_by_its_group() -> None:
    rows = crows()
    kept, _ = step(
        {"toxicity": {"action": "label"}}, [row[side] for row in rows for side in ("sent_more", "sent_less")]
    )
    scores = [document.meta["toxicity"] for document in kept]
    differ = sum(more != less for more, less in zip(scores[::2], scores[1::2], strict=True))
    assert (len(rows), differ) == (1206, 7), "the seven differ by a slur"


# -- the fairness report -------------------------------------------------------------------------------------------

TEXTS = [
    "She is a nurse. She said he was late.\nThe Jewish community praised the wonderful old man.",
    "He is a nurse and a chemist! His brother met two chemists. Nobody else.",
    "The terrible storm destroyed the black car and the Indian food. Asian Americans colour it; my favorite color.",
]


def test_groups_and_occupations_are_counted() -> None:
    kept, record = step({"fairness": {}}, TEXTS)
    assert [(document.text, dict(document.meta)) for document in kept] == [(text, {}) for text in TEXTS]
    tallies = record.tallies
    assert tallies["group_documents"] == {
        "gender/female": 1,
        "gender/male": 2,
        "religion/jewish": 1,
        "age/old": 1,
        "ethnicity/asian": 1,
    }
    assert tallies["group_mentions"] == {
        "gender/female": 2,
        "gender/male": 4,
        "religion/jewish": 1,
        "age/old": 1,
        "ethnicity/asian": 1,
    }
    assert tallies["occupation"] == {"nurse": 2, "chemist": 2}
    assert tallies["group_occupation"] == {
        "gender/female|nurse": 1,
        "gender/male|nurse": 1,
        "gender/male|chemist": 2,
    }
    assert tallies["language"] == {"unknown": 3}
    assert tallies["spelling"] == {"unmarked": 2, "mixed": 1}
    assert tallies["group_sentiment"]["religion/jewish|positive"] == 1
    assert tallies["group_sentiment"]["gender/female|neutral"] == 2
    assert record.dropped == record.changed == {}


def test_the_name_of_a_group_has_no_sentiment_of_its_own() -> None:
    # In the library's own lexicon some of these words are good or bad.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    lexicon = SentimentIntensityAnalyzer().lexicon
    tilted = sorted(term for term in GROUPS if any(word in lexicon for word in words_of(term)))
    assert "poor people" in tilted
    _, record = step({"fairness": {}}, [f"There were {term} in the room." for term in tilted])
    assert {key.rpartition("|")[2] for key in record.tallies["group_sentiment"]} == {"neutral"}


def test_counts_of_units_add_up() -> None:
    _, whole = step({"fairness": {"label": ["gender"]}}, TEXTS)
    total = OperatorRecord("fairness")
    for text in TEXTS:
        total.add(
            OperatorRecord.from_dict(
                json.loads(json.dumps(step({"fairness": {"label": ["gender"]}}, [text])[1].to_dict()))
            )
        )
    assert total.tallies == whole.tallies


def test_other_languages_count_as_languages_only() -> None:
    _, record = step({"fairness": {}}, ["She hat die nurse."], language="de")
    assert record.tallies == {"language": {"de": 1}}


def test_the_dominant_group_is_written_where_asked_for() -> None:
    texts = ["She and her mother met him.", "He met her.", "It rains.", "A Muslim met a Hindu and a Muslim."]
    kept, record = step({"fairness": {"label": ["gender", "religion"]}}, texts)
    assert [document.meta["dominant_gender"] for document in kept] == ["female", "mixed", "none", "none"]
    assert kept[3].meta["dominant_religion"] == "muslim"
    assert record.tallies["dominant_gender"] == {"female": 1, "mixed": 1, "none": 2}


def test_lists_of_ones_own_replace_the_packages(tmp_path: Path) -> None:
    (tmp_path / "groups.txt").write_text("taste/sweet: honey, brown sugar\ntaste/sour: lemon\n")
    (tmp_path / "jobs.txt").write_text("cook: cook, cooks\n")
    settings = {"groups": f"{tmp_path}/groups.txt", "occupations": f"{tmp_path}/jobs.txt", "label": ["taste"]}
    kept, record = step({"fairness": settings}, ["Cooks like brown sugar; she is a nurse."])
    assert kept[0].meta == {"dominant_taste": "sweet"}
    assert record.tallies["group_occupation"] == {"taste/sweet|cook": 1}


def test_wrong_lists_and_labels_are_named(tmp_path: Path) -> None:
    (tmp_path / "groups.txt").write_text("taste/sweet: honey\nsour\n")
    with pytest.raises(DataError, match=r"groups.txt, line 2: 'sour' names no terms"):
        step({"fairness": {"groups": f"{tmp_path}/groups.txt"}}, [])
    with pytest.raises(ConfigError, match=r"fairness.label names 'shoe', which is no property of the groups"):
        step({"fairness": {"label": ["shoe"]}}, [])


def test_findings_from_sums_made_by_hand() -> None:
    tallies = {
        "group_mentions": {"gender/female": 90, "gender/male": 100},
        "group_documents": {"gender/female": 9, "gender/male": 10},
        "group_sentiment": {
            "gender/female|positive": 30,
            "gender/female|negative": 10,
            "gender/female|neutral": 60,
            "gender/male|positive": 20,
            "gender/male|negative": 20,
            "gender/male|neutral": 10,
            "age/old|negative": 49,
            f"{EVERYONE}|positive": 200,
            f"{EVERYONE}|negative": 100,
        },
        "group_occupation": {
            "gender/female|nurse": 30,
            "gender/male|nurse": 10,
            "gender/male|chemist": 20,
            "gender/female|chemist": 4,
            "religion/sikh|nurse": 50,
        },
    }
    male, female = feelings(tallies)
    assert (male.group, male.sentences, male.positive, male.ratio, male.against_all) == ("gender/male", 50, 0.4, 1, 0.5)
    assert (female.ratio, female.against_all) == (3, 1.5)
    found = {(one.group, one.occupation): one for one in associations(tallies)}
    # 64 sentences name a gender and an occupation: 34 female, 40 nurses; 34 * 40 / 64 are expected together.
    assert found["gender/female", "nurse"].pmi == pytest.approx(math.log2(30 / (34 * 40 / 64)))
    assert found["gender/male", "chemist"].pmi == pytest.approx(math.log2(20 / (30 * 24 / 64)))
    assert ("gender/female", "chemist") not in found, "too few to say anything"
    assert found["religion/sikh", "nurse"].pmi == 0
    lines = "\n".join(fairness_lines(tallies))
    assert "| gender/male | 10 | 100 | 40% | 40% | 0.50 |" in lines
    assert "- gender/male and chemist: 20 times, 1.8 times as often" in lines


def test_findings_of_nothing() -> None:
    assert feelings({}) == associations({}) == []
    assert fairness_lines({}) == ["No document names a group of the lists."]


def test_the_card_shows_the_findings_and_sample_balances_by_them(tmp_path: Path) -> None:
    texts = [f"She told her mother about number {number}." for number in range(20)]
    texts += [f"He told his father about number {number}." for number in range(80)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    sources = [{"name": "a", "kind": "jsonl", "glob": f"{tmp_path}/a.jsonl"}]
    steps = [
        {"fairness": {"label": ["gender"]}},
        {"sample": {"by": "dominant_gender", "shares": {"female": 0.5, "male": 0.5}, "max_copies": 2}},
    ]
    manifest = run(job(tmp_path / "data", sources, steps=steps, held_out=0.0, unit_bytes=1000)).manifest
    assert manifest.steps[0]["tallies"]["dominant_gender"] == {"female": 20, "male": 80}
    counts = Counter(text.split()[0] for text in documents(StoragePath(str(tmp_path / "data"))))
    assert counts["She"] == 40
    assert 25 <= counts["He"] <= 55
    assert "| gender/male | 80 | 240 |" in (tmp_path / "data/card.md").read_text()


# -- counterfactual copies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (
            "He lost his keys, and HIS MOTHER found them for him.",
            "She lost her keys, and HER FATHER found them for her.",
        ),
        ("I saw her. Her coat was red; it was hers, she said.", "I saw him. His coat was red; it was his, he said."),
        ("Let her go to her room.", "Let him go to his room."),
        ("They asked her politely about her early work.", "They asked him politely about his early work."),
        ("We saw her walking to her wedding.", "We saw him walking to his wedding."),
        ("It was his.\nA friend of his is here.", "It was hers.\nA friend of hers is here."),
        ("Mrs. Smith's husband hurt himself.", "Mr. Smith's wife hurt herself."),
        ("He's the actor’s son.", "She's the actress’s daughter."),
        ("The sheriff then theorised about the humane heroism.", None),
    ],
)
def test_words_are_swapped_as_their_neighbours_say(text: str, other: str | None) -> None:
    assert swapped(text, PAIRS)[0] == (other or text)


@given(st.lists(st.sampled_from(["he", "She", "WOMAN", "brothers", "x", "tea", "was", "1990", ", ", ".\n", "\u2014"])))
def test_a_swap_and_back_is_the_text(words: list[str]) -> None:
    text = " ".join(words)
    there, count = swapped(text, PAIRS)
    assert swapped(there, PAIRS) == (text, count)
    assert count == sum(word.lower() in ("he", "she", "woman", "brothers") for word in words)


def test_a_share_of_the_documents_gets_a_copy() -> None:
    texts = [f"He saw {number} birds." for number in range(400)] + ["Birds."] * 7
    kept, record = step({"counterfactual": {"share": 0.25}}, texts)
    copies = [document for document in kept if document.meta.get("counterfactual")]
    assert len(kept) == 407 + len(copies)
    assert 70 < len(copies) < 130
    assert all(copy.text.startswith("She saw") and copy.id.endswith("+swapped") for copy in copies)
    assert record.tallies["counterfactual"]["nothing to swap"] == 7
    assert record.changed == {"swapped_word": len(copies)}
    again, _ = step({"counterfactual": {"share": 0.25}}, texts)
    assert again == kept
    other, _ = step({"counterfactual": {"share": 0.25, "seed": 1}}, texts)
    assert other != kept
    replaced, _ = step({"counterfactual": {"share": 1, "replace": True}}, texts)
    assert len(replaced) == 407
    assert not any(document.text.startswith("He") for document in replaced)


def test_a_copy_is_held_out_with_its_original() -> None:
    kept, _ = step({"counterfactual": {"share": 1}}, [f"He saw {number} birds." for number in range(200)])
    sides = [document_held_out(document, 0.5) for document in kept]
    assert sides[::2] == sides[1::2]
    assert 60 < sum(sides[::2]) < 140


def test_other_languages_pass_untouched() -> None:
    text = "Man sieht her und his."
    kept, record = step({"counterfactual": {"share": 1}}, [text], language="de")
    assert [document.text for document in kept] == [text]
    assert record.tallies["counterfactual"] == {"other language": 1}
    assert len(step({"counterfactual": {"share": 1}}, [text], language="en-GB")[0]) == 2


def test_names_are_swapped_from_a_list(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("John\tMary\nWill  Anne\n")
    kept, _ = step({"counterfactual": {"share": 1, "names": f"{tmp_path}/names.txt"}}, ["Mary lost her hat. John ran."])
    assert kept[1].text == "John lost his hat. Mary ran."
    (tmp_path / "names.txt").write_text("John Mary\nAnne\n")
    with pytest.raises(DataError, match=r"names.txt, line 2: 'Anne' is no pair of words"):
        step({"counterfactual": {"names": f"{tmp_path}/names.txt", "seed": 2}}, [])


@pytest.mark.parametrize("unit_bytes", [400, 100_000])
def test_copies_go_through_a_preparation(tmp_path: Path, unit_bytes: int) -> None:
    lines = (json.dumps({"text": f"He has {number} sisters."}) for number in range(60))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    sources = [{"name": "a", "kind": "jsonl", "glob": f"{tmp_path}/a.jsonl"}]
    steps: list[Any] = [{"counterfactual": {"share": 1}}, "exact_duplicates"]
    for name in ("one", "two"):
        run(job(tmp_path / name, sources, steps=steps, held_out=0.3, unit_bytes=unit_bytes))
    output = StoragePath(str(tmp_path / "one"))
    for side in ("train", "held_out"):
        words = Counter(text.split()[0] for text in documents(output, side))
        assert words["He"] == words["She"] > 0
    assert content(output) == content(StoragePath(str(tmp_path / "two")))


def crows() -> list[dict[str, str]]:
    return list(csv.DictReader(gzip.decompress((BIAS / "crows_pairs.csv.gz").read_bytes()).decode().splitlines()))


@needs_bias
def test_winogender_sentences_become_their_partners() -> None:
    lines = (BIAS / "winogender.tsv").read_text().splitlines()[1:]
    sentences = dict(line.split("\t") for line in lines)
    for one, other in (("male", "female"), ("female", "male")):
        names = [name for name in sentences if f".{one}." in name]
        exact = sum(
            swapped(sentences[name], PAIRS)[0] == sentences[name.replace(f".{one}.", f".{other}.")] for name in names
        )
        assert exact == len(names) == 192


@needs_bias
def test_crows_pairs_of_gender_become_each_other_where_only_gendered_words_differ() -> None:
    pairs = [(row["sent_more"], row["sent_less"]) for row in crows() if row["bias_type"] == "gender"]
    exact = sum(swapped(one, PAIRS)[0] == other or swapped(other, PAIRS)[0] == one for one, other in pairs)
    # Most others differ in a name, or in one of several gendered words.
    assert (len(pairs), exact) == (209, 62)


@needs_data("pretrain-text")
def test_most_of_his_and_him_come_back_from_her_in_real_text() -> None:
    text = gzip.decompress((TEXTS_FOLDER / "wikipedia_articles.txt.gz").read_bytes()).decode()
    back = swapped(swapped(text, PAIRS)[0], PAIRS)[0]
    words, again = re.findall(r"[^\W\d_]+", text), re.findall(r"[^\W\d_]+", back)
    both = [(one.lower(), other.lower()) for one, other in zip(words, again, strict=True)]
    pronouns = [one == other for one, other in both if one in ("his", "him")]
    assert len(pronouns) > 700
    assert sum(pronouns) / len(pronouns) > 0.97
