"""Steps of preparation: what they drop is counted, and nothing depends on units, tasks or kills."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from test_prepare import content, documents, job, prepare_until_killed, run

from raylm.config.job import Job
from raylm.config.load import load_job
from raylm.deploy.local import LocalCluster, NodeShape
from raylm.errors import ConfigError, DataError
from raylm.prep.checks.measures import Measures, summed
from raylm.prep.operators import operator_rows
from raylm.prep.operators.sample import rates_of
from raylm.prep.prepare import prepare
from raylm.records import Document
from raylm.storage import StoragePath

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "wizards", "brew", "potions"]


STAGED: list[Any] = [{"exact_duplicates": {"part": "line"}}, {"sample": {"rate": 0.9}}, "exact_duplicates"]


def sentence(chance: random.Random) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(chance.randint(12, 20)))


def corpus(folder: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Two sources of JSON lines: 200 texts, each of the second source's also in the first, and a footer everywhere."""
    chance = random.Random(seed)
    texts = [f"{sentence(chance)}\n{sentence(chance)}" for _ in range(150)]
    web = [*texts[:100], *texts[40:60], *texts[100:]]
    books = texts[50:80]
    for name, held in (("web", web), ("books", books)):
        lines = [json.dumps({"text": f"{text}\nAll rights reserved by nobody in particular."}) for text in held]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return [{"name": name, "kind": "jsonl", "glob": f"{folder}/{name}.jsonl"} for name in ("web", "books")]


def stepped(folder: Path, steps: list[Any], output: str = "data", **settings: Any) -> Job:
    return job(folder / output, corpus(folder), steps=steps, held_out=0.0, **settings)


@pytest.mark.parametrize("unit_bytes", [2000, 100_000])
def test_the_first_of_equal_documents_stays(tmp_path: Path, unit_bytes: int) -> None:
    report = run(stepped(tmp_path, ["exact_duplicates"], unit_bytes=unit_bytes))
    texts = documents(StoragePath(str(tmp_path / "data")))
    assert len(texts) == len(set(texts)) == report.documents == 150
    step, tokenized = report.manifest.steps
    assert tokenized["name"] == "tokenize"
    assert sum(tokenized["tallies"]["tokens of a document, from"].values()) == 150
    assert (step["documents"], step["kept"], step["dropped"]) == (200, 150, {"duplicate": 50})
    told, _ = json.loads((tmp_path / "data/skipped.json").read_text())["steps"]
    assert told["dropped"]["duplicate"]["count"] == 50
    assert len(told["dropped"]["duplicate"]["examples"]) == 5
    assert "web.jsonl#" in told["dropped"]["duplicate"]["examples"][0]


def test_repeated_lines_are_cut_out(tmp_path: Path) -> None:
    run(stepped(tmp_path, [{"exact_duplicates": {"part": "line"}}]))
    texts = documents(StoragePath(str(tmp_path / "data")))
    lines = [line for text in texts for line in text.split("\n") if len(line) >= 32]
    assert len(lines) == len(set(lines)) == 301
    assert len(texts) == 150, "a document of which nothing is left is dropped"


def test_ranges_of_hashes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raylm.prep.operators.dedup import exact as exact_duplicates

    run(stepped(tmp_path, ["exact_duplicates"], output="one"))
    monkeypatch.setattr(exact_duplicates, "_RANGE_ROWS", 7)
    whole = exact_duplicates.ExactDuplicatesBarrier.__init__
    monkeypatch.setattr(
        exact_duplicates.ExactDuplicatesBarrier, "__init__", lambda self, settings: whole(self, settings, 7)
    )
    run(stepped(tmp_path, ["exact_duplicates"], output="two"))
    assert content(StoragePath(str(tmp_path / "one"))) == content(StoragePath(str(tmp_path / "two")))


def test_a_sample_keeps_about_its_share_and_the_same_documents(tmp_path: Path) -> None:
    one = run(stepped(tmp_path, [{"sample": {"rate": 0.5}}], output="one"))
    run(stepped(tmp_path, [{"sample": {"rate": 0.5}}], output="two"))
    assert 70 < one.documents < 130
    assert content(StoragePath(str(tmp_path / "one"))) == content(StoragePath(str(tmp_path / "two")))
    other = run(stepped(tmp_path, [{"sample": {"rate": 0.5, "seed": 1}}], output="three"))
    assert other.manifest.fingerprint != one.manifest.fingerprint


def test_when_steps_drop_everything_the_error_says_which(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"skipped or dropped \(\d+ not sampled; such as "):
        run(stepped(tmp_path, [{"sample": {"rate": 0.0}}]))


def test_a_mixture_reaches_its_shares(tmp_path: Path) -> None:
    sources = corpus(tmp_path)
    steps = [{"sample": {"shares": {"web": 0.5, "books": 0.5}, "max_copies": 3}}]
    manifest = run(job(tmp_path / "data", sources, steps=steps, held_out=0.0)).manifest
    held = {name: counts["bytes"] for name, counts in manifest.sources.items()}
    assert 0.4 < held["books"] / sum(held.values()) < 0.6
    assert manifest.sources["books"]["documents"] == 90, "as often as is allowed"


def test_rates_use_as_much_as_the_scarcest_group_allows() -> None:
    assert rates_of({"a": 900, "b": 100}, {"a": 0.5, "b": 0.5}, 1.0) == {"a": pytest.approx(1 / 9), "b": 1.0}
    assert rates_of({"a": 900, "b": 100}, {"a": 0.5, "b": 0.5}, 4.0) == {"a": pytest.approx(4 / 9), "b": 4.0}


def test_a_share_of_nothing_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of source 'wiki', of which there is no document; there is: books, web"):
        run(stepped(tmp_path, [{"sample": {"shares": {"wiki": 1}}}]))
    assert not (tmp_path / "data/manifest.json").exists()


def test_steps_go_on_where_they_stopped(tmp_path: Path) -> None:
    run(stepped(tmp_path, STAGED, output="whole"))
    wanted = stepped(tmp_path, STAGED, output="cut")
    for stop in range(1, 60, 4):
        left = iter(range(stop))

        def some(task: Any, items: Any, resources: Any = None, left: Any = left) -> Any:
            for item in items:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                yield task(item)

        try:
            prepare(wanted, session=lambda _, some=some: contextlib.nullcontext(some))
            break
        except KeyboardInterrupt:
            pass
    assert stop > 9, "it was stopped more than once"
    assert content(StoragePath(str(tmp_path / "cut"))) == content(StoragePath(str(tmp_path / "whole")))


def killed_and_finished(folder: Path, writes: Iterator[int]) -> int:
    """Prepare in processes that kill themselves at these writes, until one ends; how many were killed."""
    spawn = multiprocessing.get_context("forkserver")
    spawn.set_forkserver_preload(["test_prepare", "tokenizers", "pyarrow.parquet"])
    wanted = stepped(folder, STAGED, output="cut", unit_bytes=1500)
    for kills, number in enumerate(writes):
        child = spawn.Process(target=prepare_until_killed, args=(wanted, number))
        child.start()
        child.join(120)
        for place in StoragePath(wanted.shards_url).glob("**/.raylm-writing-*"):
            place.remove()
        if child.exitcode == 0:
            return kills
        assert child.exitcode == -signal.SIGKILL
    run(wanted)
    return kills + 1


def test_killed_in_any_pass_the_result_is_byte_identical(tmp_path: Path) -> None:
    whole = stepped(tmp_path, STAGED, output="whole", unit_bytes=1500)
    run(whole)
    kills = killed_and_finished(tmp_path, iter((1, 20, 30, 41, 3, 30)))
    assert kills >= 4
    assert content(StoragePath(str(tmp_path / "cut"))) == content(StoragePath(whole.shards_url))


@pytest.mark.long
def test_killed_at_twenty_random_points_the_result_is_byte_identical(tmp_path: Path) -> None:
    whole = stepped(tmp_path, STAGED, output="whole", unit_bytes=1500)
    run(whole)
    chance = random.Random()
    kills = 0
    while kills < 20:
        kills += killed_and_finished(tmp_path, (chance.randint(0, 60) for _ in range(20)))
        assert content(StoragePath(str(tmp_path / "cut"))) == content(StoragePath(whole.shards_url))
        shutil.rmtree(tmp_path / "cut")


@pytest.mark.long
def test_on_four_nodes_of_which_one_is_killed_the_result_is_byte_identical(tmp_path: Path) -> None:
    whole = stepped(tmp_path, STAGED, output="whole", unit_bytes=1500)
    run(whole)
    wanted = stepped(tmp_path, STAGED, output="cut", unit_bytes=1500)
    script = tmp_path / "go.py"
    script.write_text(
        "import sys\n"
        "from raylm.config.job import Job\n"
        "from raylm.prep.prepare import prepare\n"
        "job = Job.model_validate_json(sys.stdin.read())\n"
        "prepare(job)\n"
    )
    # pytest's own folders are too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = LocalCluster(Path(folder))
        cluster.up(3, head=NodeShape(), each=NodeShape())
        try:
            where = {"cluster": {"address": cluster.address}}
            child = subprocess.Popen(
                [sys.executable, str(script)],
                stdin=subprocess.PIPE,
                text=True,
                env={**os.environ, "RAY_AUTH_MODE": "token"},
            )
            assert child.stdin is not None
            child.stdin.write(json.dumps(wanted.model_dump(mode="json") | where))
            child.stdin.close()
            units = StoragePath(str(tmp_path / "cut")) / "_work/pass-0/units"
            while child.poll() is None and not units.list():
                time.sleep(0.05)
            assert child.poll() is None, "it was still at work when the node died"
            cluster.kill("node-2")
            assert child.wait(300) == 0
        finally:
            cluster.down()
    assert content(StoragePath(str(tmp_path / "cut"))) == content(StoragePath(whole.shards_url))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("    - sampel: {rate: 0.5}", "job.yaml:4: unknown key 'prepare.steps.0.sampel'"),
        ("    - sample: {rat: 0.5}", "unknown key 'prepare.steps.0.sample.rat'"),
        ("    - sample: {}", "give either rate or shares"),
        ("    - sample: {rate: 0.5}\n      exact_duplicates: {}", "an entry names one operator"),
        ("    - sample: {rate: 1.5}", "prepare.steps.0.sample.rate"),
    ],
)
def test_a_wrong_step_is_named_with_its_line(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "job.yaml").write_text(f"name: x\nprepare:\n  steps:\n{lines}\n")
    with pytest.raises(ConfigError) as caught:
        load_job(str(tmp_path / "job.yaml"))
    assert message in str(caught.value)


# What an operator needs that is not there: (its settings, the module to hide, what the error says).
NOT_INSTALLED: list[tuple[Any, str, str]] = [
    ({"blocklist": {"words": ["x"]}}, "ahocorasick_rs", "a blocklist of words needs ahocorasick_rs"),
    ("fairness", "vaderSentiment.vaderSentiment", "step fairness with sentiment needs vaderSentiment"),
    ("language", "fasttext", "step language needs fasttext"),
    ({"normalize": {"mojibake": True}}, "ftfy", "normalize with mojibake needs ftfy"),
    ("personal_data", "phonenumbers", "step personal_data needs phonenumbers"),
    ({"personal_data": {"kinds": ["iban"]}}, "stdnum.iban", "step personal_data needs stdnum"),
    ({"personal_data": {"model": "any_model"}}, "spacy", "with model 'any_model' needs spacy"),
    ("quality", "datatrove.pipeline.filters", "step quality needs datatrove"),
    ("toxicity", "better_profanity", "toxicity without a list of words needs better_profanity"),
]
WRONG_FILES: list[tuple[Any, str]] = [
    ({"blocklist": {"domain_files": ["{}/none.txt"]}}, "none.txt is no list of words"),
    ({"blocklist": {"word_files": ["{}/bad.txt"]}}, "bad.txt, line 1: '!!' holds no letter or digit"),
    ({"classifier": {"model": "{}/bad.txt"}}, "bad.txt is no classifier of raylm"),
    ({"classifier": {"good": "{}/none.txt", "bad": "{}/none.txt"}}, "classifier.good: no file matches"),
    ({"counterfactual": {"pairs": "{}/bad.txt"}}, "bad.txt, line 1: '!!' is no pair of words"),
    ({"decontaminate": {"sets": [{"name": "quiz", "glob": "{}/bad.txt"}]}}, "evaluation set 'quiz': .*is not JSON"),
    ({"fairness": {"groups": "{}/bad.txt"}}, "bad.txt, line 1: '!!' names no terms"),
    ({"personal_data": {"model": "{}/none"}}, "spaCy has no model"),
    ({"personal_data": {"regions": ["XX"]}}, "knows no region 'XX'"),
    ({"toxicity": {"words": "{}/bad.txt"}}, "bad.txt, line 1: '!!' is no phrase with a weight"),
    ({"toxicity": {"model": "{}/none"}}, "is no model that transformers can load"),
]


def refused_before_any_unit(folder: Path, step: Any, message: str) -> None:
    def nobody(task: Any, items: Any, resources: Any = None) -> Iterator[str]:
        raise AssertionError("a unit was begun")

    wanted = stepped(folder, ["exact_duplicates", step])
    with pytest.raises((ConfigError, DataError), match=message):
        prepare(wanted, session=lambda _: contextlib.nullcontext(nobody))
    assert not (folder / "data/_work").exists(), "other settings may be tried in the same folder"


@pytest.mark.parametrize(("step", "module", "message"), NOT_INSTALLED, ids=lambda value: str(value)[:40])
def test_what_a_step_needs_and_is_not_installed_is_said_before_any_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Any, module: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name, loaded in list(sys.modules.items()):  # what was loaded by a test before is not remembered here
        if name.startswith("raylm.prep.operators.") and loaded is not None:
            for value in vars(loaded).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
    refused_before_any_unit(tmp_path, step, message)


@pytest.mark.parametrize(("step", "message"), WRONG_FILES, ids=lambda value: str(value)[:40])
def test_a_file_of_a_step_that_is_wrong_is_said_before_any_unit(tmp_path: Path, step: Any, message: str) -> None:
    (tmp_path / "bad.txt").write_text("!!\n")
    filled = json.loads(json.dumps(step).replace("{}", str(tmp_path)))
    refused_before_any_unit(tmp_path, filled, message)


def test_every_kind_of_operator_that_needs_something_is_among_those(tmp_path: Path) -> None:
    def name(step: Any) -> str:
        return step if isinstance(step, str) else str(next(iter(step)))

    tried = {name(entry[0]) for entry in [*NOT_INSTALLED, *WRONG_FILES]}
    assert {one for one, _ in operator_rows()} - tried == {"exact_duplicates", "near_duplicates", "sample"}


def test_a_step_may_be_written_as_its_name_alone(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("prepare:\n  steps:\n  - exact_duplicates\n  - exact_duplicates:\n")
    steps = load_job(str(tmp_path / "job.yaml")).prepare.steps
    assert [step.name for step in steps] == ["exact_duplicates"] * 2
    assert steps[0].model_dump() == {"exact_duplicates": {"part": "document", "min_chars": 32}}


# Requirements


def test_a_data_set_that_misses_a_rule_is_not_published_until_it_meets_it(tmp_path: Path) -> None:
    rules = {"duplicates": {"max": 0}, "documents": {"min": 100}}
    with pytest.raises(DataError) as caught:
        run(stepped(tmp_path, [], require=rules))
    assert "1 of 2 requirements are not met" in caught.value.message
    assert "duplicates is 0.25, required at most 0" in caught.value.message
    folder = tmp_path / "data"
    assert not (folder / "manifest.json").exists()
    assert "not published" in (folder / "report.html").read_text()
    assert "NOT MET" in (folder / "card.md").read_text()
    report = run(stepped(tmp_path, [], require=rules | {"duplicates": {"max": 0.25}}))
    assert report.resumed_units > 0, "nothing is done again for other bounds"
    assert (folder / "manifest.json").exists()
    assert "duplicates is 0.25, required at most 0.25\n" in (folder / "card.md").read_text()
    run(stepped(tmp_path, ["exact_duplicates"], output="clean", require=rules))


def test_a_rule_that_comes_later_is_measured_then(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tokens is"):
        run(stepped(tmp_path, [], require={"tokens": {"min": 10**9}}))
    report = run(stepped(tmp_path, [], require={"duplicates": {"max": 0.3}}))
    assert report.resumed_units == 0
    assert report.documents == 200


def test_languages_and_personal_data_of_what_goes_into_the_shards_are_measured(tmp_path: Path) -> None:
    lines = [{"text": f"Write to someone{number}@mail.org now.", "language": "en"} for number in range(30)]
    lines += [{"text": f"Nichts von Belang, Nummer {number}.", "language": "de"} for number in range(10)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sources = [{"name": "x", "kind": "jsonl", "glob": f"{tmp_path}/x.jsonl", "meta": ["language"]}]
    rules = {"language": {"en": {"min": 0.8}, "fr": {"max": 0}}, "personal_data": {"max": 0}}
    with pytest.raises(DataError) as caught:
        run(job(tmp_path / "data", sources, require=rules, unit_bytes=500))
    assert "2 of 3 requirements are not met" in caught.value.message
    assert "language.en is 0.75, required at least 0.8" in caught.value.message
    assert "personal_data is 0.75, required at most 0" in caught.value.message
    rules["language"] = {"en": {"min": 0.7}}
    run(job(tmp_path / "clean", sources, steps=["personal_data"], require=rules, unit_bytes=500))


def test_kept_is_a_share_of_what_was_read(tmp_path: Path) -> None:
    rules = {"kept": {"min": 0.76, "max": 0.9}}
    with pytest.raises(DataError, match=r"kept is 0\.75, required at least 0\.76 and at most 0\.9"):
        run(stepped(tmp_path, ["exact_duplicates"], require=rules))


def test_repeated_texts_are_counted_over_units_and_beyond_the_sketch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylm.prep.checks.measures.SKETCH", 16)
    wanted = Job.model_validate({"prepare": {"require": {"duplicates": {"max": 0}}}})
    units = []
    for start in (0, 1500):
        measures = Measures(wanted, StoragePath(str(tmp_path)))
        for number in range(start, start + 2000):
            measures.add(Document(str(number), f"text {number % 3000}", "x"))
        units.append(measures.to_dict())
    assert summed(units[:1]) == {"duplicates": 0}
    assert 0.15 < summed(units)["duplicates"] < 0.35, "1000 of 4000, estimated from 16 texts a unit"


@pytest.mark.parametrize(
    ("require", "message"),
    [
        ({"contaminations": {"max": 0}}, "Extra inputs are not permitted"),
        ({"documents": {}}, "give min, max, or both"),
        ({"documents": {"min": 2, "max": 1}}, "min=2 is more than max=1"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(require: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Job.model_validate({"prepare": {"require": require}})


# The report


def test_the_report_shows_steps_histograms_and_examples_and_no_markup_of_texts(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text((json.dumps({"text": "<b>bold & sure</b> words"}) + "\n") * 3)
    sources = [{"name": "x", "kind": "jsonl", "glob": f"{tmp_path}/x.jsonl", "license": "CC0"}]
    run(job(tmp_path / "data", sources, steps=["exact_duplicates"], held_out=0.0))
    page = (tmp_path / "data/report.html").read_text()
    assert "1 of 3" in page
    assert "duplicate" in page
    assert "&lt;b&gt;bold &amp; sure" in page
    assert "<b>bold" not in page
    assert "tokens of a document" in page
    assert "CC0" in page
    card = (tmp_path / "data/card.md").read_text()
    assert "1. exact duplicates: 1 of 3 documents; dropped 2 duplicate" in card
