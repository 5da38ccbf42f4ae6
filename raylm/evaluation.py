"""How good a trained model is: its loss over held-out text, with the objective it was trained with.

Bits per byte compares models of different tokenizers. Every token of the text is charged the mean loss, also the first
of each row, which nothing predicts: bits per byte = loss / ln 2 x tokens / bytes, where tokens and bytes are those of
the whole held-out split as its manifest counts them. Where only a part of several datasets' rows is read, each one's
tokens per byte count by its share of the predicted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylm.config.job import Job
from raylm.config.optim import BatchSettings
from raylm.errors import ConfigError, DataError
from raylm.objectives import objective_of
from raylm.objectives.causal import Causal
from raylm.run.folder import RunFolder
from raylm.shards import TOKENIZER_FOLDER, DatasetManifest, read_manifest
from raylm.storage import Connection, StoragePath
from raylm.stream.loader import Dataset, StreamSettings
from raylm.trained import Dtype, Trained, open_trained

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from raylm.objectives import Objective


@dataclass(frozen=True)
class Evaluation:
    """Loss in nats over `tokens` predicted tokens of `sequences` held-out rows."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    sequences: int
    step: int | None


def evaluate(
    run: str | Path | StoragePath | Job | Trained,
    *,
    data: str | Sequence[str] | None = None,
    sequences: int | None = None,
    batch_rows: int = 8,
    dtype: Dtype | None = None,
    connection: Connection = Connection(),  # noqa: B008
) -> Evaluation:
    """Loss over the held-out split of the run's own data, or of the folders of shards named by `data`.

    The whole split unless `sequences` is fewer; the rows are those that a run with as many evaluates while it trains.
    """
    trained = run if isinstance(run, Trained) else open_trained(run, connection, dtype=dtype)
    job = _job_of(trained)
    datasets = _datasets(trained, job, data, connection)
    found = _measured(trained, datasets, _settings(job, batch_rows), objective_of(job) if job else Causal(), sequences)
    weight = float(found.weights.sum())
    if weight <= 0:
        raise DataError("the held-out rows have no token to predict", hint="prepare with a larger prepare.held_out")
    loss = found.loss_sum / weight
    manifests = [dataset.manifest for dataset in datasets]
    whole = found.rows == sum(manifest.held_out_rows for manifest in manifests)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=loss / math.log(2) * tokens_per_byte(manifests, found.weights.tolist(), whole=whole),
        tokens=found.tokens,
        sequences=found.rows,
        step=trained.info.step,
    )


def _check_tokenizer(trained: Trained, folder: StoragePath) -> None:
    """Refuse data whose ids stand for other tokens than the model's."""
    from raylm.prep.tokenizer.agreement import disagreement, tokens_in

    here = tokens_in(folder / TOKENIZER_FOLDER)
    vocabulary: dict[str, int] = getattr(trained.tokenizer, "get_vocab", dict)()
    words = None if here is None else disagreement({number: token for token, number in vocabulary.items()}, here)
    if words is not None:
        raise DataError(
            f"{folder.url} was prepared with another tokenizer than the model in {trained.info} has: {words}",
            hint="evaluate on data that was prepared with the model's own tokenizer",
        )


@dataclass(frozen=True)
class _Sums:
    """Over the held-out rows; weights: (datasets,) what those of each weigh in the mean, for text its tokens."""

    loss_sum: float
    weights: NDArray[np.float64]
    tokens: int
    rows: int


def _settings(job: Job | None, batch_rows: int) -> StreamSettings:
    batch = BatchSettings(sequences=batch_rows, micro_batch=batch_rows)
    if job is None:
        return StreamSettings(batch)
    apart = job.model.document_attention
    return StreamSettings(batch, document_attention=apart, columns=objective_of(job).columns)


def _measured(
    trained: Trained, datasets: Sequence[Dataset], settings: StreamSettings, objective: Objective, sequences: int | None
) -> _Sums:
    import numpy as np
    import torch

    from raylm.objectives.base import on_device
    from raylm.stream.held_out import held_out

    ends = np.cumsum([dataset.manifest.held_out_rows for dataset in datasets])
    total, tokens, rows = 0.0, 0, 0
    weights = np.zeros(len(datasets), dtype=np.float64)
    with torch.inference_mode():
        for micro, _, _ in held_out(datasets, settings, sequences=sequences):
            total += float(objective.held_out_sums(trained.model, on_device(micro, trained.device)).loss)
            # A row's number tells its dataset: numbers run through the datasets in order.
            np.add.at(weights, np.searchsorted(ends, micro.ids, side="right"), objective.row_weights(micro))
            tokens += objective.tokens(micro)
            rows += len(micro.ids)
    return _Sums(total, weights, tokens, rows)


def tokens_per_byte(manifests: Sequence[DatasetManifest], tokens: Sequence[float], *, whole: bool) -> float:
    """Tokens that a byte of the held-out text takes, of several datasets by their share of `tokens`."""
    if whole:
        return sum(m.held_out_tokens for m in manifests) / sum(m.held_out_bytes for m in manifests)
    read = [(count, m) for count, m in zip(tokens, manifests, strict=True) if count]
    return sum(tokens) / sum(count * m.held_out_bytes / m.held_out_tokens for count, m in read)


def _job_of(trained: Trained) -> Job | None:
    """The resolved settings in the run's folder, where there is one."""
    run = trained.info.run
    if run is None:
        return None
    return RunFolder(run).read_job()


def _datasets(
    trained: Trained, job: Job | None, data: str | Sequence[str] | None, connection: Connection
) -> list[Dataset]:
    """The folders of shards to evaluate on, whose tokenizer must be the model's."""
    if data is not None:
        named = [(folder, 1.0) for folder in ([data] if isinstance(data, str) else data)]
    elif job is not None:
        named = [(source.path, source.weight) for source in job.mixture]
        connection = job.object_store.connection()
        run = trained.info.run
        if named[0][0] == RunFolder.of(job).data.url and run is not None and RunFolder(run).data.exists():
            named, connection = [(RunFolder(run).data.url, 1.0)], run.connection  # the run's folder may have been moved
    else:
        raise ConfigError(
            f"{trained.info} does not say which data it was trained on", hint="name a prepared folder with --data"
        )
    datasets = []
    for path, weight in named:
        folder = StoragePath(path, connection)
        manifest = read_manifest(folder)
        if manifest.vocab_size > trained.model.config.vocab_size:
            raise DataError(
                f"{folder.url} has a vocabulary of {manifest.vocab_size}, the model in {trained.info} one of "
                f"{trained.model.config.vocab_size}",
                hint="evaluate on data that was prepared with the model's own tokenizer",
            )
        _check_tokenizer(trained, folder)
        datasets.append(Dataset(folder=folder, manifest=manifest, weight=weight))
    _refuse_nothing_held_out(datasets)
    return datasets


def _refuse_nothing_held_out(datasets: Sequence[Dataset]) -> None:
    if not any(dataset.manifest.held_out_rows for dataset in datasets):
        raise DataError(
            "no held-out sequences in " + ", ".join(dataset.folder.url for dataset in datasets),
            hint="to evaluate on all of a set, prepare it with prepare.held_out: 1 and the model's tokenizer in "
            "prepare.tokenizer.path, and name its folder with --data",
        )
