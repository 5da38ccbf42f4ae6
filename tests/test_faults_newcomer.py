"""What a new user met: a next line that is refused, texts that nobody named, hints that lead nowhere, counts amiss."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_faults_early import said

import raylm
from raylm.cli.prepare import next_commands, result_rows
from raylm.config.job import Job
from raylm.config.load import load_job, parse_job
from raylm.errors import ConfigError, DataError
from raylm.prep.prepare import PrepareReport, prepare
from raylm.prep.tasks import here
from raylm.train.launch.preflight import preflight

TOKENIZER = {"vocab_size": 300, "sample_bytes": 100_000}


def lines(folder: Path, count: int = 40, name: str = "texts.jsonl") -> dict[str, Any]:
    """A source of so many short documents."""
    texts = [f"The committee met on day {number} to speak of the bridge. It went well." for number in range(count)]
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"name": "texts", "kind": "jsonl", "glob": str(folder / name)}


def written(folder: Path, *sources: dict[str, Any], held_out: float = 0.5, **sections: Any) -> str:
    """The path of a job file that prepares these sources."""
    section = {"sources": [*sources], "tokenizer": TOKENIZER, "sequence_length": 32, "held_out": held_out}
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", "prepare": section, **sections}))
    return str(file)


def prepared(file: str, *overrides: str) -> tuple[Job, PrepareReport]:
    job = load_job(file, overrides)
    return job, prepare(job, session=here)


# -- what comes after preparing ----------------------------------------------------------------------------------------


def test_what_follows_a_preparation_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, lines(tmp_path))
    job, result = prepared(file)
    look, words = next_commands(job, result, file, ())
    assert look == f"raylm inspect {job.shards_url}"
    assert said(capsys, *shlex.split(look)[1:])[0] == 0
    assert words.startswith("or add a model to the job (model.preset,")

    tiny = ("model.preset=tiny",)
    [train] = next_commands(load_job(file, tiny), result, file, tiny)
    assert train == f"raylm train {file} --set model.preset=tiny"
    assert said(capsys, *shlex.split(train)[1:], "--dry-run")[0] == 0


def test_no_training_follows_a_preparation_of_what_the_job_does_not_train_on(tmp_path: Path) -> None:
    file = written(tmp_path, lines(tmp_path), model={"preset": "tiny"}, data={"path": "elsewhere"})
    job, result = prepared(file)
    assert next_commands(job, result, file, ()) == [f"raylm inspect {job.shards_url}"]


def test_training_that_follows_evaluates_only_on_what_is_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {"model": {"preset": "tiny"}, "evaluate": {"every_steps": 5}, "checkpoint": {"keep_best": 1}}
    file = written(tmp_path, lines(tmp_path, 2), held_out=1e-9, **sections)
    job, result = prepared(file)
    [train] = next_commands(job, result, file, ())
    assert train == f"raylm train {file} --set evaluate.every_steps=null --set checkpoint.keep_best=0"
    assert said(capsys, *shlex.split(train)[1:], "--dry-run")[0] == 0


# -- texts that nobody named -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "name: a\n", "prepare: {sequence_length: 64}\n", "prepare: {sources: []}\n"])
def test_a_job_that_names_no_texts_prepares_none(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text(text)
    for more in ([], ["--dry-run"]):
        code, out, err = said(capsys, "prepare", str(file), *more)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {file}: the job names no texts to prepare: prepare.sources is empty\n")
    with pytest.raises(raylm.RaylmError, match="names no texts to prepare"):
        raylm.prepare(load_job(file))
    assert not (tmp_path / "runs").exists()

    # What the hint says is taken as it stands.
    lines(tmp_path, name="a.txt")
    given = re.search(r"--set '([^']+)'", err)
    assert given is not None
    flag = given[1].replace("texts/*.txt", f"{tmp_path}/*.txt")
    assert said(capsys, "prepare", str(file), "--set", flag, "--dry-run")[0] == 0


def test_training_with_an_empty_job_asks_for_its_model_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.yaml").write_text("")
    for more in ([], ["--dry-run"]):
        code, _, err = said(capsys, "train", str(tmp_path / "empty.yaml"), *more)
        assert (code, "the job says no model" in err) == (2, True)


def test_sources_of_one_name_are_told_to_take_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source names must differ") as refused:
        parse_job("prepare: {sources: [{glob: a}, {glob: b}]}", origin="job.yaml")
    assert "got ['text', 'text']: give each source a `name` of its own" in refused.value.message


# -- data that is not there --------------------------------------------------------------------------------------------


def test_missing_data_is_told_with_what_makes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hint(file: str, *flags: str) -> str:
        code, _, err = said(capsys, "train", file, *flags)
        assert code == 3
        assert said(capsys, "train", file, *flags, "--dry-run")[2] == err
        return err.split("hint:  ")[1].strip()

    own, model, source = f"{tmp_path}/runs/mine/data", {"preset": "tiny"}, lines(tmp_path)
    file = written(tmp_path, source, model=model)
    assert hint(file) == f"run `raylm prepare {file}` (it goes on where it stopped)"

    told = hint(file, "--set", f"data.path={tmp_path}/none")
    command = f"raylm prepare {file} --set data.path={tmp_path}/none --set prepare.output={tmp_path}/none"
    assert told == f"correct data.path (this job prepares {own}), or run `{command}`"
    prepared(file, f"prepare.output={tmp_path}/none")
    assert said(capsys, "train", file, "--set", f"data.path={tmp_path}/none", "--dry-run")[0] == 0

    gone = ("--set", f"data.mixture=[{{path: {tmp_path}/gone}}]")
    elsewhere = "correct data.mixture, or run `raylm prepare` with the job that makes this dataset"
    assert hint(file, *gone) == elsewhere
    file = written(tmp_path, model=model)
    assert hint(file) == "name prepared data in data.path, or texts in prepare.sources and run `raylm prepare`"
    assert hint(file, *gone) == elsewhere


# -- what is held out --------------------------------------------------------------------------------------------------


def test_a_share_that_holds_nothing_out_is_told(tmp_path: Path) -> None:
    _, result = prepared(written(tmp_path, lines(tmp_path, 3), held_out=1e-9))
    [told] = result.warnings
    assert told.startswith(
        "nothing is held out: none of 3 documents fell to the held-out side (prepare.held_out=1e-09)"
    )
    assert "give more documents or raise prepare.held_out" in told
    assert told in (tmp_path / "runs/mine/data/card.md").read_text()
    assert result_rows(result)[-1] == ("WARNING", told), "there are no samples of it"
    for share in (0, 0.5):
        _, result = prepared(written(tmp_path, lines(tmp_path), held_out=share), f"name=share-{share}")
        assert result.warnings == ()


@pytest.fixture
def evaluation_set(tmp_path: Path) -> tuple[str, Job, PrepareReport]:
    """A dataset of which everything is held out, in the tokenizer of another one."""
    first, _ = prepared(written(tmp_path, lines(tmp_path)))
    file = written(tmp_path, lines(tmp_path, 30, "own.jsonl"), held_out=1)
    flags = ("name=own", f"prepare.tokenizer.path={first.shards_url}/tokenizer")
    return (file, *prepared(file, *flags))


def test_all_of_a_set_may_be_held_out(
    evaluation_set: tuple[str, Job, PrepareReport], capsys: pytest.CaptureFixture[str]
) -> None:
    file, job, result = evaluation_set
    assert (result.documents, result.manifest.train_rows, result.warnings) == (30, 0, ())
    assert result.manifest.held_out_rows > 0
    code, out, _ = said(capsys, "inspect", job.shards_url)
    assert (code, "sample 2:" in out) == (0, True)
    look, words = next_commands(job, result, file, ())
    assert said(capsys, *shlex.split(look)[1:])[0] == 0
    assert words.startswith(f"raylm evaluate RUN --data {job.shards_url}")


def test_what_is_all_held_out_is_not_trained_on(
    evaluation_set: tuple[str, Job, PrepareReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, own, _ = evaluation_set
    job = Job.model_validate({"name": "a", "storage": str(tmp_path), "model": {"preset": "tiny"}})
    job = job.model_copy(update={"data": own.data.model_copy(update={"path": own.shards_url})})
    with pytest.raises(DataError, match="has no rows to train on: all of its documents are held out"):
        preflight(job, raylm.storage.StoragePath(job.run_url))
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump({"model": {"preset": "tiny"}, "data": {"path": own.shards_url}}))
    code, _, err = said(capsys, "train", str(file), "--dry-run")
    assert (code, "raylm evaluate RUN --data" in err) == (3, True)


def test_a_set_to_evaluate_on_names_the_models_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"held_out=1 leaves no text to train a tokenizer on; .*tokenizer\.path"):
        load_job(written(tmp_path, lines(tmp_path), held_out=1))


# -- evaluating on other data ------------------------------------------------------------------------------------------


def model_folder(folder: Path, tokenizer: Path, vocab_size: int) -> str:
    """A model as transformers saves one, with this tokenizer."""
    from raylm.config.model import ModelSettings
    from raylm.model.build import build_model

    build_model(ModelSettings(preset="tiny"), vocab_size=vocab_size, sequence_length=32, seed=0).save_pretrained(folder)
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return str(folder)


def test_a_model_is_evaluated_on_all_of_a_set(
    evaluation_set: tuple[str, Job, PrepareReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, own, result = evaluation_set
    model = model_folder(tmp_path / "model", Path(own.shards_url) / "tokenizer", result.manifest.vocab_size)
    code, out, _ = said(capsys, "evaluate", model, "--data", own.shards_url)
    assert code == 0
    assert f"tokens in {result.manifest.held_out_rows:,} sequences" in out


def test_evaluating_says_what_helps_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, result = prepared(written(tmp_path, lines(tmp_path), held_out=0))
    model = model_folder(tmp_path / "model", Path(job.shards_url) / "tokenizer", result.manifest.vocab_size)
    code, _, err = said(capsys, "evaluate", model, "--data", job.shards_url)
    assert (code, f"error: no held-out sequences in {job.shards_url}\n" in err) == (3, True), err
    assert "prepare it with prepare.held_out: 1 and the model's tokenizer in prepare.tokenizer.path" in err
    assert "every_steps" not in err
    code, _, err = said(capsys, "evaluate", model, "--data", f"{tmp_path}/missing")
    assert (code, f"no prepared data in {tmp_path}/missing" in err) == (3, True)
    assert "hint:  name a folder that `raylm prepare` has finished, or run it with the job that makes this one" in err


# -- counts ------------------------------------------------------------------------------------------------------------


def test_broken_records_are_a_share_of_all_records(tmp_path: Path) -> None:
    source = lines(tmp_path, 20)
    with (tmp_path / "texts.jsonl").open("a") as file:
        file.write('{"text": ""}\n' * 5 + "{broken\n" * 5)
    with pytest.raises(DataError, match=r"\(5 of 30 records of source 'texts' are broken"):
        prepared(written(tmp_path, source))


def test_inspect_counts_documents_and_tokens_of_the_same_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, result = prepared(written(tmp_path, lines(tmp_path, 20)))
    manifest = result.manifest
    assert min(manifest.train_tokens, manifest.held_out_tokens) > 0
    _, out, _ = said(capsys, "inspect", job.shards_url)
    assert result.tokens < 1000
    assert f"texts: 20 documents, {result.tokens} tokens\n" in out
