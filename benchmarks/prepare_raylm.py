"""raylm's side of benchmarks/prepare.py: its steps one by one, each timed in two processes or in one.

Comes in: a request as JSON, the first argument. Leaves: one line of JSON. Steps are timed in a pool of two processes
that have done one task before, so that neither loading nor starting counts; as in prepare_peers.py.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from raylm.config.job import Job  # noqa: E402
from raylm.config.prepare.sources import SourceSettings  # noqa: E402
from raylm.config.prepare.steps import OperatorSettings  # noqa: E402
from raylm.prep.checks.skipped import Skipped  # noqa: E402
from raylm.prep.operators import OperatorRecord, applied, barrier_of, operator_of  # noqa: E402
from raylm.prep.operators.barrier import gathered  # noqa: E402
from raylm.prep.operators.dedup.decisions import read_decisions, write_table  # noqa: E402
from raylm.prep.passes import passes_of  # noqa: E402
from raylm.prep.ranges import FileRange  # noqa: E402
from raylm.prep.readers.read import read_range  # noqa: E402
from raylm.prep.units import Unit  # noqa: E402
from raylm.records import Document  # noqa: E402
from raylm.storage import StoragePath  # noqa: E402

WORKERS = 2


def job_of(request: dict[str, Any]) -> Job:
    """A job over the request's folders."""
    sources = [
        {"name": f"source-{number}", "kind": _kind(folder), "glob": f"{folder}/*"}
        for number, folder in enumerate(request.get("folders") or [request["folder"]])
    ]
    prepare = {
        "sources": sources,
        "steps": request.get("steps", []),
        "tokenizer": {"path": request["tokenizer_folder"]},
        "sequence_length": 2048,
        "held_out": 0.001,
        "unit_bytes": request.get("unit_bytes", 64_000_000),
    }
    return Job.model_validate({"name": "prepared", "storage": request["out"], "prepare": prepare})


def _kind(folder: str) -> str:
    name = next(Path(folder).iterdir()).name
    return "wet" if ".wet" in name else "warc" if ".warc" in name else "jsonl"


def _documents(request: dict[str, Any], number: int) -> Iterator[Document]:
    source, unit = _unit(request, number)
    for piece in unit.ranges:
        yield from read_range(source, piece, Job().object_store.connection(), Skipped())


def _unit(request: dict[str, Any], number: int) -> tuple[SourceSettings, Unit]:
    job = job_of(request)
    (source,) = job.prepare.sources
    file = sorted(Path(request["folder"]).iterdir())[number]
    return source, Unit(number, source.name, (FileRange(f"file://{file}", file.stat().st_size),))


def _settings(step: Any) -> OperatorSettings:
    return OperatorSettings.model_validate(step)


def read(request: dict[str, Any], number: int) -> str:
    """Read a file."""
    return str(sum(1 for _ in _documents(request, number)))


def one_by_one(request: dict[str, Any], number: int) -> str:
    """Read a file and take its documents through steps that look at one at a time."""
    documents = _documents(request, number)
    for one in request["steps"]:
        documents = applied(
            operator_of(_settings(one), Job().object_store.connection()), documents, OperatorRecord("step")
        )
    return str(sum(1 for _ in documents))


def tokenize(request: dict[str, Any], number: int) -> str:
    """Read a file, tokenize it and write its shard."""
    from raylm.prep.pack import pack_unit

    job = job_of(request)
    result = pack_unit(job, StoragePath(job.shards_url), passes_of([])[-1], _unit(request, number)[1])
    return str(result.counts["documents"] + result.counts["held_out_documents"])


def sign(request: dict[str, Any], number: int) -> str:
    """Read a file and gather its documents' signatures."""
    barrier = barrier_of(_settings("near_duplicates"))
    assert barrier is not None
    gatherer = barrier.gatherer()
    for document in _documents(request, number):
        gatherer.add(document)
    write_table(gathered(StoragePath(request["out"]), number), gatherer.table())
    return ""


def keep(request: dict[str, Any], number: int) -> str:
    """Read a file again without its near duplicates."""
    barrier = barrier_of(_settings("near_duplicates"))
    assert barrier is not None
    kept = barrier.applied(
        _documents(request, number), StoragePath(request["out"]), number, OperatorRecord("near_duplicates")
    )
    return str(sum(1 for _ in kept))


def step(request: dict[str, Any]) -> dict[str, Any]:
    """A step over all files in two processes: seconds, documents left, what deduplication removed."""
    files = range(request["files"])
    first = {"read": read, "tokenize": tokenize, "near_duplicates": sign}.get(request["step"], one_by_one)
    left = []
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        warm = {**request, "folder": request["warm"], "out": request["out"] + "-warm"}
        for one in (request, warm):
            if request["step"] == "tokenize":
                give_tokenizer(one)
        pool.map(functools.partial(first, warm), [0] * WORKERS * 2, chunksize=1)
        began = time.perf_counter()
        passes = request.get("passes", 1)
        left = pool.map(functools.partial(first, request), [*files] * passes, chunksize=1)
        if first is sign:
            _resolve(request, lambda task, numbers: pool.imap_unordered(task, numbers, chunksize=1))
            left = pool.map(functools.partial(keep, request), files, chunksize=1)
        seconds = (time.perf_counter() - began) / passes
    return {"seconds": seconds, "left": sum(map(int, left)), "removed": _removed(request) if first is sign else []}


def give_tokenizer(request: dict[str, Any]) -> None:
    """Put the tokenizer where tasks of this request look for it."""
    from raylm.prep.tokenizer import import_tokenizer
    from raylm.shards import TOKENIZER_FOLDER

    job = job_of(request)
    import_tokenizer(
        StoragePath(request["tokenizer_folder"]), StoragePath(job.shards_url) / TOKENIZER_FOLDER, job.prepare.tokenizer
    )


def _resolve(request: dict[str, Any], run: Any) -> None:
    barrier = barrier_of(_settings("near_duplicates"))
    assert barrier is not None
    barrier.resolve(StoragePath(request["out"]), range(request["files"]), run)


def _removed(request: dict[str, Any]) -> list[tuple[int, int]]:
    folder = StoragePath(request["out"])
    return [(unit, document) for unit in range(request["files"]) for document in read_decisions(folder, unit)]


def alone(request: dict[str, Any]) -> dict[str, Any]:
    """Near duplicates in this process alone, of texts that are in memory, for datasketch."""
    files = range(request["files"])
    documents = [list(_documents(request, number)) for number in files]
    barrier = barrier_of(_settings("near_duplicates"))
    assert barrier is not None

    def deduplicated(units: Sequence[list[Document]]) -> list[tuple[int, int]]:
        for number, unit in enumerate(units):
            gatherer = barrier.gatherer()
            for document in unit:
                gatherer.add(document)
            write_table(gathered(StoragePath(request["out"]), number), gatherer.table())
        barrier.resolve(StoragePath(request["out"]), range(len(units)), map)
        return _removed({**request, "files": len(units)})

    deduplicated([documents[0][:100]])  # its libraries are loaded
    began = time.perf_counter()
    removed = deduplicated(documents)
    return {"seconds": time.perf_counter() - began, "removed": removed}


def memory(request: dict[str, Any]) -> dict[str, Any]:
    """A whole preparation in this process, tasks and all, and the most memory that it held."""
    from raylm.prep.prepare import prepare
    from raylm.prep.tasks import here

    began = time.perf_counter()
    report = prepare(job_of(request), session=here)
    return {"seconds": time.perf_counter() - began, "max_bytes": _most_bytes(), "documents": report.documents}


def _most_bytes() -> int:
    """The most memory that this process held; getrusage would also count what held whoever started it."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Do what the request says."""
    request = json.loads(sys.argv[1])
    doing: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"step": step, "alone": alone, "memory": memory}
    print(json.dumps(doing[request["do"]](request)))


if __name__ == "__main__":
    main()
