"""The trained quality classifier: one model from the same examples, kept with the data that it shaped."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_prepare import content, documents, job, run

from raylm.config.load import load_job
from raylm.errors import ConfigError, DataError
from raylm.prep.operators import OperatorContext, OperatorRecord, applied
from raylm.prep.operators.classifier import (
    MODEL_NAME,
    Classifier,
    Model,
    area_under_curve,
    classifier_operator,
    features,
    fit_classifier,
    train,
)
from raylm.records import Document
from raylm.storage import Connection, StoragePath
from raylm.testing.external import external_data, needs_data

TEXTS_FOLDER = external_data("pretrain-text")
needs_texts = needs_data("pretrain-text")

GOOD = re.findall(
    r"\w+", "the committee found that evidence for this theory was collected over years of patient observation"
)
BAD = re.findall(
    r"\w+", "click here buy now cheap offer free shipping best price deal sale limited order today discount"
)


def text(words: list[str], number: int) -> str:
    chance = random.Random(f"{words[0]}{number}")
    return " ".join(chance.choice([*words, "and", "of", "with"]) for _ in range(20))


def examples(folder: Path, count: int = 60) -> dict[str, str]:
    """Files of good and bad examples, as the settings name them."""
    (folder / "good.txt").write_text("\n".join(text(GOOD, number) for number in range(count)))
    lines = (json.dumps({"text": text(BAD, number)}) for number in range(count))
    (folder / "bad.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    return {"good": f"{folder}/good.txt", "bad": f"{folder}/*.jsonl.gz"}


def fresh(count: int = 40) -> list[Document]:
    """Documents that are no examples, good and bad in turn."""
    return [Document(str(n), text(GOOD if n % 2 == 0 else BAD, 1000 + n), "x", {"url": "u"}) for n in range(count)]


def context(folder: Path) -> OperatorContext:
    return OperatorContext(Connection(), StoragePath(str(folder)))


def fitted(folder: Path, **settings: Any) -> Classifier:
    folder.mkdir(exist_ok=True)
    wanted = Classifier.model_validate({**examples(folder), "buckets": 4096, **settings})
    fit_classifier(wanted, context(folder / "fitted"))
    return wanted


def test_good_scores_above_bad_and_bad_is_dropped(tmp_path: Path) -> None:
    settings = fitted(tmp_path, threshold=0.5)
    record = OperatorRecord("classifier")
    kept = list(applied(classifier_operator(settings, context(tmp_path / "fitted")), fresh(), record))
    assert [document.id for document in kept] == [str(number) for number in range(0, 40, 2)]
    assert all(0.5 <= float(document.meta["quality"]) <= 1 and document.meta["url"] == "u" for document in kept)
    assert record.dropped == {"low_quality": 20}
    assert record.tallies["quality"].total() == 40
    assert record.examples["low_quality"][0].startswith("1 (quality 0.0")


def test_without_a_threshold_it_only_scores(tmp_path: Path) -> None:
    settings = fitted(tmp_path, key="likeness")
    kept = list(
        applied(classifier_operator(settings, context(tmp_path / "fitted")), fresh(), OperatorRecord("classifier"))
    )
    assert len(kept) == 40
    assert {"likeness", "url"} == kept[0].meta.keys()


def test_pareto_keeps_some_of_the_bad_as_the_draw_says(tmp_path: Path) -> None:
    settings = Classifier(model="x", pareto=9)
    (tmp_path / MODEL_NAME).write_bytes(constant(-1.0986).to_bytes())
    step = classifier_operator(settings, context(tmp_path))
    many = [Document(f"d{number}", "same", "x") for number in range(20_000)]
    kept = [document.id for document in applied(step, many, OperatorRecord("classifier"))]
    # A score of 0.25: the draw must exceed 0.75, which has the chance (1 + 0.75) ** -9.
    assert len(kept) / 20_000 == pytest.approx(1.75**-9, abs=0.002)
    assert kept == [document.id for document in applied(step, many[::-1], OperatorRecord("classifier"))][::-1]
    other = classifier_operator(Classifier(model="x", pareto=9, seed=1), context(tmp_path))
    assert kept != [document.id for document in applied(other, many, OperatorRecord("classifier"))]


def constant(bias: float) -> Model:
    import numpy as np

    return Model(np.zeros(1024, dtype=np.int32), round(bias * 65536), 1, {})


def test_the_model_does_not_depend_on_the_order_of_examples_nor_on_the_process(tmp_path: Path) -> None:
    fitted(tmp_path / "one")
    there = (tmp_path / "one/fitted" / MODEL_NAME).read_bytes()
    settings = Classifier(model="x", buckets=4096)
    good, bad = ([text(words, number) for number in range(60)] for words in (GOOD, BAD))
    assert train(good[::-1], bad[::-1], settings).to_bytes() == there
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\nfrom test_classifier import fitted\nfitted(Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "two"), str(Path(__file__).parent)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert (tmp_path / "two/fitted" / MODEL_NAME).read_bytes() == there


def test_the_file_says_how_the_model_was_made(tmp_path: Path) -> None:
    fitted(tmp_path)
    model = Model.from_bytes((tmp_path / "fitted" / MODEL_NAME).read_bytes(), "x")
    assert model.facts == {"good": 60, "bad": 60, "epochs": 5, "held_out": 12, "held_out_auc": 1.0}


def test_runs_of_words_are_features() -> None:
    assert set(features("a b c", 1, 1 << 20)) < set(features("a b c", 2, 1 << 20)) < set(features("a b c", 3, 1 << 20))
    assert [len(features("a b c a b", ngrams, 1 << 20)) for ngrams in (1, 2, 3)] == [3, 6, 9]
    assert set(features("a b", 2, 1 << 20)) != set(features("b a", 2, 1 << 20))
    assert len(features("", 2, 1024)) == 0
    assert constant(0).score("") == 0.5


def test_area_under_curve() -> None:
    assert area_under_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75
    assert area_under_curve([1.0, 1.0], [0, 1]) == 0.5
    assert area_under_curve([1.0], [1]) is None


def corpus(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    (folder / "web.jsonl").write_text("\n".join(json.dumps({"text": document.text}) for document in fresh(200)))
    return [{"name": "web", "kind": "jsonl", "glob": f"{folder}/web.jsonl"}]


@pytest.mark.parametrize("unit_bytes", [2000, 1_000_000])
def test_a_preparation_trains_once_and_keeps_the_model(tmp_path: Path, unit_bytes: int) -> None:
    sources = corpus(tmp_path / "raw")
    steps = ["exact_duplicates", {"classifier": {**examples(tmp_path), "buckets": 4096, "threshold": 0.5}}]
    report = run(job(tmp_path / "data", sources, steps=steps, held_out=0.0, unit_bytes=unit_bytes))
    assert sorted(documents(StoragePath(str(tmp_path / "data")))) == sorted(
        document.text for document in fresh(200)[::2]
    )
    assert report.manifest.steps[1]["dropped"] == {"low_quality": 100}
    model = tmp_path / "data/fitted/01-classifier" / MODEL_NAME
    assert Model.from_bytes(model.read_bytes(), "x").facts["good"] == 60
    # The model that one job trained gives the next job the same.
    steps[1] = {"classifier": {"model": str(model), "threshold": 0.5}}
    run(job(tmp_path / "again", sources, steps=steps, held_out=0.0, unit_bytes=unit_bytes))
    assert (tmp_path / "again/fitted/01-classifier" / MODEL_NAME).read_bytes() == model.read_bytes()
    shards = [content(StoragePath(str(tmp_path / name / "train"))) for name in ("data", "again")]
    assert shards[0] == shards[1]


def test_an_attempt_after_a_kill_goes_on_with_the_model_that_is_there(tmp_path: Path) -> None:
    sources = corpus(tmp_path / "raw")
    steps = [{"classifier": {**examples(tmp_path), "buckets": 4096, "threshold": 0.5}}]
    wanted = job(tmp_path / "data", sources, steps=steps, held_out=0.0)

    def stop_at_tokenizer(progress: Any) -> None:
        if progress.phase == "training the tokenizer":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(wanted, progress=stop_at_tokenizer)
    (tmp_path / "good.txt").write_text("other")
    run(wanted)
    assert len(documents(StoragePath(str(tmp_path / "data")))) == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"good": "{}/none*.txt"}, "no file matches"),
        ({"document": "file"}, "good.txt holds 1 good examples, at least 10 are needed"),
        ({"column": "body"}, "body"),
        ({"good": [], "bad": [], "model": "{}/bad.jsonl.gz"}, "bad.jsonl.gz is no classifier of raylm"),
        ({"good": [], "bad": [], "model": "{}/none"}, "there is no model at"),
    ],
)
def test_wrong_files_are_named_before_any_unit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    settings = {**examples(tmp_path), **change}
    settings = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in settings.items()}
    with pytest.raises(DataError, match=message):
        run(job(tmp_path / "data", corpus(tmp_path / "raw"), steps=[{"classifier": settings}]))
    assert not (tmp_path / "data/_work/pass-0").exists()


@pytest.mark.parametrize("settings", ["{}", "{good: a}", "{good: a, bad: b, model: c}"])
def test_examples_and_model_exclude_each_other(tmp_path: Path, settings: str) -> None:
    (tmp_path / "job.yaml").write_text(f"prepare:\n  steps:\n  - classifier: {settings}\n")
    with pytest.raises(ConfigError, match="give good and bad examples, or a model"):
        load_job(str(tmp_path / "job.yaml"))


@needs_texts
def test_wiki_articles_are_told_from_web_pages_that_were_not_seen() -> None:
    wiki = gzip.decompress((TEXTS_FOLDER / "wikipedia_articles.txt.gz").read_bytes()).decode().splitlines()
    lines = gzip.decompress((TEXTS_FOLDER / "c4_docs.jsonl.gz").read_bytes()).decode().splitlines()
    sides = [[one for one in wiki if one.strip()], [json.loads(line)["text"] for line in lines]]
    (good, unseen_good), (bad, unseen_bad) = (
        ([part for one in side[:cut] for part in parts(one)], [part for one in side[cut:] for part in parts(one)])
        for side, cut in zip(sides, (16, 168), strict=True)
    )
    model = train(good, bad, Classifier(model="x"))
    unseen = [*unseen_good, *unseen_bad]
    labels = [1] * len(unseen_good) + [0] * len(unseen_bad)
    area = area_under_curve([model.score(one) for one in unseen], labels)
    assert area is not None
    assert area > 0.94


def parts(one: str) -> list[str]:
    words = one.split()
    return [" ".join(words[begin : begin + 100]) for begin in range(0, len(words) - 50, 100)]
