"""Texts for benchmarks/prepare.py: real sentences in new documents, some of them planted near duplicates.

Comes in: C4 documents and Wikipedia articles where they are on this machine, else Python's own documentation. Leaves:
JSON lines and WET files of any size, the same bytes each time. A document is made of paragraphs of sentences that are
drawn from all texts, so that two of them share a sentence at most, unless one was planted as an edited copy.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

COPIES = 0.1  # share of the documents that are edited copies of an earlier one
EDITED = (0.002, 0.005, 0.01, 0.015, 0.03, 0.04, 0.06, 0.1)  # shares of a copy's words that are changed
RUN = 5  # words that likeness is measured in
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[a-z0-9]+|[^\x00-\x7f]+")


@dataclass(frozen=True)
class Text:
    """A document. copy_of: the number of the one it was made from, and their exact Jaccard similarity."""

    number: int
    text: str
    copy_of: int | None = None
    likeness: float = 0.0


def sentences(shared: Path) -> tuple[list[str], str]:
    """All sentences of the texts on this machine, each once, and where they are from."""
    folder = shared / "pretrain-text"
    if (folder / "c4_docs.jsonl.gz").exists():
        texts = [json.loads(line)["text"] for line in _unpacked(folder / "c4_docs.jsonl.gz") if line]
        texts += _unpacked(folder / "wikipedia_articles.txt.gz")
        return _cut(texts), "sentences of C4 and Wikipedia"
    from raylm.prep.readers.python_docs import documents

    return _cut([text for _, text in documents()]), "sentences of Python's documentation"


def _unpacked(file: Path) -> list[str]:
    return gzip.decompress(file.read_bytes()).decode().split("\n")


def _cut(texts: Sequence[str]) -> list[str]:
    found = (" ".join(one.split()) for text in texts for line in text.split("\n") for one in _SENTENCE_END.split(line))
    return list(dict.fromkeys(one for one in found if 20 <= len(one) <= 400))


def corpus(pool: Sequence[str], max_bytes: int, *, copies: float = COPIES, seed: int = 0) -> list[Text]:
    """Documents that together hold about this many bytes; a copy is far from what it was made from."""
    chance = random.Random(seed)
    words = sorted({word for sentence in pool for word in sentence.split() if word.isalpha()})
    originals: list[str] = []
    held = 0
    while held < max_bytes * (1 - copies):
        originals.append(_document(pool, chance))
        held += len(originals[-1].encode())
    chosen = chance.sample(range(len(originals)), round(len(originals) * copies / (1 - copies)))
    behind = len(originals)
    found = [Text(number, text) for number, text in enumerate(originals)]
    for number, one in enumerate(sorted(chosen), behind):
        changed = _edited(originals[one], chance.choice(EDITED), words, chance)
        found.append(Text(number, changed, one, likeness(originals[one], changed)))
    return found


def _document(pool: Sequence[str], chance: random.Random) -> str:
    """Paragraphs of two to six sentences, about 2.4 kB, as pages of a crawl have in the middle."""
    count = max(2, round(chance.lognormvariate(1.4, 0.7)))
    return "\n".join(" ".join(chance.choices(pool, k=chance.randint(2, 6))) for _ in range(count))


def _edited(text: str, share: float, words: Sequence[str], chance: random.Random) -> str:
    """The text with this share of its words, at least one, changed for others."""
    parts = re.split(r"(\s+)", text)
    places = range(0, len(parts), 2)
    for place in chance.sample(places, max(1, round(share * len(places)))):
        parts[place] = chance.choice(words)
    return "".join(parts)


def likeness(one: str, other: str) -> float:
    """Exact Jaccard similarity of the texts' sets of runs of words."""
    sets = [set(runs(text)) for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of words of the text, as both raylm and datatrove see words: no case, no punctuation."""
    words = _WORD.findall(text.lower())
    return zip(*(words[start:] for start in range(RUN)), strict=False)


def write_json_lines(folder: Path, texts: Sequence[Text], files: int, *, packed: bool) -> None:
    """The texts dealt to files in turn: text n is line n // files of file n % files."""
    folder.mkdir(parents=True)
    for number in range(files):
        lines = [json.dumps({"text": one.text, "id": str(one.number)}) + "\n" for one in texts[number::files]]
        data = "".join(lines).encode()
        name = f"{number:03d}.jsonl"
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data, 6, mtime=0))
        else:
            (folder / name).write_bytes(data)


def write_wet(folder: Path, texts: Sequence[Text], files: int) -> None:
    """The texts as Common Crawl keeps conversions: each record a gzip member of its own."""
    folder.mkdir(parents=True)
    for number in range(files):
        with (folder / f"{number:03d}.warc.wet.gz").open("wb") as stream:
            for one in texts[number::files]:
                stream.write(gzip.compress(_conversion(one), 6, mtime=0))


def _conversion(one: Text) -> bytes:
    body = one.text.encode()
    head = {
        "WARC-Type": "conversion",
        "WARC-Target-URI": f"https://example.org/{one.number}",
        "WARC-Date": "2026-01-01T00:00:00Z",
        "WARC-Record-ID": f"<urn:uuid:00000000-0000-0000-0000-{one.number:012d}>",
        "WARC-Identified-Content-Language": "eng",
        "WARC-Identified-Payload-Type": "text/plain",
        "Content-Type": "text/plain",
        "Content-Length": str(len(body)),
    }
    lines = "".join(f"{key}: {value}\r\n" for key, value in head.items())
    return f"WARC/1.0\r\n{lines}\r\n".encode() + body + b"\r\n\r\n"
