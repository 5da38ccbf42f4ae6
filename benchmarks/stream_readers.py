"""One reader of a data set, measured in a process of its own: time to the first batch, then tokens a second.

Run by benchmarks/stream.py, raylm's readers with raylm's Python and the others with theirs. Comes in: a JSON argument.
Leaves: a JSON line. Every reader gives shuffled batches of `batch` rows of `row` tokens as arrays a model could take.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Asked = dict[str, Any]


def raylm(asked: Asked, deliver: str = "threads") -> Callable[[], Iterator[Any]]:
    """raylm's stream for one worker: int64 tokens and labels, lane by lane."""
    import pyarrow.parquet  # noqa: F401  (imports are not what is measured, for anybody)

    from raylm.config.optim import BatchSettings
    from raylm.shards import read_manifest
    from raylm.storage import Connection, StoragePath
    from raylm.stream.loader import Dataset, Stream, StreamSettings

    if asked["endpoint"]:
        import s3fs  # noqa: F401

    def begin() -> Iterator[Any]:
        folder = StoragePath(f"{asked['root']}/raylm", Connection(endpoint=asked["endpoint"], region="us-east-1"))
        return Stream(
            [Dataset(folder, read_manifest(folder))],
            StreamSettings(BatchSettings(sequences=asked["batch"], micro_batch=asked["batch"] // 8)),
            start_step=asked["start_row"] // asked["batch"],
            reader=deliver,
        )

    return begin


def raylm_ray(asked: Asked) -> Callable[[], Iterator[Any]]:
    """The same through Ray Data."""
    import logging

    import ray

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return raylm(asked, "ray")


def memory_map(asked: Asked) -> Callable[[], Iterator[Any]]:
    """Rows picked at random from one flat file, as nanoGPT does it: the ceiling, with no compression to undo."""

    def begin() -> Iterator[Any]:
        tokens = np.memmap(f"{asked['root']}/tokens.bin", dtype=np.uint16, mode="r").reshape(-1, asked["row"])
        random = np.random.default_rng(asked["start_row"])
        while True:
            yield tokens[random.integers(0, len(tokens), asked["batch"])].astype(np.int64)

    return begin


def mosaicml(asked: Asked) -> Callable[[], Iterator[Any]]:
    """mosaicml-streaming with its shuffle, in a DataLoader."""
    import torch
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    def begin() -> Iterator[Any]:
        where: dict[str, Any] = {"local": f"{asked['root']}/mds"}
        if asked["endpoint"]:
            os.environ["S3_ENDPOINT_URL"] = asked["endpoint"]
            where = {"remote": f"{asked['root']}/mds", "local": tempfile.mkdtemp(dir=asked["scratch"])}
        data = StreamingDataset(**where, shuffle=True, batch_size=asked["batch"], num_canonical_nodes=1)
        if asked["start_row"]:
            state = {"epoch": 0, "sample_in_epoch": asked["start_row"], "num_canonical_nodes": 1}
            data.load_state_dict({**state, "shuffle_seed": 9176, "initial_physical_nodes": 1})
        while True:
            yield from torch.utils.data.DataLoader(data, batch_size=asked["batch"], num_workers=asked["workers"])

    return begin


def litdata(asked: Asked) -> Callable[[], Iterator[Any]]:
    """litdata with its loader for tokens and its shuffle, in its DataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader
    from litdata.streaming.item_loader import TokensLoader

    # Its fast client refuses a server without TLS, and there is no setting for it.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True

    def begin() -> Iterator[Any]:
        options: dict[str, Any] = {}
        if asked["endpoint"]:
            options["storage_options"] = {"endpoint_url": asked["endpoint"], "region_name": "us-east-1"}
        data = StreamingDataset(
            f"{asked['root']}/litdata",
            cache_dir=tempfile.mkdtemp(dir=asked["scratch"]) if asked["endpoint"] else None,
            item_loader=TokensLoader(block_size=asked["row"]),
            shuffle=True,
            **options,
        )
        loader = StreamingDataLoader(data, batch_size=asked["batch"], num_workers=asked["workers"])
        if asked["start_row"]:
            state = data.state_dict(asked["start_row"], asked["workers"], asked["batch"])
            data.load_state_dict(state)
        while True:
            yield from loader

    return begin


def datasets(asked: Asked) -> Callable[[], Iterator[Any]]:
    """Hugging Face datasets, streaming from Parquet; files shuffled but rows not, which is its fastest."""
    from datasets import load_dataset

    def begin() -> Iterator[Any]:
        options: dict[str, Any] = {}
        if asked["endpoint"]:
            options["storage_options"] = {"endpoint_url": asked["endpoint"]}
        files = f"{asked['root']}/hf/*.parquet"
        data = load_dataset("parquet", data_files=files, streaming=True, split="train", **options)
        data = data.shuffle(seed=0, buffer_size=asked["shuffle_rows"]) if asked["shuffle_rows"] else data
        started = data.skip(asked["start_row"]) if asked["start_row"] else data
        while True:
            for batch in started.with_format("numpy").iter(batch_size=asked["batch"]):
                yield np.asarray(batch["tokens"]).astype(np.int64)
            started = data

    return begin


READERS = {
    "raylm": raylm,
    "raylm_ray": raylm_ray,
    "memory_map": memory_map,
    "mosaicml-streaming": mosaicml,
    "litdata": litdata,
    "datasets": datasets,
}


def tokens_of(batch: Any) -> int:
    """Tokens of a batch, whatever it is, after a look into it."""
    if hasattr(batch, "micro_batches"):
        return sum(int(micro.tokens.size) for micro in batch.micro_batches)
    array = batch["tokens"] if isinstance(batch, dict) else batch
    return int(array.shape[0] * array.shape[1])


def measure(asked: Asked) -> dict[str, float]:
    """Time to the first batch, and tokens a second: steadily over `seconds` from disk, over an epoch from S3."""
    begin = READERS[asked["reader"]](asked)
    began = time.perf_counter()
    batches = iter(begin())
    tokens_of(next(batches))
    figures = {"first_batch_seconds": time.perf_counter() - began}
    if asked["seconds"] and asked["endpoint"] and asked["reader"] != "raylm_ray":
        # One epoch, the wait for its first batch included: the peers keep what they downloaded on local disk, so that
        # a second epoch would say nothing about the object store.
        tokens, epoch = 0, asked["rows"] * asked["row"]
        while tokens < epoch and time.perf_counter() < began + 15 * asked["seconds"]:
            tokens += tokens_of(next(batches))
        figures["tokens_per_second"] = tokens / (time.perf_counter() - began)
    elif asked["seconds"]:
        figures |= steady(batches, asked["seconds"])
    return figures


def steady(batches: Any, seconds: float) -> dict[str, float]:
    """Tokens a second once the first rush is over; through Ray Data, once that delivers."""
    deadline = time.perf_counter() + 90

    def from_ray() -> int | None:
        found: int | None = getattr(batches, "blocks_from_ray", None)  # of raylm alone
        return found

    while (blocks := from_ray()) is not None and blocks < 8:
        next(batches)
        time.sleep(0.02)  # a training step; without one, threads would be read past Ray Data's start
        assert time.perf_counter() < deadline, "Ray Data never delivered"
    warm, tokens = time.perf_counter() + seconds / 4, 0
    while time.perf_counter() < warm:
        next(batches)
    before = from_ray() or 0
    began, used = time.perf_counter(), time.process_time()
    while time.perf_counter() < began + seconds:
        tokens += tokens_of(next(batches))
    return {
        "tokens_per_second": tokens / (time.perf_counter() - began),
        # Of this process alone; steadier than seconds where others want the processors too.
        "tokens_per_cpu_second": tokens / (time.process_time() - used),
        "blocks_from_ray": (from_ray() or 0) - before,
    }


def write_peers(folder: Path, tokens: Path, row: int) -> None:
    """The token file in each peer's own format; run with the peers' Python."""
    rows = np.fromfile(tokens, dtype=np.uint16).reshape(-1, row)
    write_parquet(folder / "hf", rows)
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"tokens": f"ndarray:uint16:{row}"}) as writer:
        for one in rows:
            writer.write({"tokens": one})
    import torch
    from litdata import optimize
    from litdata.streaming.item_loader import TokensLoader

    optimize(
        fn=torch.from_numpy,
        inputs=list(rows.astype(np.int32)),
        output_dir=str(folder / "litdata"),
        chunk_bytes="64MB",
        item_loader=TokensLoader(block_size=row),
        num_workers=1,
        verbose=False,
    )


def write_parquet(folder: Path, rows: np.ndarray[Any, Any]) -> None:
    """Parquet as datasets would have it: a column of lists, row groups of 1,000."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for number, part in enumerate(np.array_split(rows, 8)):
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), rows.shape[1])
        pq.write_table(
            pa.table({"tokens": column.cast(pa.list_(pa.uint16()))}), folder / f"{number}.parquet", row_group_size=1000
        )


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    if request["reader"] == "write":
        write_peers(Path(request["root"]), Path(request["tokens"]), request["row"])
    else:
        print(json.dumps(measure(request)), flush=True)
        os._exit(0)  # loaders leave threads and processes behind that take their time
