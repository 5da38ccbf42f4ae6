"""The peers of benchmarks/prepare.py: datatrove's steps one by one and end to end, datasketch and rensa.

Runs in the peers' own virtual environment and knows nothing of raylm. Comes in: a request as JSON, the first argument.
Leaves: one line of JSON. Steps are timed in a pool of two processes that have done one task before, so that neither
loading nor starting counts; end to end is the time of this whole process, taken by whoever started it.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

WORKERS = 2
_WORD = re.compile(r"[a-z0-9]+|[^\x00-\x7f]+")


def reader(folder: str) -> Any:
    """Reads a folder of JSON lines, or of WET files."""
    from datatrove.pipeline.readers import JsonlReader, WarcReader

    names = [file.name for file in Path(folder).iterdir()]
    return WarcReader(folder) if any(name.endswith(".wet.gz") for name in names) else JsonlReader(folder)


def filters(rules: Sequence[str]) -> list[Any]:
    """datatrove's quality filters with their own defaults."""
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    known = {
        "gopher_repetition": GopherRepetitionFilter,
        "gopher_quality": GopherQualityFilter,
        "c4": C4QualityFilter,
        "fineweb": FineWebQualityFilter,
    }
    return [known[rule]() for rule in rules]


def minhash(request: dict[str, Any]) -> Any:
    """As many buckets of as many hashes as raylm has bands of rows."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    return MinhashConfig(n_grams=5, num_buckets=request["bands"], hashes_per_bucket=request["rows"])


def signature(request: dict[str, Any], out: str) -> Any:
    """The first stage; `split` spares it spaCy, its way to find words, which takes most of its time."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

    step = MinhashDedupSignature(f"{out}/signatures", minhash(request))
    if request.get("words") == "split":
        step.word_tokenizer = _Split()
    return step


class _Split:
    """Words are what stands between spaces; the text has no punctuation by then."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words."""
        return text.split()


def tokenizer(request: dict[str, Any], out: str) -> Any:
    """Tokens to disk, as they come: shuffling would write them twice."""
    from datatrove.pipeline.tokens import DocumentTokenizer

    return DocumentTokenizer(
        f"{out}/tokens", request["tokenizer"], eos_token="<|endoftext|>", shuffle_documents=False, batch_size=1000
    )


def task(work: tuple[str, dict[str, Any], int]) -> int:
    """One file's, bucket's or cluster's part of a step; the documents that leave it."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter

    stage, request, rank = work
    folder, files, out = request["folder"], request["files"], request["out"]
    if stage == "buckets":
        MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=minhash(request)).run(
            None, rank, request["bands"]
        )
        return 0
    if stage == "cluster":
        MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=minhash(request)).run(None, 0, 1)
        return 0
    documents = reader(folder).run(None, rank, files)
    if stage == "sign":
        signature(request, out).run(documents, rank, files)
        return 0
    if stage == "keep":
        documents = MinhashDedupFilter(f"{out}/remove").run(documents, rank, files)
    elif stage == "quality":
        for one in filters(request["rules"]):
            documents = one.run(documents, rank, files)
    elif stage == "tokenize":
        tokenizer(request, out).run(documents, rank, files)
        return 0
    return sum(1 for _ in documents)


def step(request: dict[str, Any]) -> dict[str, Any]:
    """A step over all files: seconds, documents left, and for deduplication what was removed."""
    files = range(request["files"])
    stages: dict[str, list[tuple[str, Iterable[int]]]] = {
        "read": [("read", files)],
        "quality": [("quality", files)],
        "tokenize": [("tokenize", files)],
        "near_duplicates": [("sign", files), ("buckets", range(request["bands"])), ("cluster", [0]), ("keep", files)],
    }
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        warm = {**request, "folder": request["warm"], "files": 1}
        first = stages[request["step"]][0][0]
        places = [
            f"{request['out']}-warm/{number}" for number in range(WORKERS * 2)
        ]  # two at once never write one file
        pool.map(task, [(first, {**warm, "out": place}, 0) for place in places], chunksize=1)
        began = time.perf_counter()
        left, passes = 0, request.get("passes", 1)
        for stage, numbers in stages[request["step"]]:
            left = sum(pool.map(task, [(stage, request, number) for number in numbers] * passes, chunksize=1))
        seconds = (time.perf_counter() - began) / passes
    return {"seconds": seconds, "left": left, "removed": removed(Path(request["out"]) / "remove")}


def removed(folder: Path) -> list[list[int]]:
    """(file, document) of what deduplication took out."""
    return [
        [int(file.name.partition(".")[0]), number]
        for file in sorted(folder.glob("*.remove"))
        for (number,) in struct.iter_unpack("<I", file.read_bytes())
    ]


def whole(request: dict[str, Any]) -> dict[str, Any]:
    """Everything as datatrove's own examples do it: an executor a stage, what filters keep written between."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    out, spent = request["out"], {}

    def run(name: str, pipeline: list[Any], tasks: int) -> None:
        began = time.perf_counter()
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=WORKERS, logging_dir=f"{out}/logs/{name}").run()
        spent[name] = time.perf_counter() - began

    files = 0
    for number, folder in enumerate(request["folders"]):
        name = "${rank}.jsonl.gz"
        writer = JsonlWriter(f"{out}/kept", output_filename=f"{number}-{name}")
        count = len(list(Path(folder).iterdir()))
        run(f"read-{number}", [reader(folder), *filters(request["rules"]), writer], count)
        files += count

    def kept() -> Any:
        return JsonlReader(f"{out}/kept")

    config = minhash(request)
    run("sign", [kept(), signature(request, out)], files)
    run("buckets", [MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config)], request["bands"])
    run("cluster", [MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=config)], 1)
    run("tokenize", [kept(), MinhashDedupFilter(f"{out}/remove"), tokenizer(request, out)], files)
    return {"seconds": spent, "removed": len(removed(Path(out) / "remove"))}


def datasketch(request: dict[str, Any]) -> dict[str, Any]:
    """MinHash and LSH in one process; a candidate counts when the signatures say that it is similar enough."""
    from datasketch import MinHash, MinHashLSH
    from xxhash import xxh32_intdigest

    numbered = list(texts(request))
    began = time.perf_counter()
    index = MinHashLSH(threshold=request["threshold"], num_perm=256, params=(request["bands"], request["rows"]))
    kept: dict[int, Any] = {}
    gone = []
    # The generator draws the permutations once, and is its fastest way.
    chosen = {"hashfunc": xxh32_intdigest} if request.get("hash") == "xxhash" else {}
    signatures = MinHash.generator((runs(text) for _, text in numbered), num_perm=256, **chosen)
    for number, one in zip((number for number, _ in numbered), signatures, strict=True):
        if any(one.jaccard(kept[other]) >= request["threshold"] for other in index.query(one)):
            gone.append(number)
            continue
        index.insert(number, one)
        kept[number] = one
    return {"seconds": time.perf_counter() - began, "removed": gone}


def rensa(request: dict[str, Any]) -> dict[str, Any]:
    """The same with rensa, whose signatures are made in Rust from sets of strings that Python makes."""
    from rensa import RMinHash, RMinHashLSH

    numbered = list(texts(request))
    began = time.perf_counter()
    permutations = request["bands"] * request["rows"]
    sets = [[run.decode() for run in runs(text)] for _, text in numbered]
    signatures = RMinHash.from_token_sets(sets, permutations, 1)
    signed = time.perf_counter() - began
    index = RMinHashLSH(request["threshold"], permutations, request["bands"])
    kept: dict[int, Any] = {}
    gone = []
    for (number, _), one in zip(numbered, signatures, strict=True):
        if any(one.jaccard(kept[other]) >= request["threshold"] for other in index.query(one)):
            gone.append(number)
            continue
        index.insert(number, one)
        kept[number] = one
    return {"seconds": time.perf_counter() - began, "signing_seconds": signed, "removed": gone}


def texts(request: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Number and text of each document of a folder of JSON lines."""
    for file in sorted(Path(request["folder"]).glob("*.jsonl")):
        with file.open() as lines:
            for line in lines:
                record = json.loads(line)
                yield int(record["id"]), record["text"]


def runs(text: str) -> list[bytes]:
    """Every run of five words."""
    words = _WORD.findall(text.lower())
    return [" ".join(words[start : start + 5]).encode() for start in range(max(1, len(words) - 4))]


def main() -> None:
    """Do what the request says."""
    request = json.loads(sys.argv[1])
    doing: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "step": step,
        "whole": whole,
        "datasketch": datasketch,
        "rensa": rensa,
    }
    print(json.dumps(doing[request["do"]](request)))


if __name__ == "__main__":
    main()
