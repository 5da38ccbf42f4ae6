"""Tasks of a preparation on Ray: what they take up, what happens to lost ones, and how errors arrive."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_prepare import job

from raylm.config.job import Job
from raylm.config.prepare.steps import OPERATORS
from raylm.errors import ConfigError, DataError, RaylmError
from raylm.prep.operators import Resources
from raylm.prep.operators.resources import most_of
from raylm.prep.passes import passes_of, resources_of
from raylm.prep.prepare import prepare
from raylm.prep.tasks import on_ray


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of two CPUs, without GPU, with two tapes."""
    import ray

    ray.init(address="local", num_cpus=2, num_gpus=0, resources={"tape": 2}, include_dashboard=False)
    yield ray
    ray.shutdown()


def results(task: Any, items: list[Any], resources: Resources | None = None, **settings: Any) -> list[Any]:
    with on_ray(Job.model_validate({"prepare": settings})) as run:
        return sorted(json.loads(answer) for answer in run(task, items, resources))


def test_what_a_task_asks_for_is_what_it_gets(ray: Any) -> None:
    def task(item: int) -> str:
        import ray

        assigned = ray.get_runtime_context().get_assigned_resources()
        return json.dumps([item, assigned["CPU"], assigned.get("tape", 0), assigned.get("memory", 0)])

    assert results(task, [7]) == [[7, 1, 0, 0]]
    wanted = Resources(cpus=0.5, memory_bytes=10_000_000, custom={"tape": 2})
    assert results(task, [1, 2, 3], wanted) == [[number, 0.5, 2, 10_000_000] for number in (1, 2, 3)]


def test_as_many_run_at_once_as_the_job_says(ray: Any, tmp_path: Path) -> None:
    def task(item: int) -> str:
        (tmp_path / f"{item}").touch()
        time.sleep(0.2)
        at_once = len(list(tmp_path.iterdir()))
        (tmp_path / f"{item}").unlink()
        return json.dumps(at_once)

    assert set(results(task, list(range(4)), workers=1)) == {1}


def test_a_task_whose_process_is_lost_is_done_again(ray: Any, tmp_path: Path) -> None:
    def task(item: int) -> str:
        before = tmp_path / f"{item}"
        if item % 2 and not before.exists():
            before.touch()
            os._exit(1)
        return json.dumps(item)

    assert results(task, list(range(6))) == list(range(6))
    assert len(list(tmp_path.iterdir())) == 3


def test_an_error_for_people_arrives_as_it_was_raised(ray: Any) -> None:
    def task(item: int) -> str:
        raise DataError(f"x.txt line {item} is broken", hint="mend it")

    with pytest.raises(DataError, match=r"x\.txt line 3 is broken") as caught:
        results(task, [3])
    assert caught.value.hint == "mend it"


def test_other_errors_keep_their_trace(ray: Any) -> None:
    def task(item: int) -> str:
        return json.dumps([][item])

    with pytest.raises(IndexError):
        results(task, [3])


@pytest.mark.parametrize(
    ("resources", "what"),
    [(Resources(gpus=1), "1 CPU, 1 GPU"), (Resources(cpus=3), "3 CPU"), (Resources(custom={"tape": 3}), "3 tape")],
)
def test_what_no_node_has_is_one_error_and_not_a_wait(ray: Any, resources: Resources, what: str) -> None:
    with pytest.raises(ConfigError, match=f"a task of this preparation needs .*{what}, and no node has that"):
        results(str, [1], resources)


def test_a_step_for_a_gpu_is_refused_before_the_first_unit_of_the_first_pass(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = replace(OPERATORS.get("normalize"), resources=Resources(gpus=0.5))
    monkeypatch.setitem(OPERATORS._entries, "normalize", kind)
    (tmp_path / "x.txt").write_text("text")
    wanted = job(tmp_path / "data", [{"glob": f"{tmp_path}/x.txt"}], steps=["exact_duplicates", "normalize"])
    with pytest.raises(RaylmError, match=r"needs 1 CPU, 0\.5 GPU, and no node has that: 2 CPU, 0 GPU"):
        prepare(wanted)
    assert not (tmp_path / "data/_work/pass-0").exists()


def test_a_pass_takes_the_most_that_one_of_its_operators_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        "normalize": Resources(memory_bytes=5, custom={"tape": 1}),
        "language": Resources(cpus=2, memory_bytes=3),
        "exact_duplicates": Resources(gpus=0.5),
    }
    for name, resources in wanted.items():
        monkeypatch.setitem(OPERATORS._entries, name, replace(OPERATORS.get(name), resources=resources))
    steps = Job.model_validate({"prepare": {"steps": ["normalize", "exact_duplicates", "language", "fairness"]}})
    first, last = passes_of(steps.prepare.steps)
    assert resources_of(first) == Resources(1, 0.5, 5, {"tape": 1})
    assert resources_of(last) == Resources(2, 0.5, 3)
    assert most_of([]) == Resources()


def test_only_a_model_of_toxicity_takes_a_gpu(tmp_path: Path) -> None:
    steps = [{"toxicity": {"gpus": 1}}, {"toxicity": {"gpus": 1, "model": str(tmp_path)}}]
    for step, gpus in zip(steps, (0, 1), strict=True):
        (only,) = passes_of(Job.model_validate({"prepare": {"steps": [step]}}).prepare.steps)
        assert resources_of(only).gpus == gpus
