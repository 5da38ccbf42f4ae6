"""How many of the wanted words of web pages does raylm keep, and how many that are not wanted?

Pages with known wanted words, from up to three places: 416 that the benchmark makes (13 kinds of text in 8 kinds of
site, 10 languages, the same ones each time); those in the WARC files below --data that have a label, a path to what
is wanted on that site's pages, written by hand (extraction_pages.py; others are left out, and counted); and
any page NAME.html below --data with its wanted text in NAME.txt beside it. raylm's main text is compared with
trafilatura's, in a virtual environment of its own that is made on first use (.venv-peers-extraction), and with
Resiliparse's own, of main content and of everything.

    python benchmarks/extraction.py [--quick] [--keep] [--data PATH] [--seed N]

Words are compared as bags, page by page: a word that is wanted twice and kept once is half kept. In scripts that do not
part words each letter is one. Headlines, names and dates count neither way.

kept              words kept of those that are wanted, over all pages; trafilatura_kept, resiliparse_kept, all_text_kept
precision         wanted words of those that are kept; likewise
made_kept, ...    of the made pages alone; archives_kept, ... of labelled ones; folder_kept, ... of pages with texts
least_kept        of the kinds of text, the one of which least is kept
pages_per_second  raylm, of CPU time, parsing included; vs_trafilatura: over trafilatura's
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import arguments, finish, make_peers, table  # noqa: E402
from benchmarks.extraction_pages import Page, archived, beside, made  # noqa: E402
from raylm.prep.readers.page_text import page_reader  # noqa: E402
from raylm.testing.external import external_data  # noqa: E402

PEERS_VENV = ROOT / ".venv-peers-extraction"
PACKAGES = ["trafilatura==2.3.1", "lxml_html_clean"]
MADE = 416
_WORD = re.compile(
    # Thai to Myanmar, Khmer, kana, ideographs: a letter each; others: words.
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
    r"|[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)


@dataclass(frozen=True)
class Score:
    """Words of one or more pages: wanted, got, and both."""

    wanted: int = 0
    got: int = 0
    both: int = 0

    @property
    def kept(self) -> float:
        """Of the wanted words, those that were kept."""
        return self.both / self.wanted if self.wanted else 1.0

    @property
    def precision(self) -> float:
        """Of the kept words, those that were wanted."""
        return self.both / self.got if self.got else 1.0


def words(text: str) -> Counter[str]:
    """How often each word stands in a text."""
    return Counter(_WORD.findall(text.casefold()))


def score(page: Page, text: str) -> Score:
    """How a text compares with what is wanted of its page; neutral words beyond the wanted ones are not counted."""
    wanted, got, neutral = words(page.wanted), words(text), words(page.neutral)
    both = wanted & got
    beyond = got - both
    return Score(wanted.total(), both.total() + (beyond - neutral).total(), both.total())


def total(scores: Iterable[Score]) -> Score:
    """The sum over pages."""
    listed = list(scores)
    return Score(*(sum(getattr(one, name) for one in listed) for name in ("wanted", "got", "both")))


def timed(extract: Callable[[str], str], pages: Sequence[Page]) -> tuple[list[str], float]:
    """Each page's text, and the CPU seconds that all of them took."""
    extract(pages[0].html)
    began = time.process_time()
    texts = [extract(page.html) for page in pages]
    return texts, time.process_time() - began


def resiliparse(*, main: bool) -> Callable[[str], str]:
    """Resiliparse as it is."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    return lambda html: str(extract_plain_text(HTMLTree.parse(html), main_content=main, alt_texts=False))


def trafilatura(pages: Sequence[Page]) -> tuple[list[str], float]:
    """What trafilatura makes of the pages."""
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "pages.json"
        request.write_text(json.dumps([page.html for page in pages]))
        command = [str(PEERS_VENV / "bin" / "python"), str(ROOT / "benchmarks" / "extraction_peers.py"), str(request)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    if done.returncode:
        raise SystemExit(f"trafilatura failed: {done.stderr.strip().splitlines()[-1]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return answer["texts"], answer["seconds"]


def corpus(options: Any) -> tuple[list[Page], str]:
    """All pages, and a sentence that says which."""
    unlabelled: list[str] = []
    pages = list(made(MADE // 4 if options.quick else MADE, options.seed))
    if options.data.is_dir():
        pages += [*archived(options.data, without_label=unlabelled), *beside(options.data)]
    groups = Counter(page.group for page in pages)
    said = f"Pages: {', '.join(f'{count} {group}' for group, count in groups.items())}"
    if not options.data.is_dir():
        return pages, f"{said}. No archives: {options.data} is not there; give --data, or set RAYLM_TEST_DATA."
    return pages, f"{said}; {len(unlabelled)} pages of the archives have no label and are left out."


def rows(pages: Sequence[Page], scores: dict[str, list[Score]], by: Callable[[Page], str]) -> list[list[Any]]:
    """A line for each value of `by`: pages, words, and each contender's kept and precision."""
    lines = []
    for name in dict.fromkeys(by(page) for page in pages):
        inside = [number for number, page in enumerate(pages) if by(page) == name]
        sums = {who: total(one[number] for number in inside) for who, one in scores.items()}
        cells = [f"{one.kept:.3f} / {one.precision:.3f}" for one in sums.values()]
        lines.append([name, len(inside), next(iter(sums.values())).wanted, *cells])
    return lines


def main() -> None:
    """Extract, compare, report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, default=external_data(""), help="folder with archives, or pages and texts")
    parser.add_argument("--seed", type=int, default=11, help="of the made pages: another one makes others")
    options = parser.parse_args()
    pages, said = corpus(options)
    reader = page_reader(whole=False)
    texts, seconds = timed(lambda html: reader(html.encode(), "utf-8").text, pages)
    found = {"raylm": texts}
    figures: dict[str, Any] = {"pages_per_second": round(len(pages) / seconds)}
    notes = [said]
    problem = make_peers(PEERS_VENV, PACKAGES)
    if problem is None:
        found["trafilatura"], peer_seconds = trafilatura(pages)
        figures["vs_trafilatura"] = round(peer_seconds / seconds, 1)
    else:
        python = PEERS_VENV / "bin" / "python"
        notes.append(f"No trafilatura: {problem}. To compare with it: {python} -m pip install {' '.join(PACKAGES)}")
    found |= {"resiliparse": timed(resiliparse(main=True), pages)[0]}
    found |= {"all_text": timed(resiliparse(main=False), pages)[0]}
    scores = {who: [score(page, text) for page, text in zip(pages, one, strict=True)] for who, one in found.items()}
    figures |= summary(pages, scores)
    head = ["pages", "words", *found]
    shown = [
        table(["of", *head], [["all", *rows(pages, scores, lambda _: "")[0][1:]], *rows(pages, scores, _group)]),
        table(["kind of text", *head], rows(pages, scores, lambda page: page.kind)),
        table(["site", *head], rows(pages, scores, lambda page: page.frame)),
    ]
    details = {who: [[one.wanted, one.got, one.both] for one in listed] for who, listed in scores.items()}
    notes.append("Each cell: kept / precision.")
    finish("extraction", figures, details=details, table="\n\n".join([*notes, *shown]), keep=options.keep)


def summary(pages: Sequence[Page], scores: dict[str, list[Score]]) -> dict[str, float]:
    """The figures: over all pages, by group, and the kind of text of which least is kept."""
    figures = {}
    for who, listed in scores.items():
        name = "" if who == "raylm" else f"{who}_"
        figures |= {f"{name}{key}": round(getattr(total(listed), key), 4) for key in ("kept", "precision")}
    for group in dict.fromkeys(map(_group, pages)):
        for who, listed in scores.items():
            name = "" if who == "raylm" else f"{who}_"
            one = total(own for own, page in zip(listed, pages, strict=True) if page.group == group)
            figures |= {f"{group}_{name}{key}": round(getattr(one, key), 4) for key in ("kept", "precision")}
    kinds = {page.kind for page in pages}
    paired = list(zip(pages, scores["raylm"], strict=True))
    least = min(total(own for page, own in paired if page.kind == kind).kept for kind in kinds)
    return figures | {"least_kept": round(least, 4)}


def _group(page: Page) -> str:
    return page.group


if __name__ == "__main__":
    main()
