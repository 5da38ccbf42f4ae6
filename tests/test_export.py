"""What a run is for: opened, evaluated, made to speak and exported, from disk and S3; and clear words otherwise."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from raylm.checkpoint.chunks import Chunk
from raylm.checkpoint.save import SaveRequest, begin_save
from raylm.checkpoint.state import tied_names
from raylm.config.job import Job
from raylm.config.load import resolved_yaml
from raylm.config.prepare.tokenizer import TokenizerSettings
from raylm.errors import CheckpointError, ConfigError, DataError, RaylmError, StorageError
from raylm.evaluation import evaluate, tokens_per_byte
from raylm.generation import Sampling, before_stop, decoded, generate, generate_batch, logits_processors
from raylm.hf_export import export
from raylm.prep import tokenizer as tokenizers_
from raylm.records import MicroBatch
from raylm.shards import Counts, DatasetManifest, RowFormat, ShardWriter, write_manifest
from raylm.storage import Connection, StoragePath
from raylm.testing.checkpoints import run_state
from raylm.testing.ranks import ranks
from raylm.trained import Trained, open_trained

if TYPE_CHECKING:
    from raylm.testing.servers import S3Server

LENGTH = 32
TEXTS = [
    "The worker went away, and the others went on without it.",
    "Größe, naïve, Ελλάδα, 日本語, 🙂🚀: bytes are bytes, whatever they spell.",
    "def steps(engine): yield from engine",
    *(f"Line {number}: a checkpoint counts once its manifest is there." for number in range(40)),
]


@dataclass(frozen=True)
class Run:
    """A run folder made by hand, and the module whose weights are in its newest checkpoint."""

    place: StoragePath
    job: Job
    model: Any


def make_run(folder: StoragePath, data: Path, *, dtype: str = "fp32", steps: tuple[int, ...] = (5, 10)) -> Run:
    """A run as training leaves it: settings, tokenizer, data, and a committed checkpoint for each of `steps`."""
    import torch

    from raylm.model.build import build_model, config_dict

    job = Job.model_validate(
        {
            "name": "made",
            "storage": folder.url,
            "object_store": {"endpoint": folder.connection.endpoint, "region": folder.connection.region},
            "model": {"preset": "tiny", "dtype": dtype, "document_attention": True},
            "data": {"path": str(data)},
        }
    )
    run = StoragePath(job.run_url, folder.connection)
    vocab_size = make_data(StoragePath(str(data)))
    for file in (data / "tokenizer").iterdir():
        (run / "tokenizer" / file.name).write_bytes(file.read_bytes())
    (run / "run.yaml").write_text(resolved_yaml(job))
    for step in steps:
        model = build_model(job.model, vocab_size=vocab_size, sequence_length=LENGTH, seed=step, eos_id=0)
        held = [
            (Chunk(name, "master", 0, p.numel(), "float32", p.numel(), tuple(p.shape)), p.detach().reshape(-1))
            for name, p in model.named_parameters()
        ]
        state = run_state(step, model_config=config_dict(model.config), model=job.model, tied=tied_names(model))
        saved = begin_save(
            SaveRequest(run / "checkpoints", state, fence=1, rank=0, world_size=1), held, asynchronous=False
        ).wait(60)
        assert saved.committed
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    return Run(run, job, model.eval())


def make_data(folder: StoragePath) -> int:
    """Prepared data of which all is held out, two shards of it; the tokenizer's size."""
    built = tokenizers_.train(TEXTS, TokenizerSettings(vocab_size=300))
    tokenizers_.write_tokenizer(folder / "tokenizer", built)
    tokenizer, facts = tokenizers_.load(folder / "tokenizer")
    tokens: list[int] = []
    starts: list[int] = []
    for text in TEXTS:
        starts.append(len(tokens))
        tokens += [*tokenizer.encode(text).ids, facts.eos_id]
    shards = []
    format_ = RowFormat(LENGTH, facts.vocab_size, facts.fingerprint, facts.eos_id)
    rows = [range(first, first + LENGTH) for first in range(0, len(tokens), LENGTH)]
    for name, part in (("held_out/0.parquet", rows[:7]), ("held_out/1.parquet", rows[7:])):
        writer = ShardWriter(folder / name, format_, name=name)
        for row in part:
            first = [0, *(start - row.start for start in starts if row.start < start < row.stop)]
            writer.add(np.array(tokens[row.start : row.stop], dtype=np.uint16), np.array(first, dtype=np.int32))
        shards.append(writer.close())
    counts = Counts(0, len(tokens), sum(len(text.encode()) for text in TEXTS))
    write_manifest(folder, DatasetManifest.of(format_, train=[], held_out=shards, counts=counts))
    return facts.vocab_size


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    return make_run(StoragePath(str(folder)), folder / "data")


@pytest.fixture(scope="module")
def trained(run: Run) -> Trained:
    return open_trained(run.place)


def logits(model: Any) -> Any:
    import torch

    tokens = torch.arange(2 * LENGTH).reshape(2, LENGTH) % 250
    with torch.inference_mode():
        return model(input_ids=tokens.to(next(model.parameters()).device)).logits.cpu()


def same(first: Any, second: Any) -> bool:
    import torch

    return torch.equal(logits(first), logits(second))


# Opening


def test_a_run_is_its_newest_committed_checkpoint(run: Run, trained: Trained) -> None:
    assert trained.info.step == 10
    assert trained.info.run == run.place
    assert same(trained.model, run.model)
    assert trained.model.lm_head.weight is trained.model.model.embed_tokens.weight


def test_a_checkpoint_is_opened_by_its_own_folder(run: Run) -> None:
    older = open_trained(f"{run.place.url}/checkpoints/step-000000005")
    assert older.info.step == 5
    assert not same(older.model, run.model)
    assert open_trained(f"{run.place.url}/checkpoints").info.step == 10


def test_a_checkpoint_that_was_not_committed_is_passed_over(run: Run, tmp_path: Path) -> None:
    copied = tmp_path / "made"
    shutil.copytree(run.place.url, copied)
    (copied / "checkpoints/step-000000010/manifest.json").unlink()
    assert open_trained(str(copied)).info.step == 5
    with pytest.raises(CheckpointError, match="step-000000010 was never committed"):
        open_trained(f"{copied}/checkpoints/step-000000010")
    (copied / "checkpoints/step-000000005/manifest.json").unlink()
    error = refused(copied)
    assert str(error) == f"no complete checkpoint in {copied} (2 folders, none committed)"


def refused(place: Path) -> RaylmError:
    with pytest.raises(CheckpointError) as caught:
        open_trained(str(place))
    assert caught.value.hint
    return caught.value


def trained_and_saved(group: Any, run: StoragePath, job: Job, vocab_size: int, stage: int, dtype: str) -> float:
    """A step of a real engine, its checkpoint at step 20, and its loss then, without dropout."""
    from raylm.checkpoint import zero_state
    from raylm.config.optim import ZeroSettings
    from raylm.model.build import build_model, config_dict
    from raylm.objectives.causal import Causal
    from raylm.train.engine import Engine, EngineSettings

    settings = job.model.model_copy(update={"dtype": dtype})
    model = build_model(settings, vocab_size=vocab_size, sequence_length=LENGTH, seed=1)
    config = config_dict(model.config)
    engine = Engine.build(
        model,
        group,
        Causal(document_attention=settings.document_attention),
        EngineSettings(
            ZeroSettings(stage=stage),  # type: ignore[arg-type]
            job.optim,
            micro_batch=2,
            accumulation=1,
            bf16=dtype == "bf16",
        ),
    )
    lanes = [lane_batch(group.rank)]
    engine.step(lanes, step=0, seed=0, global_weight=2 * group.size * (LENGTH - 1), lr=0.01)
    begin_save(
        SaveRequest(
            run / "checkpoints",
            run_state(20, model_config=config, model=settings, tied=tied_names(engine.model)),
            fence=1,
            rank=group.rank,
            world_size=group.size,
            scalars=zero_state.scalars(engine.raw),
        ),
        zero_state.state_to_save(engine.raw),
        asynchronous=False,
    ).wait(60)
    (held_out,) = engine.evaluate((lane, True, 0) for lane in lanes)
    engine.destroy()
    return held_out.loss_sum / held_out.tokens


def lane_batch(lane: int) -> MicroBatch:
    tokens = np.random.default_rng(lane).integers(0, 250, (2, LENGTH))
    return MicroBatch(lane, tokens, tokens, (np.zeros(1, np.int32),) * 2, np.arange(2), np.zeros(2, np.int64))


@pytest.mark.parametrize(("stage", "dtype"), [(3, "fp32"), pytest.param(2, "bf16", marks=pytest.mark.sweep)])
def test_what_two_workers_saved_is_the_model_that_they_had(run: Run, tmp_path: Path, stage: int, dtype: str) -> None:
    import torch

    from raylm.objectives.cross_entropy import next_token_loss

    copied = tmp_path / "made"
    shutil.copytree(run.place.url, copied)
    vocab_size = run.model.config.vocab_size
    with ranks(2) as processes:
        theirs = processes.run(trained_and_saved, 2, StoragePath(str(copied)), run.job, vocab_size, stage, dtype)[0]
    opened = open_trained(str(copied))
    assert (opened.info.step, opened.info.dtype) == (20, dtype)
    batches = [lane_batch(lane) for lane in range(2)]
    sums = [
        next_token_loss(opened.model, *(torch.from_numpy(array) for array in (batch.tokens, batch.labels)), None).item()
        for batch in batches
    ]
    mine = sum(sums) / sum(batch.labels[:, 1:].size for batch in batches)
    assert mine == pytest.approx(theirs, rel=1e-6)
    assert abs(mine - math.log(vocab_size)) > 0.01, "a step must have been made"


def test_what_is_no_model_is_refused_in_plain_words(run: Run, tmp_path: Path) -> None:
    runs = Path(run.place.url).parent
    missing = refused(runs / "mode")
    assert str(missing) == f"there is nothing at {runs / 'mode'}"
    assert missing.hint == f"runs in {runs}: made"
    assert "is prepared data, not a trained model" in str(refused(runs / "data"))
    (tmp_path / "notes.txt").write_text("hello")
    assert "is neither a run, a checkpoint nor an export" in str(refused(tmp_path))
    new = tmp_path / "new"
    new.mkdir()
    (new / "run.yaml").write_text("name: new\n")
    assert str(refused(new)) == f"no complete checkpoint in {new} (0 folders, none committed)"


def test_a_checkpoint_away_from_its_run_misses_its_tokenizer(run: Run, tmp_path: Path) -> None:
    alone = tmp_path / "step-000000010"
    shutil.copytree(f"{run.place.url}/checkpoints/step-000000010", alone)
    assert "no tokenizer in" in str(refused(alone))
    shutil.copytree(f"{run.place.url}/tokenizer", alone / "tokenizer")
    assert same(open_trained(str(alone)).model, run.model)


def test_tensors_of_another_model_are_refused(run: Run, tmp_path: Path) -> None:
    copied = tmp_path / "made"
    shutil.copytree(run.place.url, copied)
    manifest = copied / "checkpoints/step-000000010/manifest.json"
    body = json.loads(manifest.read_text())
    body["state"]["model_config"]["num_hidden_layers"] = 5
    manifest.write_text(json.dumps(body))
    assert "lacks 9 of the model's tensors" in str(refused(copied))


# Evaluating


def test_held_out_loss_is_that_of_every_document_alone(run: Run, trained: Trained) -> None:
    from raylm.objectives.cross_entropy import next_token_loss
    from raylm.shards import read_manifest
    from raylm.stream.held_out import held_out
    from raylm.stream.loader import Dataset, StreamSettings

    folder = StoragePath(run.job.mixture[0].path)
    manifest = read_manifest(folder)
    total, tokens = 0.0, 0
    import torch

    for micro, counts, _ in held_out(
        [Dataset(folder, manifest)], StreamSettings(run.job.batch, document_attention=True)
    ):
        assert counts
        inputs, labels = torch.from_numpy(micro.tokens), torch.from_numpy(micro.labels)
        total += next_token_loss(run.model, inputs, labels, micro.document_starts).item()
        tokens += int((labels[:, 1:] != -100).sum())
    found = evaluate(trained)
    assert (found.tokens, found.sequences, found.step) == (tokens, manifest.held_out_rows, 10)
    assert found.loss == pytest.approx(total / tokens, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    # An untrained model knows nothing: about log2(vocabulary) bits a token.
    assert found.loss == pytest.approx(math.log(manifest.vocab_size), rel=0.05)
    expected = found.loss / math.log(2) * manifest.held_out_tokens / sum(len(text.encode()) for text in TEXTS)
    assert found.bits_per_byte == pytest.approx(expected, rel=1e-12)


def test_batches_do_not_change_the_loss_and_fewer_sequences_are_fewer(trained: Trained) -> None:
    whole, one = evaluate(trained), evaluate(trained, batch_rows=1)
    assert one.loss == pytest.approx(whole.loss, rel=1e-5)
    part = evaluate(trained, sequences=5)
    assert part.sequences == 5
    assert part.bits_per_byte / part.loss == pytest.approx(whole.bits_per_byte / whole.loss)


def test_bytes_of_several_sources_count_by_what_was_read() -> None:
    def manifest(tokens: int, text_bytes: int) -> Any:
        rows = RowFormat(8, 300, "t", eos_id=0)
        return DatasetManifest.of(rows, train=[], held_out=[], counts=Counts(0, tokens, text_bytes))

    short, long = manifest(100, 200), manifest(300, 1500)
    assert tokens_per_byte([short, long], [1, 1], whole=True) == 400 / 1700
    assert tokens_per_byte([short, long], [60, 0], whole=False) == pytest.approx(1 / 2)
    assert tokens_per_byte([short, long], [50, 50], whole=False) == pytest.approx(100 / (50 * 2 + 50 * 5))


def test_a_run_that_was_moved_finds_the_data_beside_it(run: Run, tmp_path: Path) -> None:
    job = run.job.model_copy(update={"data": run.job.data.model_copy(update={"path": None}), "storage": "/nowhere"})
    moved = tmp_path / "moved"
    shutil.copytree(run.place.url, moved)
    shutil.copytree(run.job.mixture[0].path, moved / "data")
    (moved / "run.yaml").write_text(resolved_yaml(job))
    assert evaluate(str(moved)).sequences > 0


def test_evaluating_says_what_is_missing(run: Run, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared data in"):
        evaluate(trained, data=str(tmp_path))
    shutil.copytree(run.job.mixture[0].path, tmp_path / "data")
    from raylm.shards import parse_manifest

    made = parse_manifest((tmp_path / "data/manifest.json").read_bytes(), "x")
    write_manifest(
        StoragePath(str(tmp_path / "data")),
        DatasetManifest.of(
            replace(made.rows, vocab_size=5000), train=made.train, held_out=made.held_out, counts=Counts(0, 1, 1)
        ),
    )
    with pytest.raises(DataError, match=r"has a vocabulary of 5000, the model in .* one of"):
        evaluate(trained, data=str(tmp_path / "data"))
    exported = export(trained, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="does not say which data it was trained on") as caught:
        evaluate(exported.folder)
    assert "--data" in str(caught.value.hint)


# Generating


def test_the_same_seed_gives_the_same_text_and_the_pieces_are_the_text(trained: Trained) -> None:
    settings = Sampling(max_new_tokens=40, temperature=1.0, top_p=1.0, seed=3)
    first, second = ([*generate(trained, "The worker", settings)] for _ in range(2))
    other = [*generate(trained, "The worker", Sampling(max_new_tokens=40, temperature=1.0, top_p=1.0, seed=4))]
    assert first == second != other
    assert len(first) > 1
    for piece in first:
        assert piece
        piece.encode()  # no half characters


def test_the_likeliest_tokens_are_what_transformers_gives(trained: Trained) -> None:
    import torch

    prompt = "The others"
    ids = trained.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = trained.model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)[0, ids.shape[1] :]
    text = trained.tokenizer.decode(expected, skip_special_tokens=True)
    assert "".join(generate(trained, prompt, Sampling(temperature=0, max_new_tokens=12))) == text


def test_text_may_outgrow_the_rows_and_begin_with_nothing(trained: Trained) -> None:
    settings = Sampling(max_new_tokens=3 * LENGTH, temperature=1.0, seed=1)
    assert "".join(generate(trained, "", settings))
    assert "".join(generate(trained, "a long prompt " * LENGTH, Sampling(max_new_tokens=4)))


@pytest.mark.parametrize("text", TEXTS[:3])
def test_characters_cut_between_tokens_come_out_whole(trained: Trained, text: str) -> None:
    tokens = trained.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [*decoded(trained.tokenizer, iter(tokens))]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_character_come_out_as_broken_ones(trained: Trained) -> None:
    tokens = trained.tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(tokens) > 1, "the test needs a character of several tokens"
    letter = trained.tokenizer("a", add_special_tokens=False)["input_ids"]
    for broken in (tokens[:1], tokens[:1] + letter, tokens[:1] * 9 + letter):
        assert "".join(decoded(trained.tokenizer, iter(broken))) == trained.tokenizer.decode(broken)


def test_sampling_draws_from_what_is_left_in_the_right_shares() -> None:
    import torch

    rows = 2000
    scores = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))

    def drawn(**settings: Any) -> list[float]:
        found = scores.repeat(rows, 1)
        for processor in logits_processors(Sampling(**settings), 1):
            if type(processor).__name__ == "SeededChoice":
                found = torch.cat([processor(None, row[None]) for row in found])
            else:
                found = processor(None, found)
        picks = found.argmax(dim=1).tolist()
        return [picks.count(token) / len(picks) for token in range(4)]

    assert drawn(temperature=0) == [0, 1, 0, 0]
    assert drawn(temperature=1, top_k=1, top_p=1) == [0, 1, 0, 0]
    assert drawn(temperature=1, top_p=0.01) == [0, 1, 0, 0]
    assert drawn(temperature=1, top_k=2, top_p=1) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.04)
    assert drawn(temperature=1, top_p=0.74) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.04)
    assert drawn(temperature=1, top_p=1) == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.04)


def test_generating_leaves_pytorchs_own_random_numbers_alone(trained: Trained) -> None:
    import torch

    before = torch.get_rng_state()
    first = "".join(generate(trained, "The", Sampling(max_new_tokens=8)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert "".join(generate(trained, "The", Sampling(max_new_tokens=8))) == first


def test_a_reader_that_has_enough_ends_the_thread_behind_it(trained: Trained) -> None:
    import threading

    before = threading.active_count()
    parts = generate(trained, "The", Sampling(max_new_tokens=100_000, temperature=1.0))
    next(parts)
    parts.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_error_while_generating_reaches_the_reader(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("no memory")

    monkeypatch.setattr(trained.model, "forward", broken)
    with pytest.raises(ZeroDivisionError, match="no memory"):
        list(generate(trained, "The"))


def test_prompts_in_a_batch_get_the_text_that_each_gets_alone(trained: Trained) -> None:
    prompts = ["The worker", "", "Größe und", "a long prompt " * LENGTH]
    for settings in (
        Sampling(temperature=0, max_new_tokens=10),
        Sampling(temperature=1.0, max_new_tokens=10, seed=3),
        Sampling(temperature=1.0, max_new_tokens=10, seed=3, stop=("e",)),
    ):
        alone = ["".join(generate(trained, prompt, settings)) for prompt in prompts]
        assert generate_batch(trained, prompts, settings) == alone
    assert generate_batch(trained, []) == []


@pytest.mark.parametrize(
    ("parts", "stop", "expected"),
    [
        (["ab", "c\n", "\nd"], ["\n\n"], ["ab", "c"]),
        (["ab", "c\n", "x\nd"], ["\n\n"], ["ab", "c", "\nx\nd"]),
        (["one stop two"], ["stop", "one s"], []),
        (["a", "b"], [], ["a", "b"]),
        (["aST"], ["STOP"], ["a", "ST"]),
    ],
    ids=str,
)
def test_text_ends_before_a_stop_string_and_nothing_of_it_is_given_out(
    parts: list[str], stop: list[str], expected: list[str]
) -> None:
    assert [*before_stop(iter(parts), stop)] == expected


def test_a_stop_string_ends_the_text(trained: Trained) -> None:
    settings = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=40, seed=3)
    whole = "".join(generate(trained, "The worker", settings))
    middle = len(whole) // 2
    end = whole[middle : middle + 2]
    stopped = "".join(generate(trained, "The worker", replace(settings, stop=(end, "never this"))))
    assert stopped == whole[: whole.index(end)]


def test_tokens_that_only_fill_the_embedding_are_never_chosen(trained: Trained) -> None:
    known = len(trained.tokenizer)
    few = Trained(trained.model, _Fewer(trained.tokenizer, known // 2), trained.info)
    settings = Sampling(temperature=5.0, top_p=1.0, max_new_tokens=60, seed=1)
    text = "".join(generate(few, "The", settings))
    assert text
    assert max(few.tokenizer.seen) < known // 2


class _Fewer:
    """A tokenizer that knows only its first tokens."""

    def __init__(self, tokenizer: Any, known: int) -> None:
        self._tokenizer, self._known, self.seen = tokenizer, known, {0}

    def __len__(self) -> int:
        return self._known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def get_vocab(self) -> dict[str, int]:
        return {token: number for token, number in self._tokenizer.get_vocab().items() if number < self._known}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return {"input_ids": [1]}

    def decode(self, tokens: list[int], **kwargs: Any) -> str:
        self.seen |= set(tokens)
        return str(self._tokenizer.decode(tokens, **kwargs))


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"max_new_tokens": 0}, {"stop": ("",)}],
    ids=str,
)
def test_sampling_that_cannot_work_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(bad))}=.* cannot work"):
        Sampling(**bad)


# Exporting


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_export_loads_in_transformers_and_gives_the_same_logits(dtype: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    made = make_run(StoragePath(str(tmp_path / "runs")), tmp_path / "data", dtype=dtype, steps=(3,))
    done = export(made.place, str(tmp_path / "out"))
    assert done.step == 3
    assert "model.safetensors" in done.files
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert str(loaded.dtype) == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[dtype]
    assert same(loaded, made.model)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS[:3]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == tokenizer.eos_token_id
    assert same(open_trained(str(tmp_path / "out")).model, made.model)


def test_an_export_may_be_written_in_another_type(run: Run, tmp_path: Path) -> None:
    import torch

    export(run.place, str(tmp_path / "out"), dtype="bf16")
    assert open_trained(str(tmp_path / "out")).model.dtype == torch.bfloat16


def test_an_export_is_repeated_over_itself_but_over_nothing_else(trained: Trained, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(trained, str(out))
    export(trained, str(out))
    assert same(open_trained(str(out)).model, run.model)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"not an export of raylm's: it holds notes\.txt"):
        export(trained, str(out))
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(StorageError, match="is not empty"):
        export(trained, run.place)


def test_a_half_written_export_is_no_model(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    module = __import__("raylm.hf_export", fromlist=["_put"])
    put = module._put
    for crash_at in itertools.count():
        calls = iter(range(100))

        def failing(source: Path, target: StoragePath, calls: Iterator[int] = calls, last: int = crash_at) -> None:
            if next(calls) == last:
                raise OSError("pulled the plug")
            put(source, target)

        monkeypatch.setattr(module, "_put", failing)
        try:
            export(trained, str(out))
        except OSError:
            with pytest.raises((OSError, ValueError)):
                AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
            with pytest.raises(CheckpointError, match="was not finished"):
                open_trained(str(out))
        else:
            break
    assert crash_at >= 4
    assert same(open_trained(str(out)).model, trained.model)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_broken_exports_are_refused(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(trained, str(out))
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in str(refused(out))
    weights.unlink()
    assert "cannot be loaded" in str(refused(out))


# From and to an object store


def test_all_of_it_works_on_s3(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.bucket()
    made = make_run(bucket / "runs", tmp_path / "data", steps=(2,))
    opened = open_trained(made.place.url, bucket.connection)
    assert same(opened.model, made.model)
    assert evaluate(opened).tokens > 0
    out = (bucket / "out").url
    export(opened, out, connection=bucket.connection)
    export(opened, out, connection=bucket.connection)
    assert same(open_trained(out, bucket.connection).model, made.model)
    assert "".join(generate(out, "The", Sampling(max_new_tokens=5), bucket.connection))
    with pytest.raises(CheckpointError, match="there is nothing at s3://"):
        open_trained(f"{out}-other", bucket.connection)


def test_an_unreachable_store_is_one_clear_error() -> None:
    connection = Connection(endpoint="http://127.0.0.1:9", retries=0, timeout_seconds=2)
    with pytest.raises(StorageError) as caught:
        open_trained("s3://bucket/run", connection)
    assert caught.value.hint
