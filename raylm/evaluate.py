"""How good a trained model is: comes in a run, a checkpoint or an export, leaves its loss over held-out text.

Bits per byte compares models of different tokenizers. Every token of the text is charged the mean loss, also the first
of each row, which nothing predicts: bits per byte = loss / ln 2 x tokens / bytes, where tokens and bytes are those of
the whole held-out split as its manifest counts them. Where only a part of several sources' rows is read, each source's
tokens a byte count by its share of the predicted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylm.config.job import Job
from raylm.config.load import parse_job
from raylm.config.optim import BatchSettings
from raylm.errors import ConfigError, DataError
from raylm.run.folder import RunFolder
from raylm.shards import DatasetManifest, read_manifest
from raylm.storage import Connection, NotFound, StoragePath
from raylm.trained import Dtype, Trained, open_trained

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raylm.stream.loader import Dataset


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
    run: str | StoragePath | Trained,
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
    sources = _sources(trained, job, data, connection)
    apart = job is not None and job.model.document_attention
    loss_sum, by_source, rows = _measured(trained, sources, sequences, batch_rows, apart)
    tokens = int(by_source.sum())
    if not tokens:
        raise DataError("the held-out rows have no token to predict", hint="prepare with a larger prepare.held_out")
    loss = loss_sum / tokens
    manifests = [source.manifest for source in sources]
    whole = rows == sum(manifest.held_out_rows for manifest in manifests)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=loss / math.log(2) * tokens_per_byte(manifests, by_source.tolist(), whole=whole),
        tokens=tokens,
        sequences=rows,
        step=trained.info.step,
    )


def _measured(
    trained: Trained, sources: list[Dataset], sequences: int | None, batch_rows: int, apart: bool
) -> tuple[float, NDArray[np.int64], int]:
    """(loss sum, predicted tokens of each source, rows) over the held-out rows."""
    import numpy as np
    import torch

    from raylm.model.loss import IGNORED, loss_sum
    from raylm.stream.loader import held_out

    batch = BatchSettings(sequences=batch_rows, micro_batch=batch_rows)
    ends = np.cumsum([source.manifest.held_out_rows for source in sources])
    total, rows = 0.0, 0
    tokens = np.zeros(len(sources), dtype=np.int64)
    rounds = held_out(sources, batch=batch, rank=0, world_size=1, sequences=sequences, document_attention=apart)
    with torch.inference_mode():
        for micro in (micro for round_ in rounds for micro in round_):
            inputs, labels = (torch.from_numpy(array).to(trained.device) for array in (micro.tokens, micro.labels))
            total += float(loss_sum(trained.model, inputs, labels, micro.document_starts if apart else None))
            # A row's number tells its source: numbers run through the sources in order.
            np.add.at(tokens, np.searchsorted(ends, micro.ids, side="right"), (micro.labels[:, 1:] != IGNORED).sum(1))
            rows += len(micro.ids)
    return total, tokens, rows


def tokens_per_byte(manifests: Sequence[DatasetManifest], tokens: Sequence[int], *, whole: bool) -> float:
    """Tokens that a byte of the held-out text takes, of several sources by their share of `tokens`."""
    if whole:
        return sum(m.held_out_tokens for m in manifests) / sum(m.held_out_bytes for m in manifests)
    read = [(count, m) for count, m in zip(tokens, manifests, strict=True) if count]
    return sum(tokens) / sum(count * m.held_out_bytes / m.held_out_tokens for count, m in read)


def _job_of(trained: Trained) -> Job | None:
    """The resolved settings in the run's folder, where there is one."""
    run = trained.info.run
    if run is None:
        return None
    settings = RunFolder(run).settings
    try:
        return parse_job(settings.read_text(), origin=settings.url)
    except NotFound:
        return None


def _sources(
    trained: Trained, job: Job | None, data: str | Sequence[str] | None, connection: Connection
) -> list[Dataset]:
    """The folders of shards to evaluate on, whose tokenizer must be the model's."""
    from raylm.stream.loader import Dataset

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
    sources = []
    for path, weight in named:
        folder = StoragePath(path, connection)
        manifest = read_manifest(folder)
        if manifest.vocab_size > trained.model.config.vocab_size:
            raise DataError(
                f"{folder.url} has a vocabulary of {manifest.vocab_size}, the model in {trained.info} one of "
                f"{trained.model.config.vocab_size}",
                hint="evaluate on data that was prepared with the model's own tokenizer",
            )
        sources.append(Dataset(folder=folder, manifest=manifest, weight=weight))
    return sources
