"""Steps of preparation: what they drop is counted, and nothing depends on units, tasks or kills."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from test_prepare import content, documents, job, run

from raylm.config.load import load_job
from raylm.config.schema import Job
from raylm.errors import ConfigError, DataError
from raylm.prep import prepare
from raylm.prep.steps.sample import rates_of
from raylm.storage import Place

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "wizards", "brew", "potions"]


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
    texts = documents(Place(str(tmp_path / "data")))
    assert len(texts) == len(set(texts)) == report.documents == 150
    (step,) = report.manifest.steps
    assert (step["documents"], step["kept"], step["dropped"]) == (200, 150, {"duplicate": 50})
    (told,) = json.loads((tmp_path / "data/left_out.json").read_text())["steps"]
    assert told["dropped"]["duplicate"]["count"] == 50
    assert len(told["dropped"]["duplicate"]["examples"]) == 5
    assert "web.jsonl#" in told["dropped"]["duplicate"]["examples"][0]


def test_repeated_lines_are_cut_out(tmp_path: Path) -> None:
    run(stepped(tmp_path, [{"exact_duplicates": {"part": "line"}}]))
    texts = documents(Place(str(tmp_path / "data")))
    lines = [line for text in texts for line in text.split("\n") if len(line) >= 32]
    assert len(lines) == len(set(lines)) == 301
    assert len(texts) == 150, "a document of which nothing is left is dropped"


def test_ranges_of_hashes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raylm.prep.steps import exact_duplicates

    run(stepped(tmp_path, ["exact_duplicates"], output="one"))
    monkeypatch.setattr(exact_duplicates, "_RANGE_ROWS", 7)
    whole = exact_duplicates.ExactDuplicatesBarrier.__init__
    monkeypatch.setattr(
        exact_duplicates.ExactDuplicatesBarrier, "__init__", lambda self, settings: whole(self, settings, 7)
    )
    run(stepped(tmp_path, ["exact_duplicates"], output="two"))
    assert content(Place(str(tmp_path / "one"))) == content(Place(str(tmp_path / "two")))


def test_a_sample_keeps_about_its_share_and_the_same_documents(tmp_path: Path) -> None:
    one = run(stepped(tmp_path, [{"sample": {"rate": 0.5}}], output="one"))
    run(stepped(tmp_path, [{"sample": {"rate": 0.5}}], output="two"))
    assert 70 < one.documents < 130
    assert content(Place(str(tmp_path / "one"))) == content(Place(str(tmp_path / "two")))
    other = run(stepped(tmp_path, [{"sample": {"rate": 0.5, "seed": 1}}], output="three"))
    assert other.manifest.fingerprint != one.manifest.fingerprint


def test_a_mixture_reaches_its_shares(tmp_path: Path) -> None:
    sources = corpus(tmp_path)
    steps = [{"sample": {"shares": {"web": 0.5, "books": 0.5}, "most_copies": 3}}]
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
    steps = [{"exact_duplicates": {"part": "line"}}, {"sample": {"rate": 0.9}}, "exact_duplicates"]
    run(stepped(tmp_path, steps, output="whole"))
    wanted = stepped(tmp_path, steps, output="cut")
    for stop in range(1, 60, 4):
        left = iter(range(stop))

        def some(task: Any, numbers: Any, left: Any = left) -> Any:
            for number in numbers:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                yield task(number)

        try:
            prepare(wanted, session=lambda _, some=some: contextlib.nullcontext(some))
            break
        except KeyboardInterrupt:
            pass
    assert stop > 9, "it was stopped more than once"
    assert content(Place(str(tmp_path / "cut"))) == content(Place(str(tmp_path / "whole")))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("    - sampel: {rate: 0.5}", "job.yaml:4: unknown key 'prepare.steps.0.sampel'"),
        ("    - sample: {rat: 0.5}", "unknown key 'prepare.steps.0.sample.rat'"),
        ("    - sample: {}", "give either rate or shares"),
        ("    - sample: {rate: 0.5}\n      exact_duplicates: {}", "a step names one thing to do"),
        ("    - sample: {rate: 1.5}", "prepare.steps.0.sample.rate"),
    ],
)
def test_a_wrong_step_is_named_with_its_line(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "job.yaml").write_text(f"name: x\nprepare:\n  steps:\n{lines}\n")
    with pytest.raises(ConfigError) as caught:
        load_job(str(tmp_path / "job.yaml"))
    assert message in str(caught.value)


def test_a_step_may_be_written_as_its_name_alone(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("prepare:\n  steps:\n  - exact_duplicates\n  - exact_duplicates:\n")
    steps = load_job(str(tmp_path / "job.yaml")).prepare.steps
    assert [step.name for step in steps] == ["exact_duplicates"] * 2
    assert steps[0].model_dump() == {"exact_duplicates": {"part": "document", "shortest": 32}}
