"""One job at many sizes: the same losses, the same sequences, each once, whatever comes and goes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raylm.errors import StorageError
from raylm.run.folder import RunFolder
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import Action, Outcome, read_outcome, run_elastic
from raylm.testing.ranks import Ranks

ROWS, STEPS = 480, 32
EPOCH_STEPS = ROWS // 24
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("elastic") / "data", rows=ROWS)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    members = Ranks(4)
    yield members
    members.close()


@pytest.fixture(scope="module")
def reference(ranks: Ranks, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One worker, uninterrupted."""
    return train(ranks, 1, tmp_path_factory.mktemp("reference"), data)


def train(ranks: Ranks, size: int, folder: Path, data: Path, **changes: Any) -> Outcome:
    """The job on `size` processes that live already; without Ray."""
    settings = job_settings(folder / "runs", data, **{"name": "run", "steps": STEPS, "workers__max": 4, **changes})
    job = write_job(folder, settings)
    ranks.run_bare(train_rank, size, str(job), seconds=240)
    return read_outcome(folder / "runs" / "run")


def train_rank(rank: int, size: int, address: str, job_file: str) -> None:
    """One rank of a run: rank 0 claims the fence, the others know its number from the folder they share."""
    import time

    from raylm.checkpoint.save import claim_fence, newest_fence
    from raylm.config.load import load_job
    from raylm.coordination.contract import Generation, Member, SilentCoordination
    from raylm.coordination.coordinator import Coordinator
    from raylm.train.sources import publish
    from raylm.train.worker import work

    job = load_job(job_file)
    run = RunFolder.of(job)
    note = Path(job_file).with_suffix(f".{address.rpartition(':')[2]}")
    if rank == 0:
        publish(job, run)
        coordinator = Coordinator(run, audit=True, claim=lambda: claim_fence(run.checkpoints))
        generation = coordinator.begin(size)
        note.write_text(str(generation))
        work(job, Member(0, size, generation, address), coordinator)
        coordinator.close()
        return
    while not note.exists() or not note.read_text():
        time.sleep(0.01)
    work(job, Member(rank, size, Generation(newest_fence(run.checkpoints)), address), SilentCoordination())


def assert_same_run(outcome: Outcome, reference: Outcome, tolerance: float = TOLERANCE) -> None:
    """Losses agree step by step, and the tables of what was trained on are identical."""
    assert [line["step"] for line in outcome.metrics] == [line["step"] for line in reference.metrics]
    differences = [abs(a - b) for a, b in zip(outcome.losses, reference.losses, strict=True)]
    assert max(differences) <= tolerance, differences
    assert outcome.audit_table() == reference.audit_table()
    for event, other in zip(outcome.of("evaluated"), reference.of("evaluated"), strict=True):
        assert abs(event["held_out_loss"] - other["held_out_loss"]) <= tolerance


def test_the_reference_learns_and_sees_every_sequence_of_the_epoch_once(reference: Outcome) -> None:
    assert reference.losses[-1] < reference.losses[0] - 0.3
    first_epoch = Counter(row for line in reference.audit for _, row, epoch in line["rows"] if epoch == 0)
    assert first_epoch == Counter(range(ROWS))
    assert {line["step"] for line in reference.audit if any(epoch for *_, epoch in line["rows"])} == set(
        range(EPOCH_STEPS + 1, STEPS + 1)
    )


DEFAULT_SIZES = [(2, 1), (3, 1), (4, 3), (3, 0), (2, 2)]


@pytest.mark.parametrize(("size", "stage"), DEFAULT_SIZES)
def test_the_run_is_the_same_at_any_size(
    ranks: Ranks, data: Path, reference: Outcome, tmp_path: Path, size: int, stage: int
) -> None:
    assert_same_run(train(ranks, size, tmp_path, data, stage=stage), reference)


@pytest.mark.sweep
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_run_is_the_same_at_every_size_and_stage(
    ranks: Ranks, data: Path, reference: Outcome, tmp_path: Path, size: int, stage: int
) -> None:
    assert_same_run(train(ranks, size, tmp_path, data, stage=stage), reference)


def test_bf16_differs_by_no_more_than_the_worker_count_does(ranks: Ranks, data: Path, tmp_path: Path) -> None:
    """A resume at another size may not differ more from one worker than twice what the size alone does."""
    small = {"model__dtype": "bf16", "steps": 12, "batch__sequences": 8}  # bf16 is slow on a CPU
    one = train(ranks, 1, tmp_path / "one", data, **small)
    two = train(ranks, 2, tmp_path / "two", data, **small)
    resumed = stop_and_go_on(ranks, tmp_path / "resumed", data, sizes=(2, 3), at=5, **small)
    alone = max(abs(a - b) for a, b in zip(two.losses, one.losses, strict=True))
    both = max(abs(a - b) for a, b in zip(resumed.losses, one.losses, strict=True))
    assert both <= 2 * max(alone, 1e-3)
    assert resumed.audit_table() == one.audit_table()


def stop_and_go_on(
    ranks: Ranks, folder: Path, data: Path, *, sizes: tuple[int, int], at: int = 15, **changes: Any
) -> Outcome:
    """Train to a checkpoint at one size, throw away what came after it, and finish at another size."""
    settings = job_settings(
        folder / "runs", data, **{"name": "run", "steps": STEPS, "workers__max": 4, "checkpoint__keep": 9, **changes}
    )
    job = write_job(folder, settings)
    ranks.run_bare(train_rank, sizes[0], str(job), seconds=240)
    for step in (folder / "runs" / "run" / "checkpoints").glob("step-*"):
        if int(step.name.removeprefix("step-")) > at:
            (step / "manifest.json").unlink()
    ranks.run_bare(train_rank, sizes[1], str(job), seconds=240)
    return read_outcome(folder / "runs" / "run")


@pytest.mark.parametrize(("sizes", "stage"), [((2, 3), 1), ((3, 1), 3)])
def test_resuming_at_another_size_goes_on_as_if_nothing_had_happened(
    ranks: Ranks, data: Path, reference: Outcome, tmp_path: Path, sizes: tuple[int, int], stage: int
) -> None:
    outcome = stop_and_go_on(ranks, tmp_path, data, sizes=sizes, stage=stage)
    assert [event["step"] for event in outcome.of("resumed")] == [15]
    # The evaluations of replayed steps stand twice in the events; the metrics hold each step once.
    outcome.events[:] = [e for e in outcome.events if e["event"] != "evaluated"]
    reference_events = Outcome(
        reference.metrics, [e for e in reference.events if e["event"] != "evaluated"], reference.audit, 0
    )
    assert_same_run(outcome, reference_events)


def test_another_seed_is_another_run(ranks: Ranks, data: Path, reference: Outcome, tmp_path: Path) -> None:
    """The control: what assert_same_run compares does differ when the order of the data does."""
    other = train(ranks, 2, tmp_path, data, train__seed=8)
    with pytest.raises(AssertionError):
        assert_same_run(other, reference)
    assert other.audit_table() != reference.audit_table()


# Long enough at any speed of the machine for nodes to join while it trains.
LONG: dict[str, Any] = {"steps": 64, "batch__sequences": 48}
ALL_AT_ONCE = [
    Action(6, "kill", workers=2),
    Action(7, "add", workers=1),
    Action(7, "add"),
    Action(10, "drain", workers=3),
    Action(12, "driver", workers=2),
]


@pytest.fixture(scope="module")
def long_reference(ranks: Ranks, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One worker, uninterrupted, for the runs that nodes join."""
    return train(ranks, 1, tmp_path_factory.mktemp("long"), data, **LONG)


def elastic(data: Path, folder: Path, actions: list[Action], *, slots: int = 2, **changes: Any) -> Outcome:
    settings = job_settings(folder / "runs", data, **{"name": "run", **LONG, **changes})
    settings["workers"].setdefault("copy_every_steps", 1)  # on a busy machine copies are dear, and then made less often
    return run_elastic(write_job(folder, settings), actions, slots=slots)


def one_group_after_another(
    rank: int,
    size: int,
    address: str,
    job_file: str,
    sizes: list[int],
    memory: bool = True,
    refused: int = 0,
    lost: bool = False,
) -> list[int]:
    """A living process in groups of these sizes, where it has a rank there; returns the step at which each ended.

    Each group begins with the state that the one before left in memory, or in storage where there is too little memory.
    refused: the claim for the right to commit, counted from 1, that storage does not answer. lost: nobody holds the
    state of a group that has ended.
    """
    import time

    from raylm.config.load import load_job
    from raylm.coordination.contract import Coordination, Generation, Member, Reason, SilentCoordination
    from raylm.coordination.coordinator import Coordinator
    from raylm.coordination.rounds import Held
    from raylm.train import host_memory
    from raylm.train.context import GroupEnded, Tenure
    from raylm.train.host_memory import keep_snapshots
    from raylm.train.sources import publish
    from raylm.train.worker import Phases, open_run, prepare_process, train_in_group

    if not memory:
        host_memory.available_bytes = lambda: 1000  # type: ignore[assignment]
    job = load_job(job_file)
    run = RunFolder.of(job)
    tenure: Tenure

    class Impatient(Coordinator):
        """Wants another group two steps after each start, but for the last."""

        def started(self, generation: Generation, **how: Any) -> None:
            super().started(generation, **how)
            self.began_at = self.status().step

        def report_metric(self, generation: Generation, metrics: Any) -> None:
            super().report_metric(generation, metrics)
            if metrics.step == self.began_at + 2 and generation < len(sizes):
                tenure.wish = Reason.REGROUP

    claims = itertools.count(1)

    def claim() -> int:
        number = next(claims)
        if number == refused:
            raise StorageError("storage is away")
        return number

    coordinator = Impatient(run, audit=True, claim=claim) if rank == 0 else None
    coordination: Coordination = coordinator or SilentCoordination()
    if rank == 0:
        publish(job, run)
    prepare_process(job)
    context = open_run(job, coordination)
    ended_at = []
    resume: Held | None = None
    for number, members in enumerate(sizes, start=1):
        note = Path(job_file).with_suffix(f".{number}")
        if coordinator is not None:
            assert coordinator.begin(members) == number
            note.touch()
        while not note.exists():
            time.sleep(0.01)
        if rank < members:
            place = Member(
                rank, members, Generation(number), address, resume=resume, told=3 * (number - 1), evaluated=1000
            )
            tenure = Tenure(place)
            try:
                train_in_group(context, tenure, Phases())
            except GroupEnded:
                assert coordinator is None or not coordinator.over
                if coordinator is not None:
                    coordinator.lost(failure=False)
            keep_snapshots(context, tenure.keeper)
            ended_at.append(context.progress.step)
        # Told two steps after the start, a group ends at the third: the wish is read at the next boundary.
        step = 3 * number
        resume = Held(number, step, members, frozenset(range(members))) if memory and not lost else None
    if coordinator is not None:
        coordinator.close()
    return ended_at


def test_a_process_may_be_a_member_of_one_group_after_another(
    ranks: Ranks, data: Path, long_reference: Outcome, tmp_path: Path
) -> None:
    """2 → 1 → 2 members: engine and group are built anew, the process and what it knows of the run go on."""
    settings = job_settings(tmp_path / "runs", data, **{"name": "run", **LONG})
    job = write_job(tmp_path, settings)
    first, second = ranks.run_bare(one_group_after_another, 2, str(job), [2, 1, 2], seconds=240)
    outcome = read_outcome(tmp_path / "runs" / "run")
    assert_same_losses_and_sequences(outcome, long_reference)
    assert outcome.sizes == [2, 1, 2]
    assert [event["steps_lost"] for event in outcome.of("resumed")] == [0, 0]
    assert (len(first), len(second)) == (3, 2)
    assert first[-1] == second[-1] == LONG["steps"]


def test_with_too_little_memory_for_copies_a_regroup_goes_over_storage(
    ranks: Ranks, data: Path, long_reference: Outcome, tmp_path: Path
) -> None:
    settings = job_settings(tmp_path / "runs", data, **{"name": "run", **LONG, "checkpoint__every_steps": 1000})
    ranks.run_bare(one_group_after_another, 2, str(write_job(tmp_path, settings)), [2, 1, 2], False, seconds=240)
    outcome = read_outcome(tmp_path / "runs" / "run")
    assert_same_losses_and_sequences(outcome, long_reference)
    assert [event["steps_lost"] for event in outcome.of("resumed")] == [0, 0]
    assert all(event["checkpoint"] for event in outcome.of("resumed"))
    assert "copies of the state need" in outcome.of("warned")[0]["message"]
    ranks.close()  # they were told that memory is little


def test_a_state_that_is_lost_before_the_first_checkpoint_is_trained_again_from_the_beginning(
    ranks: Ranks, data: Path, long_reference: Outcome, tmp_path: Path
) -> None:
    """The processes live and have trained; what they trained is nowhere."""
    settings = job_settings(tmp_path / "runs", data, **{"name": "run", **LONG, "checkpoint__every_steps": 1000})
    job = str(write_job(tmp_path, settings))
    ranks.run_bare(one_group_after_another, 2, job, [2, 1, 2], True, 0, True, seconds=240)
    outcome = read_outcome(tmp_path / "runs" / "run")
    assert_same_losses_and_sequences(outcome, long_reference)
    assert [event["steps_lost"] for event in outcome.of("resumed")] == [3, 3]


def test_a_generation_that_cannot_claim_the_right_to_commit_trains_on(
    ranks: Ranks, data: Path, long_reference: Outcome, tmp_path: Path
) -> None:
    """The first save fails in both of its generation's ranks, and the next one claims anew."""
    settings = job_settings(tmp_path / "runs", data, **{"name": "run", **LONG, "checkpoint__every_steps": 2})
    job = str(write_job(tmp_path, settings))
    ranks.run_bare(one_group_after_another, 2, job, [2, 1, 2], True, 2, seconds=240)
    outcome = read_outcome(tmp_path / "runs" / "run")
    assert_same_losses_and_sequences(outcome, long_reference)
    assert [event["message"] for event in outcome.of("checkpoint_failed")] == ["storage is away"]
    assert outcome.of("checkpoint_committed")[-1]["step"] == LONG["steps"]


def test_nodes_and_drivers_come_and_go_and_the_run_is_the_same(
    data: Path, long_reference: Outcome, tmp_path: Path
) -> None:
    """2 → 1 (node killed) → 3 (two join) → 2 (drained) workers, then the driver is killed and started again."""
    outcome = elastic(data, tmp_path, ALL_AT_ONCE)
    assert_same_losses_and_sequences(outcome, long_reference)
    assert outcome.sizes[:2] == [2, 1]
    assert 3 in outcome.sizes
    (lost,) = outcome.of("worker_lost")
    assert len(lost["ranks"]) == 1, lost  # the one that was killed, and not those that lost it
    assert len(outcome.of("preemption_notice")) == 1
    after = {event["step"]: event for event in outcome.of("resumed")}
    noticed = outcome.of("preemption_notice")[0]
    used = next(event for event in outcome.of("resumed") if event["time"] > noticed["time"])
    assert used["steps_lost"] == 0, after
    grown = [e for e in outcome.of("resized") if e["workers"] > e["workers_before"]]
    assert grown
    for event in grown:
        back = next(e for e in outcome.of("resumed") if e["time"] > event["time"])
        assert back["steps_lost"] == 0
    killed = next(e for e in outcome.of("resumed") if e["time"] > outcome.of("worker_lost")[0]["time"])
    assert killed["steps_lost"] == 0


def assert_same_losses_and_sequences(outcome: Outcome, reference: Outcome) -> None:
    assert [line["step"] for line in outcome.metrics] == [line["step"] for line in reference.metrics]
    differences = [abs(a - b) for a, b in zip(outcome.losses, reference.losses, strict=True)]
    assert max(differences) <= TOLERANCE, differences
    assert outcome.audit_table() == reference.audit_table()


@pytest.mark.sweep
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_nodes_and_drivers_come_and_go_at_every_stage(
    data: Path, long_reference: Outcome, tmp_path: Path, stage: int
) -> None:
    assert_same_losses_and_sequences(elastic(data, tmp_path, ALL_AT_ONCE, stage=stage), long_reference)


@pytest.mark.sweep
@pytest.mark.parametrize("what", ["kill_worker", "freeze"])
def test_a_lost_worker_and_a_frozen_node_cost_no_step(
    data: Path, long_reference: Outcome, tmp_path: Path, what: str
) -> None:
    outcome = elastic(data, tmp_path, [Action(8, what, workers=2)])
    assert_same_losses_and_sequences(outcome, long_reference)
    assert len(outcome.of("worker_lost")) == 1
    assert {event["steps_lost"] for event in outcome.of("resumed")} == {0}
