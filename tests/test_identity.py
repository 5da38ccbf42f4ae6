"""What makes two jobs the same run, and what a resumed run may change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raylm.config.job import Job
from raylm.config.load import parse_job
from raylm.config.optim import OptimSettings
from raylm.errors import CheckpointError, ConfigError
from raylm.run.identity import Identity, carried_over, check_same_run, differences, identity_of, parse_identity


def changed(old: Job, new: Job) -> list[str]:
    """The settings that differ and may not, once the old run's identity was read back from its file."""
    then = parse_identity(identity_of(old, []).to_json(), "identity.json")
    return differences(then, identity_of(new, []))


def test_a_resumed_run_may_change_its_workers_but_not_its_order() -> None:
    old = parse_job("batch: {sequences: 64}", origin="a")
    grown = parse_job("batch: {sequences: 64}\nworkers: {max: 4}\nzero: {stage: 3}\ntrain: {steps: 900}", origin="b")
    assert changed(old, grown) == []
    other = parse_job("batch: {sequences: 32}\ntrain: {seed: 3}\noptim: {lr: 1}", origin="c")
    assert changed(old, other) == [
        "batch.sequences: 64 in the run, now 32",
        "optim.lr: 0.0003 in the run, now 1.0",
        "train.seed: 0 in the run, now 3",
    ]


def test_data_may_move_but_its_mixture_may_not_change() -> None:
    old = parse_job("data: {mixture: [{path: a}, {path: b}]}", origin="a")
    moved = parse_job("data: {mixture: [{path: s3://x/a}, {path: b}]}", origin="b")
    assert changed(old, moved) == []
    mixed = parse_job("data: {mixture: [{path: a, weight: 2}, {path: b}]}", origin="c")
    assert changed(old, mixed) == ["data.mixture.0.weight: 1.0 in the run, now 2.0"]
    fewer = parse_job("data: {mixture: [{path: a}]}", origin="d")
    assert "data.mixture.1.weight: 1.0 in the run, now None" in changed(old, fewer)


def test_the_identity_of_a_job_is_pinned() -> None:
    # A run must resume after an upgrade: keys and digest of a job that did not change may never change.
    job = parse_job("model: {preset: tiny}\ndata: {mixture: [{path: a}, {path: b, weight: 2}]}", origin="a")
    identity = identity_of(job, [])
    assert list(identity.order) == [
        "batch.sequences",
        "batch.micro_batch",
        "data.chunk_rows",
        "data.window_chunks",
        "train.seed",
        "data.mixture.0.weight",
        "data.mixture.0.weight_schedule",
        "data.mixture.1.weight",
        "data.mixture.1.weight_schedule",
    ]
    assert identity.fingerprint == "ce0d3bcbd2a2fe2a"


def test_every_setting_of_the_optimizer_is_part_of_it() -> None:
    assert {key.removeprefix("optim.") for key in identity_of(Job(), []).optimizer} == set(OptimSettings.model_fields)


def test_a_model_folder_may_move_but_not_change(tmp_path: Path) -> None:
    def job(folder: str) -> Job:
        return Job.model_validate({"model": {"path": str(tmp_path / folder)}})

    for folder, text in (("a", "{}"), ("b", "{}"), ("c", '{"layers": 2}')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(text)
        (tmp_path / folder / "model.safetensors").write_bytes(b"12345678")
    assert changed(job("a"), job("b")) == []
    assert [line.split(":")[0] for line in changed(job("a"), job("c"))] == ["model.path"]
    (tmp_path / "b" / "model.safetensors").write_bytes(b"1234")
    assert [line.split(":")[0] for line in changed(job("a"), job("b"))] == ["model.path"]
    # What is not there cannot be compared: checkpoints hold all of it, and a new run needs it and says so.
    assert changed(job("a"), job("nowhere")) == []
    assert changed(job("nowhere"), job("a")) == []
    assert carried_over(identity_of(job("a"), []), identity_of(job("nowhere"), [])) == identity_of(job("a"), [])
    assert [line.split(":")[0] for line in changed(Job(), job("nowhere"))] == ["model.path"]


def test_other_data_is_refused_unless_it_is_allowed_and_other_settings_always() -> None:
    then = Identity(data="one", order={"train.seed": 1}, model={}, optimizer={"optim.lr": 1.0})
    check_same_run(then, then, url="run")
    moved = replace(then, data="two")
    with pytest.raises(CheckpointError, match="the data changed since run: fingerprint one then, two now"):
        check_same_run(then, moved, url="run")
    check_same_run(then, moved, url="run", allow_changed_data=True)
    faster = replace(moved, optimizer={"optim.lr": 2.0})
    with pytest.raises(ConfigError, match=r"another job: optim.lr: 1.0 in the run, now 2.0") as caught:
        check_same_run(then, faster, url="run", allow_changed_data=True)
    assert "init_from" in str(caught.value.hint)


def test_what_is_no_identity_is_one_error() -> None:
    with pytest.raises(ConfigError, match=r"x/identity.json does not say which run it is of: order is missing"):
        parse_identity(b'{"data": "a", "model": {}, "optimizer": {}}', "x/identity.json")
