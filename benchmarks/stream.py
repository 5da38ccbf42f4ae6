"""How fast do tokens reach a worker, and how soon does the first batch come, at the start and at 80 % of an epoch?

raylm beside mosaicml-streaming, litdata, Hugging Face datasets (streaming from Parquet) and a plain memory map, over
the same rows, from local disk and from an S3 server on this machine. Every measurement is a fresh process; contenders
take turns, so that a busy machine is busy for all; figures are medians over rounds. The peers live in a virtual
environment of their own, which is made on first use (.venv-peers) and borrows torch, numpy and pyarrow from this one.

    python benchmarks/stream.py [--quick] [--keep]

tokens_per_second        raylm, threads in the worker, local disk, steady; _ray through Ray Data; _s3 from S3 over
                         one epoch with the wait for its first batch, since peers keep what they downloaded on disk
first_batch_seconds      raylm, local disk, at step 0; _80 at 80 % of an epoch; _s3 from S3
vs_best_peer             raylm's tokens a second over the fastest library's, round by round, the median of the rounds;
                         the smaller of disk and S3
seek_over_start          raylm's first batch at 80 % over at step 0, the larger of disk and S3
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402

from benchmarks.common import arguments, finish, make_peers, table  # noqa: E402

PEERS = ("litdata", "mosaicml-streaming", "datasets")
PEERS_VENV = ROOT / ".venv-peers"
READERS = ROOT / "benchmarks" / "stream_readers.py"
ROW, BATCH, VOCABULARY = 2048, 32, 32000
# mosaicml-streaming pins older transformers and numpy and wants torchvision, none of which it needs here.
PACKAGES = [
    "mosaicml-streaming==0.13.0",
    "litdata==0.2.76",
    "datasets==5.2.0",
    *("brotli", "catalogue", "cramjam", "decorator", "dill", "lightning_utilities", "multiprocess", "obstore"),
    *("python-snappy", "tifffile", "xxhash", "zstandard", "zstd"),
]


@dataclass(frozen=True)
class Contender:
    """A reader as it is run: where from, and with how many DataLoader workers."""

    reader: str
    place: str
    workers: int = 0
    shuffle_rows: int = 0

    @property
    def label(self) -> str:
        """Its row in the table."""
        extra = f", {self.workers} workers" if self.workers else ""
        return self.reader + extra + (", rows shuffled" if self.shuffle_rows else "")


@dataclass
class Bench:
    """The data sets and how to measure on them."""

    roots: dict[str, str]
    endpoint: str | None
    scratch: Path
    rows: int
    seconds: float
    failures: list[str] = field(default_factory=list)

    def measure(self, contender: Contender, *, start: float, seconds: float) -> dict[str, float]:
        """One run in a fresh process; empty when it failed."""
        python = PEERS_VENV / "bin" / "python" if contender.reader in PEERS else Path(sys.executable)
        s3 = contender.place == "s3"
        request = {
            "reader": contender.reader,
            "root": self.roots[contender.place],
            "endpoint": self.endpoint if s3 else None,
            "scratch": str(self.scratch),
            "start_row": int(self.rows * start) // BATCH * BATCH,
            "rows": self.rows,
            "row": ROW,
            "batch": BATCH,
            "workers": contender.workers,
            "shuffle_rows": contender.shuffle_rows,
            "seconds": seconds,
        }
        done = run(python, request, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            self.failures.append(f"{contender.label} ({contender.place}): {last[:200]}")
            return {}
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def run(python: Path, request: dict[str, Any], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A reader's process."""
    from raylm.testing.servers import CREDENTIALS

    environment = {
        **os.environ,
        **CREDENTIALS,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HF_HOME": request.get("scratch", tempfile.gettempdir()),
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(python), str(READERS), json.dumps(request)]
    return subprocess.run(command, capture_output=True, text=True, check=check, env=environment, timeout=600)


def complete_peers(folder: Path) -> None:
    """Lend the peers torch, numpy and pyarrow, and what mosaicml-streaming imports for its picture data sets only."""
    ask = [str(folder / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (packages / "zz_borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    stub = packages / "torchvision" / "transforms"
    stub.mkdir(parents=True)
    for name in ("torchvision/__init__.py", "torchvision/transforms/__init__.py"):
        (packages / name).write_text("")
    (packages / "torchvision" / "datasets.py").write_text("CIFAR10 = VisionDataset = object\n")
    (stub / "functional.py").write_text("to_tensor = None\n")


def write_data(folder: Path, rows: int, *, peers: bool) -> None:
    """The same rows as shards, as a flat file, and in each peer's own format."""
    from raylm.shards import RowFormat
    from raylm.testing.datasets import write_dataset

    folder.mkdir()
    tokens = some_tokens(rows)
    tokens.tofile(folder / "tokens.bin")
    write_dataset(
        folder / "raylm",
        RowFormat(ROW, VOCABULARY, "", eos_id=0),
        tokens,
        tokens[:0],
        shard_rows=-(-rows // 8),
        document_starts=(0, ROW // 3, ROW // 2),
    )
    if peers:
        request = {"reader": "write", "root": str(folder), "tokens": str(folder / "tokens.bin"), "row": ROW}
        run(PEERS_VENV / "bin" / "python", {**request, "scratch": str(folder.parent)})


def some_tokens(rows: int) -> np.ndarray[Any, Any]:
    """Rows of numbered words of Python's standard library, which compress as tokens of a language do."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = "\n".join(path.read_text(errors="ignore") for path in files)
    words = re.findall(r"\w+|\W", text)
    common = [word for word, _ in collections.Counter(words).most_common(VOCABULARY - 1)]
    numbers = {word: number for number, word in enumerate(common)}
    tokens = np.array([numbers.get(word, VOCABULARY - 1) for word in words], dtype=np.uint16)
    starts = np.random.default_rng(0).integers(0, len(tokens) - ROW, rows)
    return np.stack([tokens[start : start + ROW] for start in starts])


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[Any]:
    """SeaweedFS, or moto where it cannot be had."""
    from raylm.testing.servers import CREDENTIALS, ServerMissing, moto, seaweed

    os.environ.update(CREDENTIALS)
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(seaweed(folder / "seaweed"))
        except ServerMissing as error:
            print(f"no SeaweedFS ({error}); moto instead", file=sys.stderr)
            server = stack.enter_context(moto(folder / "moto"))
        yield server


def upload(folder: Path, server: Any) -> str:
    """Copy every format into the server's bucket; the prefix."""
    target = server.bucket()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "tokens.bin":
            (target / str(path.relative_to(folder))).write_bytes(path.read_bytes())
    return str(target.url)


def contenders(*, quick: bool, peers: bool) -> list[Contender]:
    """Everything that is measured, in the order of a round."""
    found = [Contender("memory_map", "disk")]
    for place in ("disk", "s3"):
        # raylm and the library that usually comes second run back to back, since their ratio is a figure.
        found += [Contender("raylm", place)]
        if peers:
            found += [Contender(name, place) for name in PEERS]
            if not quick:
                found += [Contender(name, place, workers=2) for name in PEERS[:2]]
                found += [Contender("datasets", place, shuffle_rows=512)]
    if not quick:
        found += [Contender("raylm_ray", "disk"), Contender("raylm_ray", "s3")]
    return found


def main() -> None:
    """Prepare, measure in turns, report."""
    options = arguments(__doc__ or "").parse_args()
    problem = make_peers(PEERS_VENV, PACKAGES, flags=["--no-deps"], complete=complete_peers)
    if problem:
        print(problem, file=sys.stderr)
    peers = problem is None
    rows, rounds, seconds = (20480, 2, 1.0) if options.quick else (32768, 3, 2.0)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_data(scratch / "data", rows, peers=peers)
        with object_store(scratch) as server:
            roots = {"disk": str(scratch / "data"), "s3": upload(scratch / "data", server)}
            bench = Bench(roots, server.endpoint, scratch, rows, seconds)
            measured = measure_all(bench, contenders(quick=options.quick, peers=peers), rounds, quick=options.quick)
            store = server.name
    figures = figures_of(measured)
    shown = report(measured)
    notes = [f"{rows * ROW / 1e6:.0f}M tokens; batches of {BATCH} x {ROW}; S3 is {store}; {rounds} round(s)."]
    notes += [f"failed: {failure}" for failure in dict.fromkeys(bench.failures)]
    details = {f"{contender.label} ({contender.place})": runs for contender, runs in measured.items()}
    text = "\n".join([*notes, "", shown])
    finish("stream", figures, details=details, table=text, keep=options.keep)


Measured = dict[Contender, dict[str, list[float]]]


def measure_all(bench: Bench, found: list[Contender], rounds: int, *, quick: bool) -> Measured:
    """Every contender once a round, from the start and at 80 %; raylm's seeks more often, being a ratio."""
    measured: Measured = {contender: {"start": [], "at_80": [], "tokens_per_second": []} for contender in found}
    for number in range(rounds):
        for contender in found:
            decides = contender.reader in ("raylm", "litdata") and not contender.workers
            if number and not decides and (quick or contender.workers or contender.shuffle_rows):
                continue  # slower wherever it was tried: once is enough
            print(f"round {number + 1} of {rounds}: {contender.label} ({contender.place})", file=sys.stderr, flush=True)
            begun = bench.measure(contender, start=0.0, seconds=bench.seconds)
            runs = measured[contender]
            if not begun:
                continue
            runs["tokens_per_second"].append(begun["tokens_per_second"])
            runs["start"].append(begun["first_batch_seconds"])
            seeks = (2 if quick else 3) if contender.reader == "raylm" else 1 - min(number, 1)
            for repeat in range(seeks):
                late = bench.measure(contender, start=0.8, seconds=0)
                again = bench.measure(contender, start=0.0, seconds=0) if repeat else {}
                for key, run_ in (("at_80", late), ("start", again)):
                    runs[key] += [run_["first_batch_seconds"]] if run_ else []
    return measured


def median(values: list[float]) -> float | None:
    """The median, or None of nothing."""
    return statistics.median(values) if values else None


def figures_of(measured: Measured) -> dict[str, Any]:
    """The figures that the last line holds."""
    figures: dict[str, Any] = {}
    against, seeks = [], []
    for place, suffix in (("disk", ""), ("s3", "_s3")):
        ours = measured[Contender("raylm", place)]
        speed, first, late = (median(ours[key]) for key in ("tokens_per_second", "start", "at_80"))
        figures[f"tokens_per_second{suffix}"] = speed and round(speed)
        figures[f"first_batch_seconds{suffix}"] = first and round(first, 4)
        figures[f"first_batch_seconds_80{suffix}"] = late and round(late, 4)
        seeks.append(late / first if late and first else float("nan"))
        theirs = [
            runs["tokens_per_second"]
            for contender, runs in measured.items()
            if contender.place == place and contender.reader in PEERS and runs["tokens_per_second"]
        ]
        if speed and theirs:
            best = max(theirs, key=statistics.median)
            ratio = statistics.median(
                mine / other for mine, other in zip(ours["tokens_per_second"], best, strict=False)
            )
            against.append(ratio)
            figures[f"vs_best_peer{suffix or '_disk'}"] = round(ratio, 2)
        through_ray = measured.get(Contender("raylm_ray", place))
        if through_ray and through_ray["tokens_per_second"]:
            figures[f"tokens_per_second_ray{suffix}"] = round(median(through_ray["tokens_per_second"]) or 0)
    figures["vs_best_peer"] = round(min(against), 2) if against else None
    figures["seek_over_start"] = round(max(seeks), 3)
    return figures


def report(measured: Measured) -> str:
    """A row a contender."""
    lines = []
    for contender, runs in measured.items():
        speed, first, late = (median(runs[key]) for key in ("tokens_per_second", "start", "at_80"))
        lines.append(
            [
                contender.place,
                contender.label,
                f"{speed / 1e6:.1f}" if speed else "-",
                f"{first:.3f}" if first else "-",
                f"{late:.3f}" if late else "-",
            ]
        )
    lines.sort(key=lambda line: line[0])
    return table(["from", "reader", "Mtokens/s", "first batch at 0 (s)", "at 80 % (s)"], lines)


if __name__ == "__main__":
    main()
