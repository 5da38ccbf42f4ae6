"""What cannot work is said before anything is spent: by --dry-run, by `plan`, and at the start of a program."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylm.cli.main import main
from raylm.config.job import Job
from raylm.config.load import load_job, with_overrides
from raylm.config.together import refuse_mismatched
from raylm.errors import ConfigError, DataError
from raylm.humanize import count, size
from raylm.model.budget import plan
from raylm.model.remedies import remedies
from raylm.prep.units import shaping_settings
from raylm.shards import RowFormat
from raylm.testing.datasets import SEQUENCE, VOCABULARY, job_settings, make_data, write_dataset, write_job
from raylm.train.launch.preflight import preflight


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def job_with(**sections: Any) -> Job:
    return Job.model_validate({"model": {"preset": "tiny"}, **sections})


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"optim": {"warmup_steps": 101}}, "optim.warmup_steps=101 is longer than the run of train.steps=100"),
        ({"optim": {"warmup_steps": 60, "schedule": "wsd", "decay_steps": 41}}, "are together longer than the run"),
        ({"evaluate": {"every_steps": 5}, "prepare": {"held_out": 0}}, "prepare.held_out=0 keeps nothing"),
        ({"checkpoint": {"keep_best": 2}}, "needs held-out losses"),
    ],
)
def test_settings_that_cannot_work_together_are_refused_by_every_command(
    sections: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="=") as refused:
        refuse_mismatched(job_with(**sections))
    assert words in refused.value.message
    assert refused.value.hint
    file = str(write_job(tmp_path, {"name": "a", "storage": str(tmp_path), "model": {"preset": "tiny"}, **sections}))
    for command in (["plan", file], ["train", file, "--dry-run"], ["prepare", file, "--dry-run"]):
        code, out, err = said(capsys, *command)
        assert (code, out) == (2, "")
        assert words in err


@pytest.mark.parametrize(
    "sections",
    [
        {"optim": {"warmup_steps": 100}},
        {"optim": {"warmup_steps": 60, "schedule": "wsd", "decay_steps": 40}},
        {"optim": {"warmup_steps": 95, "schedule": "wsd"}},
        {"evaluate": {"every_steps": 5}, "prepare": {"held_out": 0}, "data": {"path": "elsewhere"}},
        {"evaluate": {"every_steps": 5}, "checkpoint": {"keep_best": 2}},
    ],
)
def test_settings_that_just_fit_are_taken(sections: dict[str, Any]) -> None:
    refuse_mismatched(job_with(**sections))


def test_a_warm_up_too_long_is_refused_by_a_program_too(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", rows=24)
    settings = job_settings(tmp_path / "runs", data, name="a", steps=5, optim__warmup_steps=6)
    job = Job.model_validate(settings)
    with pytest.raises(ConfigError, match=r"warmup_steps=6 is longer than the run of train\.steps=5"):
        preflight(job, folder_of(job))


def folder_of(job: Job) -> Any:
    from raylm.storage import StoragePath

    return StoragePath(job.run_url)


def test_evaluation_without_held_out_rows_is_refused_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.ones((24, SEQUENCE), dtype=np.int64)
    write_dataset(tmp_path / "data", RowFormat(SEQUENCE, VOCABULARY, "none", eos_id=0, group_rows=8), rows, rows[:0])
    settings = job_settings(tmp_path / "runs", tmp_path / "data", name="a", steps=5)
    job = Job.model_validate(settings)
    with pytest.raises(DataError, match="no held-out sequences in"):
        preflight(job, folder_of(job))
    code, _, err = said(capsys, "train", str(write_job(tmp_path, settings)), "--dry-run")
    assert code == 3
    assert "no held-out sequences in" in err
    assert "set evaluate.every_steps to null" in err
    file = str(write_job(tmp_path, settings | {"evaluate": {}}))
    assert said(capsys, "train", file, "--dry-run")[0] == 0


def test_a_mixture_whose_weights_end_at_nothing_is_refused_when_it_is_read() -> None:
    def mixture(*schedules: list[tuple[int, float]]) -> dict[str, Any]:
        return {
            "mixture": [
                {
                    "path": f"/{number}",
                    "weight_schedule": [{"step": step, "weight": weight} for step, weight in changes],
                }
                for number, changes in enumerate(schedules)
            ]
        }

    with pytest.raises(ValueError, match="at step 9 every weight of the mixture is 0"):
        job_with(data=mixture([(5, 0.0)], [(9, 0.0)]))
    with pytest.raises(ValueError, match="at step 5 every weight of the mixture is 0"):
        job_with(data=mixture([(5, 0.0)]))
    assert job_with(data=mixture([(5, 0.0), (9, 1.0)], [(9, 0.0)]))


# -- a dry run is a promise --------------------------------------------------------------------------------------------


def texts(folder: Path, *, packed: bool = False) -> str:
    """JSON lines in a folder; its glob."""
    folder.mkdir()
    lines = "".join(json.dumps({"text": f"this is the text of line {number}"}) + "\n" for number in range(400))
    if packed:
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    else:
        (folder / "a.jsonl").write_text(lines)
    return f"{folder}/*"


def mine(folder: Path, **sections: Any) -> str:
    settings = {"name": "a", "storage": str(folder / "runs"), "model": {"preset": "tiny"}, **sections}
    return str(write_job(folder, settings))


def test_a_dry_run_takes_the_vocabulary_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data(tmp_path / "data", rows=24)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = {"config": {"model_type": "llama", "vocab_size": VOCABULARY, **shape, "max_position_embeddings": SEQUENCE}}
    file = mine(tmp_path, model=model, data={"path": str(data)})
    assert said(capsys, "train", file, "--dry-run")[0] == 0
    code, out, _ = said(capsys, "plan", file)
    assert code == 0
    assert f"vocabulary {VOCABULARY}, rows of {SEQUENCE}\nsizes        of the shards in {data}" in out


def test_a_plan_without_data_takes_the_named_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tokenizer_of(tmp_path / "tokenizer", 300)
    file = mine(tmp_path, prepare={"tokenizer": {"path": str(tokenizer)}, "sequence_length": 96})
    code, out, _ = said(capsys, "plan", file)
    assert code == 0
    assert "vocabulary 300, rows of 96\nsizes        as the job's prepare section says (no shards in" in out


def tokenizer_of(folder: Path, tokens: int) -> Path:
    """A tokenizer of so many tokens, as transformers saves one."""
    from tokenizers import Tokenizer, models

    folder.mkdir()
    made = Tokenizer(models.WordLevel({f"w{number}": number for number in range(tokens)}, unk_token="w0"))
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "w1", "tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def test_data_elsewhere_that_cannot_be_read_refuses_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its vocabulary is not known, so the model's own sizes are taken, not those of a section that did not make it."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = {"config": {"model_type": "llama", "vocab_size": 600, "max_position_embeddings": 64, **shape}}
    store = {"endpoint": "http://127.0.0.1:9", "retries": 0, "timeout_seconds": 2}
    file = mine(tmp_path, model=model, data={"path": "s3://bucket/data"}, object_store=store)
    code, out, _ = said(capsys, "plan", file)
    assert code == 0
    assert "vocabulary 600, rows of 64" in out
    assert "s3://bucket/data cannot be read from here" in out
    code, out, _ = said(capsys, "train", file, "--dry-run")
    assert code == 0
    assert "not checked  whether the settings fit the data" in out


def test_a_dry_run_of_training_without_data_ends_as_training_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = mine(tmp_path, prepare={"sources": [{"glob": "a.txt"}]})
    code, out, err = said(capsys, "train", file, "--dry-run")
    assert (code, said(capsys, "train", file)[0]) == (3, 3)
    assert out.endswith(f"next: raylm prepare {file}\n")
    assert "no prepared data in" in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("prepare.sources.0.glob={folder}/none/*", "no file matches"),
        ("prepare.sources.0.column=body", "has no key 'body'"),
        ("prepare.sources.0.meta=[url]", "has no key 'url'"),
        ("prepare.sources.0.kind=parquet", "cannot be read as Parquet"),
        ("prepare.tokenizer.path={folder}/none", "no tokenizer in"),
        ("prepare.steps=[{{toxicity: {{words: {folder}/none.txt}}}}]", "words names {folder}/none.txt"),
        ("prepare.steps=[{{blocklist: {{word_files: [{folder}/none.txt]}}}}]", "word_files names {folder}/none.txt"),
        ("prepare.steps=[{{decontaminate: {{sets: [{{name: a, glob: {folder}/none/*}}]}}}}]", "sets.glob names"),
    ],
)
def test_a_dry_run_of_preparing_ends_as_preparing_would(
    change: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    glob = texts(tmp_path / "texts")
    file = mine(tmp_path, prepare={"sources": [{"kind": "jsonl", "glob": glob}]})
    assert said(capsys, "prepare", file, "--dry-run")[0] == 0
    code, out, err = said(capsys, "prepare", file, "--set", change.format(folder=tmp_path), "--dry-run")
    assert (code, out) == (3, "")
    assert words.format(folder=tmp_path) in err
    assert "hint:" in err
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_broken_among_others_is_left_to_the_share_that_may_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    glob = texts(tmp_path / "texts")
    (tmp_path / "texts" / "0.jsonl").write_text("{broken\n")
    file = mine(tmp_path, prepare={"sources": [{"kind": "jsonl", "glob": glob}]})
    assert said(capsys, "prepare", file, "--dry-run")[0] == 0


@pytest.mark.parametrize("packed", [False, True])
def test_tokens_are_guessed_from_unpacked_bytes(
    packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    glob = texts(tmp_path / "texts", packed=packed)
    code, out, _ = said(
        capsys, "prepare", mine(tmp_path, prepare={"sources": [{"kind": "jsonl", "glob": glob}]}), "--dry-run"
    )
    assert code == 0
    total = sum(len(json.dumps({"text": f"this is the text of line {number}"})) + 1 for number in range(400))
    assert f"tokens     about {count(total / 4)}, at 4 bytes per token" in out
    assert (f"unpacked about {size(total)}" in out) == packed


# -- what a plan advises -----------------------------------------------------------------------------------------------

BIG = {"model": {"preset": "llama-7b"}, "batch": {"sequences": 64, "micro_batch": 8}}


@pytest.mark.parametrize("gigabytes", [20, 24, 40, 80, 141])
@pytest.mark.parametrize("workers", [1, 4, 16])
@pytest.mark.parametrize("stage", [0, 3])
def test_each_piece_of_advice_alone_makes_a_step_fit(gigabytes: int, workers: int, stage: int) -> None:
    job = Job.model_validate(BIG | {"zero": {"stage": stage}, "batch": {"sequences": 128, "micro_batch": 8}})
    made = plan(job, 32_000, sequence_length=2048, gpu_bytes=gigabytes * 10**9, workers=[workers])
    advice = remedies(job, made, workers)
    assert bool(advice) == (stage not in made.fitting(workers))
    for changes in advice:
        changed = with_overrides(job, changes)
        many = changed.workers.min if "workers.min" in changes else workers
        again = plan(changed, 32_000, sequence_length=2048, gpu_bytes=made.gpu_bytes, workers=[many])
        assert changed.zero.stage in again.fitting(many), changes


def test_a_plan_that_does_not_fit_goes_on_with_what_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = mine(tmp_path, **BIG)
    code, out, _ = said(capsys, "plan", file, "--gpu-memory", "48")
    assert code == 0
    next_line = out.splitlines()[-1]
    assert next_line.startswith(f"next: raylm plan {file} --set ")
    code, out, _ = said(capsys, *shlex.split(next_line)[2:])
    assert out.splitlines()[-1].startswith(f"next: raylm train {file} --set ")
    code, out, _ = said(capsys, "plan", file, "--gpu-memory", "2")
    assert "no setting makes it fit" in out
    assert "next:" not in out


def test_a_dry_run_of_what_is_prepared_already_asks_for_no_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.ones((24, SEQUENCE), dtype=np.int64)
    sources = [{"kind": "jsonl", "glob": f"{tmp_path}/gone/*.jsonl"}]
    file = mine(tmp_path, prepare={"sources": sources})
    job = load_job(file)
    format_ = RowFormat(SEQUENCE, VOCABULARY, "none", eos_id=0, group_rows=8)
    data = write_dataset(job.shards_url, format_, rows, rows[:8])
    manifest = json.loads((data / "manifest.json").read_bytes())
    for settings, expected in ((shaping_settings(job), 0), ({"sequence_length": 7}, 2)):
        (data / "manifest.json").write_text(json.dumps(manifest | {"settings": settings}))
        code, out, err = said(capsys, "prepare", file, "--dry-run")
        assert code == expected, err
        assert ("nothing would be done" in out) == (code == 0)
