"""How fast is `raylm prepare`, step by step and as a whole, beside datatrove, datasketch and the tokenizers library?

Texts are new documents of real sentences (benchmarks/prepare_corpus.py); a tenth are edited copies whose exact
similarity is known. Two processes on both sides, turn by turn; figures are medians over rounds of ratios in a round.

Steps: both sides read the same file and do one step, in a pool that is warm, so that starting up counts for neither.
Near duplicates: datatrove's four stages (reading twice, as many buckets of as many hashes as raylm has bands of rows)
and raylm's three; datasketch, rensa and raylm in one process each on texts in memory, same bands and 256 permutations;
`_xxhash`: with that in place of its own hash, SHA-1.
Words are found by each in its own way: datatrove's default for English is spaCy, most of its time; with `_split` in
its name a figure is of datatrove with words split at spaces, which is none of its options but shows the rest.
End to end: the processes `raylm prepare` (its own Ray started and stopped) and datatrove's LocalPipelineExecutors with
2 workers, from JSON lines and WET in gzip to tokens on disk: rules of quality at their defaults, near duplicates,
tokenizing with the same tokenizer. Memory: the largest resident size of a preparation in one process.

    python benchmarks/prepare.py [--quick] [--keep] [--data PATH]

vs_datatrove                  datatrove's seconds over raylm's, end to end
dedup_vs_datatrove            the same for near-duplicate removal; dedup_vs_datasketch, dedup_vs_rensa: documents per
                              second over theirs
recall, precision             raylm's, of planted copies at least 0.04 from the threshold; _strict: of all
tokenize_vs_tokenizers        packed and written tokens a second over those of the tokenizers library alone
documents_per_second          by step, two processes; mb_per_second: megabytes of UTF-8
rss_10x_over_1x               most memory with ten times the input
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
# A task is promised one core, on both sides; the tokenizers library would take all.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from benchmarks import prepare_corpus  # noqa: E402
from benchmarks.common import arguments, finish, make_peers, table  # noqa: E402
from benchmarks.prepare_corpus import Text  # noqa: E402
from raylm.prep.operators.dedup.minhash import bands_for  # noqa: E402
from raylm.prep.operators.dedup.near import NearDuplicates  # noqa: E402
from raylm.testing.external import external_data  # noqa: E402

PEERS_VENV = ROOT / ".venv-peers-prepare"
PACKAGES = ["datatrove[io,processing]==0.10.1", "datasketch==2.0.0", "rensa==0.5.0", "spacy==3.8.18"]
RULES = ("gopher_quality", "gopher_repetition", "c4", "fineweb")
QUALITY = {"quality": {"rules": RULES}}
VOCABULARY = 32_000
MARGIN = 0.04  # an estimate from 256 permutations has a standard error of 0.025 at the threshold
THRESHOLD = NearDuplicates().threshold
_PREPARE = "from raylm.cli.main import main; main()"


@dataclass(frozen=True)
class Sizes:
    """Megabytes of text for each question, and how often it is asked. memory: the smaller of the two inputs."""

    steps: float
    whole: float
    memory: float
    rounds: int
    quick: bool
    files: int = 8


@dataclass
class Bench:
    """The folders and how to ask each side."""

    scratch: Path
    sizes: Sizes
    peers: bool
    pool: Sequence[str]
    asked: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that both sides use."""
        return self.scratch / "tokenizer"

    def request(self, **more: Any) -> dict[str, Any]:
        """What both sides have to know, with a fresh output folder."""
        self.asked += 1
        bands, rows = bands_for(THRESHOLD, NearDuplicates().permutations)
        return {
            "tokenizer": str(self.tokenizer / "tokenizer.json"),
            "tokenizer_folder": str(self.tokenizer),
            "bands": bands,
            "rows": rows,
            "threshold": THRESHOLD,
            "rules": RULES,
            "out": str(self.scratch / f"out-{self.asked}"),
            **more,
        }

    def ours(self, **more: Any) -> dict[str, Any]:
        """raylm's answer."""
        return self._ask(sys.executable, "prepare_raylm.py", more)

    def theirs(self, **more: Any) -> dict[str, Any]:
        """The peers' answer; empty when they failed."""
        return self._ask(str(PEERS_VENV / "bin" / "python"), "prepare_peers.py", more) if self.peers else {}

    def _ask(self, python: str, script: str, more: dict[str, Any]) -> dict[str, Any]:
        request = self.request(**more)
        began = time.perf_counter()
        done = subprocess.run(
            [python, str(ROOT / "benchmarks" / script), json.dumps(request)],
            capture_output=True,
            text=True,
            check=False,
        )
        spent = time.perf_counter() - began
        shutil.rmtree(request["out"], ignore_errors=True)
        shutil.rmtree(request["out"] + "-warm", ignore_errors=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            if script == "prepare_raylm.py":
                raise SystemExit(f"raylm failed: {done.stderr}")
            self.failures.append(f"{more['do']} {more.get('step', '')}: {last[:200]}")
            return {}
        return {**json.loads(done.stdout.strip().splitlines()[-1]), "process_seconds": spent}


def write_tokenizer(folder: Path, pool: Sequence[str]) -> None:
    """A tokenizer of the sentences."""
    from raylm.config.prepare.tokenizer import TokenizerSettings
    from raylm.prep.tokenizer import train, write_tokenizer
    from raylm.storage import StoragePath

    write_tokenizer(StoragePath(str(folder)), train(pool, TokenizerSettings(vocab_size=VOCABULARY)))


@dataclass(frozen=True)
class Measured:
    """A step's rates, and how often it was faster than datatrove's, round by round; None where that has no such step.

    seconds: both sides', for the record.
    """

    documents_per_second: float
    mb_per_second: float
    ratios: dict[str, float]
    seconds: dict[str, list[float]]
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)


def in_turns(rounds: int, sides: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Each side's answers, every other round in the other order."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides) if turn % 2 == 0 else reversed(list(sides)):
            answers[name].append(sides[name]())
    return answers


def measured(answers: dict[str, list[dict[str, Any]]], texts: Sequence[Text], key: str = "seconds") -> Measured:
    """What answers of `raylm` and of others come to."""
    seconds = {name: [one[key] for one in found if one] for name, found in answers.items()}
    ours = statistics.median(seconds["raylm"])
    return Measured(
        documents_per_second=len(texts) / ours,
        mb_per_second=megabytes(texts) / ours,
        ratios={
            name: round(
                statistics.median(theirs / mine for theirs, mine in zip(found, seconds["raylm"], strict=True)), 2
            )
            for name, found in seconds.items()
            if name != "raylm" and len(found) == len(seconds["raylm"])
        },
        seconds=seconds,
        answers={name: found[0] for name, found in answers.items()},
    )


def megabytes(texts: Sequence[Text]) -> float:
    """Of UTF-8."""
    return sum(len(one.text.encode()) for one in texts) / 1e6


def measure_steps(bench: Bench) -> tuple[dict[str, Measured], list[Text]]:
    """Each step alone, and near duplicates in one process beside datasketch."""
    sizes, rounds = bench.sizes, bench.sizes.rounds
    texts = prepare_corpus.corpus(bench.pool, int(sizes.steps * 1e6))
    few = prepare_corpus.corpus(bench.pool, 200_000, seed=1)
    folders = {}
    for kind, some in (("", texts), ("warm-", few)):
        files = sizes.files if some is texts else 1
        for name, packed in (("jsonl", False), ("jsonl.gz", True)):
            folders[kind + name] = bench.scratch / f"steps-{kind}{name}"
            prepare_corpus.write_json_lines(folders[kind + name], some, files, packed=packed)
        folders[f"{kind}wet"] = bench.scratch / f"steps-{kind}wet"
        prepare_corpus.write_wet(folders[f"{kind}wet"], some, files)

    def step(kind: str, name: str, **more: Any) -> dict[str, Any]:
        return {
            "do": "step",
            "step": name,
            "folder": str(folders[kind]),
            "warm": str(folders[f"warm-{kind}"]),
            "files": sizes.files,
            **more,
        }

    asked = {f"read {kind}": step(kind, "read", passes=10) for kind in ("jsonl", "jsonl.gz", "wet")}
    asked["quality"] = step("jsonl", "quality", steps=[QUALITY])
    asked["near_duplicates"] = step("jsonl", "near_duplicates")
    asked["tokenize"] = step("jsonl", "tokenize")
    found = {}
    for name, request in asked.items():
        sides = {"raylm": lambda request=request: bench.ours(**request)}
        if bench.peers:
            sides["datatrove"] = lambda request=request: bench.theirs(**request)
            if name == "near_duplicates":
                sides["split"] = lambda request=request: bench.theirs(**request, words="split")
        found[name] = measured(in_turns(rounds, sides), texts)
        say(name, found[name])
    plain = {"folder": str(folders["jsonl"]), "files": sizes.files}
    sides = {"raylm": lambda: bench.ours(do="alone", **plain)}
    if bench.peers:
        sides["datasketch"] = lambda: bench.theirs(do="datasketch", **plain)
        sides["rensa"] = lambda: bench.theirs(do="rensa", **plain)
        sides["xxhash"] = lambda: bench.theirs(do="datasketch", hash="xxhash", **plain)
    found["near_duplicates, one process"] = measured(in_turns(rounds, sides), texts)
    say("near_duplicates, one process", found["near_duplicates, one process"])
    return found, texts


def say(name: str, one: Measured) -> None:
    """A line while it goes on."""
    print(f"{name}: {one.mb_per_second:.1f} MB/s, {one.ratios}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Found:
    """How well planted copies were found. strict: without a margin around the threshold."""

    recall: float
    precision: float
    strict_recall: float
    strict_precision: float
    removed: int


def judged(texts: Sequence[Text], removed: set[int]) -> Found:
    """A pair counts as found when one of the two is gone; what is gone without one as similar is wrong."""
    pairs = [one for one in texts if one.copy_of is not None]
    likeness = {number: one.likeness for one in pairs for number in (one.number, one.copy_of)}

    def of(margin: float) -> tuple[float, float]:
        above = [one for one in pairs if one.likeness >= THRESHOLD + margin]
        hit = sum(one.number in removed or one.copy_of in removed for one in above)
        wrong = sum(likeness.get(number, 0.0) < THRESHOLD - margin for number in removed)
        return hit / max(1, len(above)), 1 - wrong / max(1, len(removed))

    recall, precision = of(MARGIN)
    strict_recall, strict_precision = of(0.0)
    return Found(recall, precision, strict_recall, strict_precision, len(removed))


def verdicts(found: dict[str, Measured], texts: Sequence[Text], files: int) -> dict[str, Found]:
    """Each contender's removal, judged."""
    judgements = {}
    for name, answer in found["near_duplicates"].answers.items():
        judgements[name] = judged(texts, {document * files + file for file, document in answer["removed"]})
    for name, answer in found["near_duplicates, one process"].answers.items():
        if name in ("datasketch", "rensa") and answer:
            judgements[name] = judged(texts, set(answer["removed"]))
    return judgements


def measure_whole(bench: Bench) -> Measured:
    """raylm prepare, and datatrove, from files to tokens."""
    texts = prepare_corpus.corpus(bench.pool, int(bench.sizes.whole * 1e6), seed=2)
    folders = {"jsonl": bench.scratch / "whole-jsonl", "wet": bench.scratch / "whole-wet"}
    prepare_corpus.write_json_lines(folders["jsonl"], texts[0::2], bench.sizes.files // 2, packed=True)
    prepare_corpus.write_wet(folders["wet"], texts[1::2], bench.sizes.files // 2)
    names = [str(folder) for folder in folders.values()]
    sides = {"raylm": lambda: prepared(bench, names)}
    if bench.peers:
        sides["datatrove"] = lambda: bench.theirs(do="whole", folders=names)
    if bench.peers and not bench.sizes.quick:
        sides["split"] = lambda: bench.theirs(do="whole", folders=names, words="split")
    found = measured(in_turns(bench.sizes.rounds, sides), texts, "process_seconds")
    say("end to end", found)
    return found


def prepared(bench: Bench, folders: Sequence[str]) -> dict[str, Any]:
    """The command of a user, as a process of its own."""
    from benchmarks.prepare_raylm import job_of

    steps = [QUALITY, "near_duplicates"]
    request = bench.request(folders=folders, steps=steps)
    job = bench.scratch / "job.yaml"
    out = Path(request["out"])
    job.write_text(json.dumps(job_of(request).model_dump(mode="json", include={"name", "storage", "prepare"})))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _PREPARE, "prepare", str(job)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    spent = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"raylm prepare failed: {done.stdout}\n{done.stderr}")
    manifest = json.loads(next(out.rglob("manifest.json")).read_text())
    shutil.rmtree(out)
    return {"process_seconds": spent, "tokens": manifest["train_tokens"] + manifest["held_out_tokens"]}


def measure_memory(bench: Bench) -> dict[str, Any]:
    """The same preparation of some text and of ten times as much, cut into units of the same size."""
    found = {}
    for times in (1, 10):
        texts = prepare_corpus.corpus(bench.pool, int(bench.sizes.memory * times * 1e6), seed=3)
        folder = bench.scratch / f"memory-{times}"
        prepare_corpus.write_json_lines(folder, texts, 1, packed=False)
        del texts
        steps = ["exact_duplicates", QUALITY, "near_duplicates"]
        unit_bytes = int(bench.sizes.memory * 1e6 / 4)
        found[times] = bench.ours(do="memory", folder=str(folder), steps=steps, unit_bytes=unit_bytes)
        shutil.rmtree(folder)
    return {
        "rss_10x_over_1x": round(found[10]["max_bytes"] / found[1]["max_bytes"], 3),
        "rss_mb": {f"{times}x": round(one["max_bytes"] / 1e6) for times, one in found.items()},
    }


def measure_tokenizing(bench: Bench) -> dict[str, Any]:
    """Packed and written tokens beside the tokenizers library alone, as benchmarks/tokenizing.py measures it."""
    from benchmarks import tokenizing

    texts = prepare_corpus.corpus(bench.pool, int(bench.sizes.steps * 1e6 / 2), seed=4)
    from benchmarks.prepare_raylm import give_tokenizer, job_of
    from raylm.records import Document

    request = bench.request(folder=str(bench.scratch / "steps-jsonl"))
    give_tokenizer(request)
    documents = [Document(str(one.number), one.text, "texts") for one in texts]
    timing = tokenizing.measure(job_of(request), documents, 3 * bench.sizes.rounds)
    shutil.rmtree(request["out"])
    return {"tokenize_vs_tokenizers": round(timing.ratio, 3), "tokens_per_second": round(timing.tokens_per_second)}


def main() -> None:
    """Write the texts, measure, report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, default=external_data(""), help="folder that holds pretrain-text")
    options = parser.parse_args()
    sizes = Sizes(1.5, 2.0, 1.0, 1, True) if options.quick else Sizes(10.0, 20.0, 6.0, 3, False)
    problem = make_peers(PEERS_VENV, PACKAGES)
    if problem:
        print(problem, file=sys.stderr)
    peers = problem is None
    pool, what = prepare_corpus.sentences(options.data)
    with tempfile.TemporaryDirectory(prefix="raylm-prepare-") as folder:
        bench = Bench(Path(folder), sizes, peers, pool)
        write_tokenizer(bench.tokenizer, pool)
        steps, texts = measure_steps(bench)
        tokenizing = measure_tokenizing(bench)
        whole = measure_whole(bench)
        memory = measure_memory(bench)
    judgements = verdicts(steps, texts, sizes.files)
    ours = judgements["raylm"]
    figures: dict[str, Any] = {}
    for name, one, key in (
        ("vs_datatrove", whole, "datatrove"),
        ("vs_datatrove_split", whole, "split"),
        ("dedup_vs_datatrove", steps["near_duplicates"], "datatrove"),
        ("dedup_vs_datatrove_split", steps["near_duplicates"], "split"),
        ("dedup_vs_datasketch", steps["near_duplicates, one process"], "datasketch"),
        ("dedup_vs_rensa", steps["near_duplicates, one process"], "rensa"),
        ("dedup_vs_datasketch_xxhash", steps["near_duplicates, one process"], "xxhash"),
    ):
        figures[name] = one.ratios.get(key)
    figures |= {
        "recall": round(ours.recall, 4),
        "precision": round(ours.precision, 4),
        "recall_strict": round(ours.strict_recall, 4),
        "precision_strict": round(ours.strict_precision, 4),
        **tokenizing,
        **memory,
        "documents_per_second": {name: round(one.documents_per_second) for name, one in all_of(steps, whole)},
        "mb_per_second": {name: round(one.mb_per_second, 2) for name, one in all_of(steps, whole)},
    }
    details = {
        "seconds": {name: one.seconds for name, one in all_of(steps, whole)},
        "left": {name: {who: one.get("left") for who, one in step.answers.items()} for name, step in steps.items()},
        "found": {name: vars(one) for name, one in judgements.items()},
        "failures": bench.failures,
    }
    notes = [
        f"{what}; {len(texts):,} documents, {megabytes(texts):.1f} MB, for steps, {sizes.whole:.0f} MB end to end; "
        f"{sizes.rounds} round(s). {', '.join(PACKAGES)}.",
        *bench.failures,
    ]
    shown = report(steps, whole, judgements)
    finish("prepare", figures, details=details, table="\n".join([*notes, "", shown]), keep=options.keep)


def all_of(steps: dict[str, Measured], whole: Measured) -> list[tuple[str, Measured]]:
    """Every measurement by name."""
    return [*steps.items(), ("end to end", whole)]


def report(steps: dict[str, Measured], whole: Measured, judgements: dict[str, Found]) -> str:
    """A row a step, and a row a contender."""
    rows = []
    for name, one in all_of(steps, whole):
        others = ", ".join(f"{ratio:g} of {other}" for other, ratio in one.ratios.items())
        rows.append([name, f"{one.documents_per_second:,.0f}", f"{one.mb_per_second:.1f}", others or "-"])
    shares = ("recall", "precision", "strict_recall", "strict_precision")
    found = [
        [name, one.removed, *(f"{getattr(one, share):.4f}" for share in shares)] for name, one in judgements.items()
    ]
    head = ["planted copies", "removed", "recall", "precision", "recall, strict", "precision, strict"]
    return "\n".join(
        [
            table(["step, two processes", "documents/s", "MB/s", "times as fast as"], rows),
            "",
            table(head, found),
        ]
    )


if __name__ == "__main__":
    main()
