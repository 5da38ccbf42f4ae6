"""Checkpoints on simulated ranks: any partition to any other, commit by manifest, damage, retention."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from raylm.checkpoint import manifest, parts, restore, save
from raylm.checkpoint.chunks import Chunk
from raylm.checkpoint.restore import committed, fill, newest, open_checkpoint, reading, steps_being_read, weights
from raylm.checkpoint.retention import apply_retention
from raylm.checkpoint.save import SaveRequest, StaleFence, begin_save, claim_fence
from raylm.checkpoint.state import tied_names
from raylm.errors import CheckpointError, StorageError
from raylm.storage import StoragePath
from raylm.testing.checkpoints import run_state

Tensors = dict[tuple[str, str], torch.Tensor]
Cuts = list[list[float]]


def tensors_of(step: int) -> Tensors:
    """A small model's state, every kind and several dtypes, that only this step has."""
    made = torch.Generator().manual_seed(step)
    state: Tensors = {}
    for name, shape in (("embed.weight", (17, 8)), ("norm.weight", (8,)), ("up.weight", (8, 31))):
        for kind in ("master", "exp_avg", "exp_avg_sq"):
            state[kind, name] = torch.randn(shape, generator=made)
    state["frozen", "base.weight"] = torch.randn(5, 3, generator=made).to(torch.bfloat16)
    state["frozen", "codes"] = torch.randint(0, 255, (7,), generator=made, dtype=torch.uint8)
    state["buffer", "seen"] = torch.tensor(step)
    state["buffer", "mask"] = torch.rand(9, generator=made) > 0.5
    state["buffer", "inv_freq"] = torch.rand(4, generator=made)
    return state


def whole(kind: str, name: str, tensor: torch.Tensor) -> Chunk:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Chunk(name, kind, 0, tensor.numel(), dtype, tensor.numel(), tuple(tensor.shape))  # type: ignore[arg-type]


def shared_out(state: Tensors, cuts: Cuts, ranks: int) -> list[list[tuple[Chunk, torch.Tensor]]]:
    """Cut each tensor where told, as shares of its length, and deal the pieces to the ranks in turn."""
    held: list[list[tuple[Chunk, torch.Tensor]]] = [[] for _ in range(ranks)]
    dealt = 0
    for number, ((kind, name), tensor) in enumerate(sorted(state.items())):
        one = whole(kind, name, tensor)
        marks = sorted({0, one.numel, *(int(cut * one.numel) for cut in cuts[number % len(cuts)])})
        for start, stop in pairwise(marks):
            piece = Chunk(name, one.kind, start, stop - start, one.dtype, one.numel, one.shape)
            held[dealt % ranks].append((piece, tensor.reshape(-1)[start:stop]))
            dealt += 1
    return held


def save_all(
    folder: StoragePath, step: int, *, fence: int = 1, ranks: int = 2, cuts: Cuts | None = None, **changes: object
) -> list[save.Saved]:
    """Save a step from ranks that run one after the other in this process."""
    held = shared_out(tensors_of(step), cuts or [[0.3, 0.5]], ranks)
    pending = [
        begin_save(
            SaveRequest(
                folder,
                run_state(step, **changes),
                fence=fence,
                rank=rank,
                world_size=ranks,
                scalars={"step": step, "beta": 0.1},
                commit_timeout_seconds=60,
            ),
            held[rank],
        )
        for rank in reversed(range(ranks))
    ]
    return [one.wait(60) for one in reversed(pending)]


def loaded(
    place: StoragePath | restore.CheckpointInfo, like: Tensors, *, ranks: int = 1, cuts: Cuts | None = None
) -> Tensors:
    """Fill fresh tensors of the same shapes, each rank its share."""
    checkpoint = open_checkpoint(place)
    state = {key: torch.zeros_like(tensor) for key, tensor in like.items()}
    for wanted in shared_out(state, cuts or [[]], ranks):
        fill(checkpoint, wanted)
    return state


def same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def folder(tmp_path: Path) -> StoragePath:
    return StoragePath(str(tmp_path / "checkpoints"))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and requests so small that a toy state needs many of each."""
    monkeypatch.setattr(save, "BLOCK_BYTES", 64)
    monkeypatch.setattr(parts, "BLOCK_BYTES", 64)
    monkeypatch.setattr(parts, "WRITE_BYTES", 100)
    monkeypatch.setattr(restore, "REQUEST_BYTES", 200)
    monkeypatch.setattr(restore, "GAP_BYTES", 64)


cut_lists = st.lists(st.lists(st.floats(0, 1), max_size=4), min_size=1, max_size=4)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(saved=cut_lists, wanted=cut_lists, writers=st.integers(1, 5), readers=st.integers(1, 5))
def test_any_partition_loads_into_any_other(
    tmp_path_factory: pytest.TempPathFactory, saved: Cuts, wanted: Cuts, writers: int, readers: int
) -> None:
    folder = StoragePath(str(tmp_path_factory.mktemp("any")))
    results = save_all(folder, 3, ranks=writers, cuts=saved)
    assert [one.committed for one in results] == [True] + [False] * (writers - 1)
    found = newest(folder)
    assert found is not None
    assert same(loaded(found, tensors_of(3), ranks=readers, cuts=wanted), tensors_of(3))


def test_what_was_saved_beside_the_tensors_comes_back(folder: StoragePath) -> None:
    result = save_all(folder, 7, held_out_loss=2.5)[0]
    found = newest(folder)
    assert found is not None
    assert (found.step, found.world_size, found.scalars) == (7, 2, {"step": 7, "beta": 0.1})
    assert found.state == run_state(7, held_out_loss=2.5)
    assert found.bytes == result.checkpoint_bytes == sum(p.size() for p in folder.glob("**/*.safetensors"))


def test_a_tensor_of_many_requests_is_read_whole(folder: StoragePath) -> None:
    big = torch.arange(9_000_001, dtype=torch.int32).view(torch.float32)
    chunk = whole("master", "big", big)
    held = [(chunk, big), (whole("buffer", "odd", torch.tensor(True)), torch.tensor([True]))]
    begin_save(SaveRequest(folder, run_state(1), fence=1, rank=0, world_size=1), held).wait(60)
    out = torch.zeros_like(big)
    fill(open_checkpoint(folder / "step-000000001"), [(chunk, out)])
    assert torch.equal(out.view(torch.int32), big.view(torch.int32))


def test_parts_are_plain_safetensors_and_json_and_nothing_is_pickled(folder: StoragePath) -> None:
    save_all(folder, 1, ranks=3)
    files = folder.glob("**/*")
    assert {place.name.rsplit(".", 1)[-1] for place in files} == {"safetensors", "json"}
    elements = sum(
        tensor.numel() for place in files if "safetensors" in place.name for tensor in load_file(place.url).values()
    )
    assert elements == sum(tensor.numel() for tensor in tensors_of(1).values())
    for module in Path(save.__file__).parent.glob("*.py"):
        code = "\n".join(line for line in module.read_text().splitlines() if "import" in line or "load" in line)
        assert not re.search(r"import pickle|torch\.load|torch\.save|\.metadata\b", code), module


def test_the_training_may_go_on_while_a_save_is_written(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()
    real = StoragePath.write_parts

    def slow(self: StoragePath, parts: Iterator[memoryview]) -> int:
        started.set()
        assert go_on.wait(30)
        return real(self, parts)

    monkeypatch.setattr(StoragePath, "write_parts", slow)
    state = tensors_of(4)
    held = [(whole(kind, name, tensor), tensor.view(-1)) for (kind, name), tensor in state.items()]
    pending = begin_save(SaveRequest(folder, run_state(4), fence=1, rank=0, world_size=1), held)
    assert started.wait(30)
    assert not pending.done()
    with pytest.raises(TimeoutError):
        pending.wait(0.01)
    for tensor in state.values():  # the next step changes everything
        tensor.zero_()
    go_on.set()
    assert pending.wait(30).committed
    assert same(loaded(folder / "step-000000004", tensors_of(4)), tensors_of(4))


def test_a_synchronous_save_has_ended_when_it_returns(folder: StoragePath) -> None:
    held = [(whole("master", "w", torch.ones(3)), torch.ones(3))]
    pending = begin_save(SaveRequest(folder, run_state(1), fence=1, rank=0, world_size=1), held, asynchronous=False)
    assert pending.done()
    assert pending.wait(0).stall_seconds == pending.wait(0).total_seconds


def test_before_commit_runs_before_the_part_counts(folder: StoragePath) -> None:
    seen = []
    held = [(whole("master", "w", torch.ones(3)), torch.ones(3))]
    begin_save(
        SaveRequest(
            folder,
            run_state(1),
            fence=1,
            rank=0,
            world_size=1,
            before_commit=lambda: seen.append((newest(folder), len(folder.glob("**/*.json")))),
        ),
        held,
    ).wait(30)
    assert seen == [(None, 0)]


def test_without_every_part_nothing_is_committed(folder: StoragePath) -> None:
    save_all(folder, 1)
    held = shared_out(tensors_of(2), [[0.5]], 3)
    result = begin_save(
        SaveRequest(folder, run_state(2), fence=1, rank=0, world_size=3, commit_timeout_seconds=0.2), held[0]
    ).wait(30)
    assert not result.committed
    assert result.reason == "no part came from rank 1, 2"
    found = newest(folder)
    assert found is not None
    assert found.step == 1
    with pytest.raises(CheckpointError, match="holds no committed checkpoint"):
        open_checkpoint(folder / "step-000000002")


def test_a_save_that_was_given_up_is_not_committed_by_a_late_part(folder: StoragePath) -> None:
    held = shared_out(tensors_of(1), [[0.5]], 2)
    pending = begin_save(SaveRequest(folder, run_state(1), fence=1, rank=0, world_size=2), held[0])
    pending.abandon()
    assert pending.wait(30).reason == "no part came from rank 1"
    begin_save(SaveRequest(folder, run_state(1), fence=1, rank=1, world_size=2), held[1]).wait(30)
    assert newest(folder) is None


def test_parts_that_do_not_cover_the_state_are_never_committed(folder: StoragePath) -> None:
    chunk = Chunk("w", "master", 0, 4, "float32", 10, (10,))
    pending = begin_save(SaveRequest(folder, run_state(1), fence=1, rank=0, world_size=1), [(chunk, torch.ones(4))])
    with pytest.raises(CheckpointError, match=r"lack elements of master 'w' from 4 of 10"):
        pending.wait(30)
    assert newest(folder) is None


def test_each_claim_has_its_own_number(folder: StoragePath) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(claim_fence(folder))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 13))


def test_a_stale_fence_cannot_commit(folder: StoragePath) -> None:
    old = claim_fence(folder)
    new = claim_fence(folder)
    with pytest.raises(StaleFence, match=f"fence {old} may not commit .* fence {new} was claimed since"):
        save_all(folder, 5, fence=old)
    with pytest.raises(StaleFence):
        apply_retention(folder, fence=old, newest=1)
    assert newest(folder) is None
    assert save_all(folder, 5, fence=new)[0].committed


def test_a_stale_fence_stops_waiting_for_its_peers(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "FENCE_CHECK_SECONDS", 0.05)
    old = claim_fence(folder)
    held = [(whole("master", "w", torch.ones(3)), torch.ones(3))]
    pending = begin_save(SaveRequest(folder, run_state(1), fence=old, rank=0, world_size=2), held)
    claim_fence(folder)
    with pytest.raises(StaleFence):
        pending.wait(30)


def test_one_fence_cannot_save_two_states_of_a_step(folder: StoragePath) -> None:
    save_all(folder, 1)
    held = [(whole("master", "w", torch.ones(3)), torch.ones(3))]
    pending = begin_save(SaveRequest(folder, run_state(1), fence=1, rank=0, world_size=2), held)
    with pytest.raises(CheckpointError, match="fence 1 saved another state of step 1 already") as caught:
        pending.wait(30)
    assert "claim a new fence" in str(caught.value.hint)


def test_a_save_that_failed_on_one_rank_may_be_begun_again(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = shared_out(tensors_of(1), [[0.4]], 2)

    def begin(rank: int, timeout: float) -> save.PendingSave:
        return begin_save(
            SaveRequest(folder, run_state(1), fence=1, rank=rank, world_size=2, commit_timeout_seconds=timeout),
            state[rank],
        )

    assert not begin(0, 0.1).wait(30).committed
    first = folder.glob("**/*")
    writes: list[str] = []
    real = StoragePath.write_parts
    monkeypatch.setattr(StoragePath, "write_parts", lambda self, parts: writes.append(self.name) or real(self, parts))
    again = begin(0, 30)
    begin(1, 30).wait(30)
    assert again.wait(30).committed
    assert len(first) == 2
    assert writes == ["rank-00001-of-2.safetensors"]
    assert same(loaded(folder / "step-000000001", tensors_of(1)), tensors_of(1))


def test_a_step_that_another_fence_committed_counts(folder: StoragePath) -> None:
    save_all(folder, 1, fence=1, ranks=2)
    result = save_all(folder, 1, fence=2, ranks=3)[0]
    assert (result.committed, result.reason) == (True, "the step was committed already")
    assert same(loaded(folder / "step-000000001", tensors_of(1)), tensors_of(1))


def test_a_lost_answer_to_the_commit_is_no_failure(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    real = StoragePath.create_once

    def told_it_exists(self: StoragePath, data: bytes) -> bool:
        real(self, data)
        return False

    monkeypatch.setattr(StoragePath, "create_once", told_it_exists)
    result = save_all(folder, 1)[0]
    assert (result.committed, result.reason) == (True, "")
    assert [one.step for one in committed(folder)] == [1]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 not one of ours" * 40)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("rank-00001-of-2.safetensors", Path.unlink, "is missing"),
        ("rank-00001-of-2.safetensors", truncate, "is truncated: "),
        ("rank-00001-of-2.safetensors", flip, "fail their checksum"),
        ("rank-00001-of-2.safetensors", foreign, "checksum|truncated"),
        ("rank-00000-of-2.json", Path.unlink, "is missing"),
        ("rank-00000-of-2.json", truncate, "its checksum differs from the manifest's"),
        ("rank-00000-of-2.json", foreign, "its checksum differs from the manifest's"),
        ("manifest.json", truncate, "is not a checkpoint's manifest"),
        ("manifest.json", foreign, "is not a checkpoint's manifest"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(
    folder: StoragePath, name: str, harm: Callable[[Path], None], words: str
) -> None:
    save_all(folder, 1)
    save_all(folder, 2)
    path = next(Path(place.url) for place in (folder / "step-000000002").glob("**/*") if place.name == name)
    harm(path)
    with pytest.raises(CheckpointError, match=words) as caught:
        loaded(folder / "step-000000002", tensors_of(2))
    assert type(caught.value) is manifest.DamagedCheckpoint
    assert str(path) in caught.value.message
    assert "remove this checkpoint's folder to resume from the one before it" in str(caught.value.hint)
    assert same(loaded(folder / "step-000000001", tensors_of(1)), tensors_of(1))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("version", 99, "has version 99; this raylm reads version 2"),
        ("version", 1, "has version 1; this raylm reads version 2"),
        ("format", "zip", "format is 'zip'"),
        ("step", 3, "it is the manifest of step 3"),
        ("world_size", 5, "2 parts for 5 workers"),
        ("world_size", -1, "world_size is -1"),
        ("fence", "../../etc", "fence is '../../etc'"),
        ("scalars", {"step": "x"}, "scalar step is 'x'"),
        ("state", [1], "an object was expected"),
        ("state", {}, "state: progress is missing"),
        ("state", run_state(9).to_json(), "its state is of step 9"),
        ("state", {**run_state(2).to_json(), "zero_stage": "1"}, "state: zero_stage is '1'"),
    ],
)
def test_a_manifest_that_lies_is_refused(folder: StoragePath, key: str, value: object, words: str) -> None:
    save_all(folder, 2)
    place = folder / "step-000000002" / "manifest.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        newest(folder)
    if key == "version":  # the hint fits whoever reads it: train, evaluate, generate, export
        assert caught.value.hint == "use the raylm that wrote it; to train on, start under another name"


def test_an_index_whose_pieces_lie_outside_the_file_is_refused(folder: StoragePath) -> None:
    save_all(folder, 2, ranks=1)
    place = folder / "step-000000002" / "fence-1" / "rank-00000-of-1.json"
    body = json.loads(place.read_text())
    for row in (
        [*body["chunks"][0][:6], 10**12],
        [*body["chunks"][0][:4], 0, 10**9, 0],
        ["code", "x", "uint8", [1], 0, 1, 0],
    ):
        data = json.dumps({**body, "chunks": [row]}).encode()
        with pytest.raises(CheckpointError, match="is not the index of a checkpoint's part"):
            manifest.parse_part(data, place, step=2, fence=1, rank=0, world_size=1)


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (Chunk("absent", "master", 0, 2, "float32", 2, (2,)), "it is not in the checkpoint"),
        (Chunk("norm.weight", "master", 0, 9, "float32", 9, (9,)), r"shape \[8\] and is wanted with \[9\]"),
        (Chunk("codes", "frozen", 0, 7, "float32", 7, (7,)), "saved as uint8 and is wanted as float32"),
    ],
)
def test_another_models_checkpoint_is_refused(folder: StoragePath, chunk: Chunk, words: str) -> None:
    save_all(folder, 1)
    out = torch.zeros(chunk.length)
    with pytest.raises(CheckpointError, match=words) as caught:
        fill(open_checkpoint(folder / "step-000000001"), [(chunk, out)])
    assert "another model" in str(caught.value.hint)
    assert not out.any()


def test_an_upload_that_fails_for_good_says_so_and_commits_nothing(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(folder, 1)
    monkeypatch.setattr(save.time, "sleep", lambda seconds: None)
    real, calls = StoragePath.write_parts, []

    def fails_always(place: StoragePath, parts: Iterator[memoryview]) -> int:
        calls.append(place)
        raise StorageError(f"no space at {place.url}")

    monkeypatch.setattr(StoragePath, "write_parts", fails_always)
    held = [(whole("master", "w", torch.ones(3)), torch.ones(3))]
    pending = begin_save(SaveRequest(folder, run_state(2), fence=1, rank=0, world_size=1), held)
    with pytest.raises(StorageError, match="no space at"):
        pending.wait(30)
    assert len(calls) == save.WRITE_TRIALS
    monkeypatch.setattr(StoragePath, "write_parts", real)
    assert save_all(folder, 3)[0].committed, "the staging buffer was not given back"
    assert [one.step for one in committed(folder)] == [1, 3]


def test_a_broken_stream_is_written_again_from_its_start(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save.time, "sleep", lambda seconds: None)
    real, broken = StoragePath.write_parts, []

    def breaks_once(self: StoragePath, parts: Iterator[memoryview]) -> int:
        if not broken:
            broken.append(bytes(next(iter(parts))))
            raise StorageError("connection reset")
        return real(self, parts)

    monkeypatch.setattr(StoragePath, "write_parts", breaks_once)
    assert save_all(folder, 1)[0].committed
    assert same(loaded(folder / "step-000000001", tensors_of(1)), tensors_of(1))


def test_the_newest_and_the_best_survive_retention(folder: StoragePath) -> None:
    claim_fence(folder)
    for step, loss in ((1, 5.0), (2, 1.0), (3, 4.0), (4, 3.0), (5, None)):
        save_all(folder, step, held_out_loss=loss)
    assert apply_retention(folder, fence=1, newest=2, best=1) == [1, 3]
    assert [one.step for one in committed(folder)] == [2, 4, 5]
    assert not (folder / "step-000000001").exists()
    assert apply_retention(folder, fence=1, newest=0) == [2, 4]
    assert [one.step for one in committed(folder)] == [5]


def test_a_manifest_is_removed_before_its_parts(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_fence(folder)
    for step in (1, 2):
        save_all(folder, step)
    real = StoragePath.remove

    def dies_after_the_first(self: StoragePath) -> None:
        real(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(StoragePath, "remove", dies_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        apply_retention(folder, fence=1, newest=1)
    monkeypatch.undo()
    assert [one.step for one in committed(folder)] == [2]
    assert same(loaded(folder / "step-000000002", tensors_of(2)), tensors_of(2))
    apply_retention(folder, fence=claim_fence(folder), newest=1)
    assert not (folder / "step-000000001").exists()


def test_what_is_being_read_is_not_removed(folder: StoragePath) -> None:
    claim_fence(folder)
    for step in (1, 2, 3):
        save_all(folder, step)
    first = committed(folder)[0]
    with reading(first):
        assert steps_being_read(folder) == {1}
        assert apply_retention(folder, fence=1, newest=1) == [2]
        assert same(loaded(first, tensors_of(1)), tensors_of(1))
    assert apply_retention(folder, fence=1, newest=1) == [1]
    with pytest.raises(CheckpointError, match="was removed by the run's retention"), reading(first):
        pass


def test_a_reader_that_comes_during_removal_may_finish(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_fence(folder)
    for step in (1, 2):
        save_all(folder, step)
    checkpoint = open_checkpoint(committed(folder)[0])
    leased = reading(checkpoint.info)
    real = StoragePath.remove

    def reader_comes(self: StoragePath) -> None:
        if self.name == manifest.MANIFEST:
            leased.__enter__()
        real(self)

    monkeypatch.setattr(StoragePath, "remove", reader_comes)
    assert apply_retention(folder, fence=1, newest=1) == []
    state = tensors_of(1)
    out = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    fill(checkpoint, [(whole(*key, tensor), tensor.view(-1)) for key, tensor in out.items()])
    assert same(out, state)
    leased.__exit__(None, None, None)
    assert apply_retention(folder, fence=claim_fence(folder), newest=1) == []
    assert not (folder / "step-000000001").exists()


def test_a_lease_that_was_left_behind_runs_out(folder: StoragePath) -> None:
    save_all(folder, 1)
    lease = reading(committed(folder)[0], seconds=-1.0)
    lease.__enter__()
    assert steps_being_read(folder) == set()


def uncommitted(folder: StoragePath, step: int, fence: int) -> None:
    place = manifest.fence_folder(manifest.step_folder(folder, step), fence)
    (place / "rank-00000-of-2.safetensors").write_bytes(b"x" * 100)


def test_what_was_never_committed_goes_once_a_later_step_is(folder: StoragePath) -> None:
    fence = [claim_fence(folder) for _ in range(3)][-1]
    save_all(folder, 20, fence=fence)
    uncommitted(folder, 10, 1)
    uncommitted(folder, 15, fence)  # failed: a run saves one step after another
    uncommitted(folder, 20, 2)  # beside what was committed
    uncommitted(folder, 30, 1)  # above the newest: a frozen writer may yet commit it
    uncommitted(folder, 40, fence)  # on its way
    assert apply_retention(folder, fence=fence, newest=1) == []
    left = {place.url.removeprefix(folder.url + "/").rsplit("/", 1)[0] for place in folder.glob("step-*/fence-*/*")}
    assert left == {"step-000000020/fence-3", "step-000000030/fence-1", "step-000000040/fence-3"}


def test_retention_leaves_a_checkpoint_with_a_damaged_manifest_alone(folder: StoragePath) -> None:
    claim_fence(folder)
    for step in (1, 2, 3):
        save_all(folder, step)
    foreign(Path((folder / "step-000000001" / "manifest.json").url))
    assert apply_retention(folder, fence=1, newest=1) == [2]
    assert len((folder / "step-000000001").glob("**/*")) == 5


def test_no_secret_reaches_storage(folder: StoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-key")
    save_all(folder, 1, model_config={"data": "s3://bucket/data"})
    assert not any(b"hush" in place.read_bytes() for place in folder.glob("**/*"))
    for url in ("http://me:hush@host:9000/x", "https://x.blob/y?sv=1&sig=hush", "s3://hush@bucket/key"):
        with pytest.raises(
            CheckpointError, match=r"state.model_config.stores\[0\].endpoint would put credentials into"
        ) as caught:
            save_all(folder, 2, model_config={"stores": [{"endpoint": url}]})
        assert "hush" not in caught.value.message


def test_what_is_no_json_is_refused_before_anything_is_written(folder: StoragePath) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_all(folder, 1, model_config={"dtype": torch.float32})
    assert not folder.exists()
    assert save_all(folder, 2)[0].committed, "the staging buffer was not given back"


def test_a_rank_that_owns_nothing_saves_and_wants_nothing(folder: StoragePath) -> None:
    tensor = torch.arange(4.0)
    for rank, held in ((1, []), (0, [(whole("master", "w", tensor), tensor)])):
        last = begin_save(SaveRequest(folder, run_state(1), fence=0, rank=rank, world_size=2), held)
    assert last.wait(30).committed
    assert load_file((folder / "step-000000001/fence-0/rank-00001-of-2.safetensors").url) == {}
    fill(open_checkpoint(committed(folder)[0]), [])
    assert torch.equal(weights(open_checkpoint(committed(folder)[0]))["w"], tensor)


def test_weights_are_a_state_dict_of_the_dtype_asked_for(folder: StoragePath) -> None:
    save_all(folder, 1, tied={"head.weight": "embed.weight"})
    state = tensors_of(1)
    checkpoint = open_checkpoint(folder / "step-000000001")
    plain = weights(checkpoint)
    assert torch.equal(plain["embed.weight"], state["master", "embed.weight"])
    assert plain["head.weight"].data_ptr() == plain["embed.weight"].data_ptr()
    half = weights(checkpoint, torch.bfloat16)
    assert torch.equal(half["up.weight"], state["master", "up.weight"].to(torch.bfloat16))
    assert half["base.weight"].dtype == torch.bfloat16
    assert torch.equal(half["inv_freq"], state["buffer", "inv_freq"])
    assert torch.equal(half["codes"], state["frozen", "codes"])
    assert half["seen"].shape == ()
    assert int(half["seen"]) == 1
    assert set(half) == {name for _, name in state} | {"head.weight"}
    assert not folder.glob("readers/*")


def test_weights_load_into_a_model_with_tied_embeddings(folder: StoragePath) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(11, 4)
            self.head = torch.nn.Linear(4, 11, bias=False)
            self.head.weight = self.embed.weight

    model, other = Tied(), Tied()
    assert tied_names(model) == {"head.weight": "embed.weight"}
    held = [(whole("master", name, one), one.view(-1)) for name, one in model.named_parameters()]
    begin_save(SaveRequest(folder, run_state(1, tied=tied_names(model)), fence=1, rank=0, world_size=1), held).wait(30)
    other.load_state_dict(weights(open_checkpoint(folder / "step-000000001")), strict=True)
    assert torch.equal(other.head.weight, model.embed.weight)


def test_a_frozen_weight_may_change_its_float_type_on_the_way(folder: StoragePath) -> None:
    save_all(folder, 1)
    out = torch.zeros(15, dtype=torch.float32)
    fill(
        open_checkpoint(folder / "step-000000001"),
        [(Chunk("base.weight", "frozen", 0, 15, "float32", 15, (5, 3)), out)],
    )
    assert torch.equal(out.view(5, 3), tensors_of(1)["frozen", "base.weight"].float())


def test_a_folder_without_checkpoints_has_none(folder: StoragePath) -> None:
    assert newest(folder) is None
    assert committed(folder) == []
    assert apply_retention(folder, fence=0, newest=1) == []
