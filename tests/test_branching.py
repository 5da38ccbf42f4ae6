"""A run branched from another's checkpoint with `init_from`: at any size, with other settings, the parent untouched."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylm.checkpoint.restore import CheckpointInfo, newest
from raylm.cli.main import main
from raylm.config.load import load_job
from raylm.errors import CheckpointError, ConfigError
from raylm.prep.tokenizer import TokenizerFacts
from raylm.run.folder import RunFolder
from raylm.shards import RowFormat
from raylm.storage import StoragePath
from raylm.testing.datasets import SEQUENCE, VOCABULARY, job_settings, make_data, write_dataset, write_job
from raylm.testing.elastic import DRIVER, Outcome, environment, run_alone
from raylm.train.launch import preflight

STEPS = 10


@dataclass(frozen=True)
class Family:
    """A parent run of STEPS steps, and where its children go."""

    folder: Path
    data: Path
    outcome: Outcome

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def job(self, name: str, *, steps: int = 1, **changes: Any) -> Path:
        settings = job_settings(self.runs, self.data, name=name, steps=steps, **changes)
        return write_job(self.folder / "jobs", settings)

    def checkpoint(self, name: str) -> CheckpointInfo:
        found = newest(RunFolder(StoragePath(str(self.runs / name))).checkpoints)
        assert found is not None
        return found

    def check(self, job: Path) -> None:
        loaded = load_job(job)
        assert preflight(loaded, StoragePath(loaded.run_url)) is None


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("family")
    data = make_data(folder / "data", rows=300)
    parent = write_job(folder / "jobs", job_settings(folder / "runs", data, name="parent", steps=STEPS, stage=2))
    return Family(folder, data, run_alone(parent))


def held_out_loss(outcome: Outcome) -> float:
    return float([event["held_out_loss"] for event in outcome.events if event["event"] == "evaluated"][-1])


def content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# A rate so small that one step leaves the weights as they were: the child's held-out loss is its parent's.
STILL = {"optim__lr": 1e-12, "optim__warmup_steps": 0, "evaluate__every_steps": 1}


@pytest.mark.parametrize(("workers", "stage"), [(1, 0), (2, 3)])
def test_a_branch_has_its_parents_weights_at_any_size_and_stage(family: Family, workers: int, stage: int) -> None:
    before = content(family.runs / "parent")
    name = f"still-{workers}-{stage}"
    job = family.job(name, stage=stage, init_from__path=str(family.runs / "parent"), **STILL)
    outcome = run_alone(job, workers=workers)
    assert held_out_loss(outcome) == pytest.approx(held_out_loss(family.outcome), abs=2e-5)
    assert [line["step"] for line in outcome.metrics] == [1]
    state = family.checkpoint(name).state
    assert state.progress.step == 1
    assert state.parent is not None
    parent = family.checkpoint("parent")
    assert (state.parent.step, state.parent.url) == (STEPS, parent.path.url)
    assert state.parent.fingerprint == parent.state.identity.fingerprint
    assert content(family.runs / "parent") == before


def test_without_init_from_the_weights_are_others(family: Family) -> None:
    """The control: what the test above compares does differ for a run that starts from random weights."""
    outcome = run_alone(family.job("fresh", **STILL))
    assert abs(held_out_loss(outcome) - held_out_loss(family.outcome)) > 0.05
    assert family.checkpoint("fresh").state.parent is None


def test_the_optimizers_state_comes_along_when_it_is_asked_for(family: Family) -> None:
    path = str(family.runs / "parent" / "checkpoints" / f"step-{STEPS:09d}")
    changes = {"init_from__path": path, "steps": 2, "optim__lr": 1e-3}
    weights = run_alone(family.job("weights", **changes))
    both = run_alone(family.job("both", init_from__optimizer=True, **changes), workers=2)
    assert weights.losses[0] == pytest.approx(both.losses[0], abs=2e-5)
    assert abs(weights.losses[1] - both.losses[1]) > 1e-4
    counters = [family.checkpoint(name).scalars["optimizer_step"] for name in ("weights", "both")]
    assert counters == [2, STEPS + 2]


def test_a_branch_resumes_by_itself_without_its_parent(family: Family) -> None:
    shutil.copytree(family.runs / "parent", family.runs / "lent")
    lent = str(family.runs / "lent")
    changes = {"init_from__path": lent, "checkpoint__every_steps": 2}
    job = family.job("resumed", steps=4, **changes)
    whole = run_alone(job)
    shutil.rmtree(lent)
    last = family.checkpoint("resumed")
    assert last.state.progress.step == 4
    shutil.rmtree(last.path.url)  # as if the run had been lost after step 2, the same job in all else
    family.check(job)
    outcome = run_alone(job)
    assert [Path(event["checkpoint"]).name for event in outcome.of("resumed")] == ["step-000000002"]
    assert [line["step"] for line in outcome.metrics] == [1, 2, 3, 4]
    assert outcome.losses == pytest.approx(whole.losses, abs=1e-6)
    parent = family.checkpoint("resumed").state.parent
    assert parent is not None
    assert parent.url.startswith(lent)
    with pytest.raises(ConfigError, match=r"another job: init_from\.path: '.*lent' in the run, now None"):
        family.check(family.job("resumed", steps=9))


def test_an_export_is_a_parent_too(family: Family) -> None:
    from raylm.model.build import build_model
    from raylm.trained import export_model

    job = load_job(family.job("parent", steps=STEPS, stage=2))
    model = build_model(job.model, vocab_size=VOCABULARY, sequence_length=SEQUENCE, seed=5, eos_id=0)
    exported = family.folder / "exported"
    model.save_pretrained(exported)  # type: ignore[operator]
    assert export_model(StoragePath(str(exported))) is not None
    run_alone(family.job("from-export", init_from__path=str(exported), **STILL))
    direct = run_alone(family.job("from-path", model__preset=None, model__path=str(exported), **STILL))
    made = run_alone(family.job("from-export", init_from__path=str(exported), **STILL))
    assert held_out_loss(made) == pytest.approx(held_out_loss(direct), abs=2e-5)
    with pytest.raises(ConfigError, match="is an export, which holds weights only"):
        family.check(family.job("moments", init_from__path=str(exported), init_from__optimizer=True))


def tokenizer_of(folder: Path, text: str, vocab_size: int) -> TokenizerFacts:
    """A tokenizer trained on this text, as the folder's files."""
    from raylm.config.prepare.tokenizer import TokenizerSettings
    from raylm.prep.tokenizer import load, train, write_tokenizer

    built = train([text] * 40, TokenizerSettings(vocab_size=vocab_size))
    write_tokenizer(StoragePath(str(folder)), built)
    return load(StoragePath(str(folder)))[1]


def data_of(folder: Path, text: str, vocab_size: int) -> Path:
    """A small dataset of a tokenizer of its own."""
    facts = tokenizer_of(folder / "tokenizer", text, vocab_size)
    tokens = np.ones((48, SEQUENCE), dtype=np.int64)
    rows = RowFormat(SEQUENCE, facts.vocab_size, facts.fingerprint, facts.eos_id, group_rows=8)
    write_dataset(folder, rows, tokens, tokens[:4])
    return folder


TEXT = "the cat sat on the mat and the dog lay under the old table near a window"
OTHER_TEXT = "quick brown foxes jump lazily, 12 zebras gallop away; pyjamas vex whoever mixes them"


def test_an_export_of_another_tokenizer_is_refused_before_anything_starts(family: Family) -> None:
    from transformers import AutoTokenizer

    from raylm.model.build import build_model

    own = data_of(family.folder / "own", TEXT, 290)
    export = family.folder / "export-290"
    job = family.job("heir", init_from__path=str(export), data__path=str(own))
    model = build_model(load_job(job).model, vocab_size=290, sequence_length=SEQUENCE, seed=5, eos_id=0)
    model.save_pretrained(export)  # type: ignore[operator]
    AutoTokenizer.from_pretrained(own / "tokenizer").save_pretrained(export)
    assert (export / "tokenizer.json").read_bytes() != (own / "tokenizer/tokenizer.json").read_bytes()
    family.check(job)

    other = family.job(
        "heir", init_from__path=str(export), data__path=str(data_of(family.folder / "o", OTHER_TEXT, 290))
    )
    with pytest.raises(
        CheckpointError, match=r"export-290 was trained with another tokenizer than the data has \(\w+\): id \d+ is '"
    ) as caught:
        family.check(other)
    assert "prepare.tokenizer.path" in str(caught.value.hint)
    # The first ids of both stand for the same tokens: bytes, and the merges learned first.
    larger = family.job("heir", init_from__path=str(export), data__path=str(data_of(family.folder / "l", TEXT, 295)))
    with pytest.raises(CheckpointError, match=r"has a vocabulary of 290, the job's model one of 295") as caught:
        family.check(larger)
    assert "prepare.tokenizer.path" in str(caught.value.hint)
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    changes: dict[str, Any] = {"model__preset": None, "model__config": config, "data__path": str(own)}
    with pytest.raises(CheckpointError, match=r"holds another model: .* is \d+x\d+ there and \d+x\d+ in the job's"):
        family.check(family.job("heir", init_from__path=str(export), **changes))


def dry_run(job: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["train", str(job), "--dry-run"])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_a_dry_run_refuses_what_the_command_refuses(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    parent = str(family.runs / "parent")
    code, out, _ = dry_run(family.job("dry", init_from__path=parent), capsys)
    assert (code, "starts from" in out) == (0, True)
    code, out, _ = dry_run(family.job("dry", init_from__path=parent, data__path=str(family.folder / "none")), capsys)
    assert (code, "no prepared data in" in out) == (3, True)

    data = str(data_of(family.folder / "dry-other", TEXT, 290))
    code, _, err = dry_run(family.job("dry", init_from__path=parent, data__path=data), capsys)
    assert (code, "another tokenizer" in err) == (5, True)
    manifest = family.folder / "dry-other/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 1}))
    code, _, err = dry_run(family.job("dry", data__path=data), capsys)
    assert (code, "has version 1" in err) == (3, True)
    code, _, err = dry_run(family.job("parent", steps=STEPS, stage=2, train__seed=99), capsys)
    assert (code, "another job" in err) == (2, True)
    assert not (family.runs / "dry").exists()


def test_a_run_that_was_copied_is_not_trained_where_it_was(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    copied = family.folder / "elsewhere" / "copy"
    shutil.copytree(family.runs / "parent", copied)
    assert dry_run(family.runs / "parent" / "run.yaml", capsys)[0] == 0
    with pytest.raises(SystemExit) as ended:
        main(["train", str(copied / "run.yaml")])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"lies in the run folder {copied}, but names {family.runs}/parent" in err
    flags = ["--set", f"storage={copied.parent}", "--set", "name=copy"]
    assert " ".join(flags) in err
    with pytest.raises(SystemExit) as ended:
        main(["train", str(copied / "run.yaml"), *flags, "--dry-run"])
    assert ended.value.code == 0
    assert f"{copied} (finished at step {STEPS}: nothing would be done" in capsys.readouterr().out


def test_what_cannot_be_a_parent_is_refused_before_anything_starts(family: Family) -> None:
    parent = str(family.runs / "parent")
    family.check(family.job("child", init_from__path=parent, optim__lr=5e-4, batch__sequences=12))
    with pytest.raises(CheckpointError, match="there is nothing at"):
        family.check(family.job("child", init_from__path=str(family.runs / "paren")))
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    narrower = family.job("child", init_from__path=parent, model__preset=None, model__config=config)
    with pytest.raises(CheckpointError, match=r"holds another model: .* is \d+x\d+ there and \d+x\d+ in the job's"):
        family.check(narrower)
    rows = RowFormat(SEQUENCE, VOCABULARY, "another", eos_id=0, group_rows=8)
    tokens = np.ones((48, SEQUENCE), dtype=np.int64)
    write_dataset(family.folder / "other", rows, tokens, tokens[:4])
    with pytest.raises(CheckpointError, match="another tokenizer"):
        family.check(family.job("child", init_from__path=parent, data__path=str(family.folder / "other")))
    with pytest.raises(ConfigError, match="the run's own folder"):
        family.check(family.job("self", init_from__path=str(family.runs / "self")))


def test_the_command_branches_on_ray(family: Family) -> None:
    job = family.job("commanded", init_from__path=str(family.runs / "parent"), workers__resources={}, **STILL)
    command = [*DRIVER, "train", str(job)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert family.checkpoint("commanded").state.parent is not None
