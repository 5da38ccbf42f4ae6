"""What do packing and writing shards cost over the tokenizers library alone, which only tokenizes the same texts?

One task of `raylm prepare` (tokenize, count, split off the held-out documents, pack rows, write the shard with its
digest) takes turns with `encode_batch_fast` on the same texts in the same batches, in one process and one thread, with
the same tokenizer, warm. The texts are Python's own documentation: whole documents of some kilobytes, and its lines.

    python benchmarks/tokenizing.py [--quick]

(It is not called tokenize, which would hide the standard library's module from every benchmark beside it.)
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from benchmarks.common import arguments, finish, table  # noqa: E402

VOCABULARY = 32_000
LENGTH = 2048


@dataclass(frozen=True)
class Timing:
    """Medians over rounds. ratio: the library's seconds over raylm's; processor_ratio: of time spent computing."""

    documents: int
    megabytes: float
    tokens_per_second: float
    alone_tokens_per_second: float
    ratio: float
    spread: tuple[float, float]
    processor_ratio: float


def measure(job: Any, documents: Sequence[Any], rounds: int) -> Timing:
    """Let both take turns on the same documents."""
    from raylm.prep import pack
    from raylm.prep.operators.base import batches
    from raylm.prep.tokenizer import load
    from raylm.shards import TOKENIZER_FOLDER
    from raylm.storage import StoragePath

    output = StoragePath(job.shards_url)
    tokenizer, _ = load(output / TOKENIZER_FOLDER)

    def alone() -> None:
        for batch in batches(documents, pack.BATCH_CHARACTERS):
            tokenizer.encode_batch_fast([document.text for document in batch], add_special_tokens=False)

    def whole() -> int:
        counts = pack.pack_documents(job, output, 999_999, documents).counts
        return counts["tokens"] + counts["held_out_tokens"]

    tokens = whole()
    alone()
    seconds: dict[str, list[tuple[float, float]]] = {"alone": [], "whole": []}
    for turn in range(rounds):
        both: list[tuple[str, Callable[[], Any]]] = [("alone", alone), ("whole", whole)]
        for name, work in both if turn % 2 else reversed(both):
            seconds[name].append(timed(work))
    pairs = list(zip(seconds["alone"], seconds["whole"], strict=True))
    ratios = sorted(one[0] / other[0] for one, other in pairs)
    return Timing(
        documents=len(documents),
        megabytes=sum(len(document.text.encode()) for document in documents) / 1e6,
        tokens_per_second=tokens / statistics.median(wall for wall, _ in seconds["whole"]),
        alone_tokens_per_second=tokens / statistics.median(wall for wall, _ in seconds["alone"]),
        ratio=statistics.median(ratios),
        spread=(ratios[0], ratios[-1]),
        processor_ratio=statistics.median(one[1] / other[1] for one, other in pairs),
    )


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and seconds of the processor."""
    began, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - busy


def prepared(folder: str, most: int) -> tuple[Any, list[Any]]:
    """A job whose tokenizer is trained, and its documents."""
    from raylm.config.job import Job
    from raylm.prep.prepare import prepare
    from raylm.prep.readers.python_docs import documents
    from raylm.prep.tasks import here
    from raylm.records import Document

    source = {"name": "docs", "kind": "python-docs", "max_documents": most}
    settings = {"sources": [source], "sequence_length": LENGTH, "tokenizer": {"vocab_size": VOCABULARY}}
    job = Job.model_validate({"name": "tokenize", "storage": folder, "prepare": settings})
    prepare(job, session=here)
    found = (Document(name, text, "docs") for name, text in documents())
    return job, [document for document, _ in zip(found, range(most), strict=False)]


def main() -> None:
    """Measure, explain, and end with one line of JSON."""
    options = arguments(__doc__ or "").parse_args()
    most, rounds = (300, 5) if options.quick else (1500, 15)
    timings = {}
    with tempfile.TemporaryDirectory(prefix="raylm-tokenize-") as folder:
        job, documents = prepared(folder, most)
        lines = [
            replace(document, id=f"{document.id}:{number}", text=line)
            for document in documents
            for number, line in enumerate(document.text.splitlines())
            if line.strip()
        ]
        for name, texts in (("documents", documents), ("lines", lines)):
            timings[name] = measure(job, texts, rounds)
    rows = [
        [
            name,
            f"{timing.documents:,}",
            f"{timing.megabytes:.1f}",
            f"{timing.alone_tokens_per_second:,.0f}",
            f"{timing.tokens_per_second:,.0f}",
            f"{timing.ratio:.3f}",
            f"{timing.spread[0]:.3f} to {timing.spread[1]:.3f}",
            f"{timing.processor_ratio:.3f}",
        ]
        for name, timing in timings.items()
    ]
    head = ["texts", "number", "MB", "tokenizers: tokens/s", "raylm: tokens/s", "ratio", "least, most", "processor"]
    figures = {
        "tokenize_vs_tokenizers": round(timings["documents"].ratio, 4),
        "tokenize_vs_tokenizers_lines": round(timings["lines"].ratio, 4),
        "tokens_per_second": round(timings["documents"].tokens_per_second),
    }
    details = {name: vars(timing) for name, timing in timings.items()}
    finish("tokenizing", figures, details=details, table=table(head, rows), keep=options.keep)


if __name__ == "__main__":
    main()
