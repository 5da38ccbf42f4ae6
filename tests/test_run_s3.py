"""A run whose shards and run folder stand on S3: the same losses, a resume, and files that are all there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raylm.checkpoint.restore import newest
from raylm.config.job import Job
from raylm.run.folder import RunFolder
from raylm.run.lines import read_lines
from raylm.storage import StoragePath
from raylm.testing.datasets import job_settings, make_data
from raylm.testing.servers import S3Server
from raylm.train.without_ray import alone


def upload(folder: Path, to: StoragePath) -> None:
    for file in sorted(folder.iterdir()):
        (to / file.name).write_bytes(file.read_bytes())


def test_a_run_on_s3_is_the_run_on_disk_and_resumes(seaweed: S3Server, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", rows=96)
    # A constant rate, so that a run stopped early and extended has the same losses.
    base = job_settings(
        tmp_path / "runs", data, name="run", steps=6, checkpoint__every_steps=3, optim__schedule="constant"
    )
    local = Job.model_validate(base)
    alone(local)

    bucket = seaweed.bucket().url
    remote = Job.model_validate(
        {
            **base,
            "storage": f"{bucket}/runs",
            "object_store": {"endpoint": seaweed.endpoint, "region": "us-east-1"},
            "data": {**base["data"], "path": f"{bucket}/data"},
        }
    )
    upload(data, StoragePath(f"{bucket}/data", remote.object_store.connection()))
    alone(with_steps(remote, 4))
    alone(remote)

    run = StoragePath(remote.run_url, remote.object_store.connection())
    found = newest(run / "checkpoints")
    assert found is not None
    assert found.step == 6
    ours, theirs = read_lines(RunFolder(run).metrics), read_lines(RunFolder.of(local).metrics)
    assert [line["step"] for line in ours] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    events = [event["event"] for event in read_lines(RunFolder(run).events)]
    assert "resumed" in events
    assert events[-1] == "finished"
    assert len(read_lines(RunFolder(run).audit)) == 6
    assert "access_key" not in (run / "run.yaml").read_text()


def with_steps(job: Job, steps: int) -> Job:
    values: dict[str, Any] = job.model_dump(mode="json")
    values["train"]["steps"] = steps
    return Job.model_validate(values)
