"""The report: what a run folder's lines become in totals, in words, and on the page."""

import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from raylm.errors import DataError
from raylm.report import read_history, render, totals, write_report
from raylm.report.charts import Mark, Point, chart, grouped, nice_ticks, smoothed, step_axis
from raylm.run.events import parse_event
from raylm.run.folder import RunFolder
from raylm.storage import StoragePath


class Writer:
    """Writes a run's lines at times of a clock that the test turns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.metrics: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"event": kind, "time": self.now.isoformat().replace("+00:00", "Z"), **fields})

    def steps(self, first: int, last: int, *, seconds: float = 1.0, workers: int = 2, **more: Any) -> None:
        for step in range(first, last + 1):
            self.wait(seconds)
            line = {
                "step": step,
                "time": self.now.isoformat(),
                "loss": 5 - step / 10,
                "lr": 1e-3,
                "grad_norm": 1.0,
                "tokens": 100,
                "tokens_per_second": 100 / seconds,
                "step_seconds": seconds,
                "workers": workers,
            }
            self.metrics[step] = {**line, **more}

    def write(self) -> RunFolder:
        self.folder.mkdir(parents=True, exist_ok=True)
        metrics = [self.metrics[step] for step in sorted(self.metrics)]
        for name, lines in (("metrics.jsonl", metrics), ("events.jsonl", self.events)):
            (self.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return RunFolder(StoragePath(str(self.folder)))


def eventful(folder: Path) -> Writer:
    """10 steps; a loss after step 10 that throws 4 away; growth at step 20; a night off at 25; 30 steps in all."""
    run = Writer(folder)
    run.event("started", step=0, workers=2, seconds=3.0)
    run.steps(1, 6)
    run.event("checkpoint_committed", step=6, workers=2, seconds=0.5, bytes=2048)
    run.steps(7, 10)
    run.event("worker_lost", step=10, workers=2, ranks=[1], message="lost: node gone", last_committed=6)
    run.wait(8)
    run.event("resized", step=10, workers=1, workers_before=2)
    run.event("resumed", step=6, workers=1, seconds=2.0, steps_lost=4, since_loss_seconds=8.0)
    run.steps(7, 20, seconds=2.0, workers=1)
    run.wait(5)
    run.event("resized", step=20, workers=2, workers_before=1)
    run.event("resumed", step=20, workers=2, seconds=1.0, steps_lost=0, since_loss_seconds=5.0)
    run.steps(21, 25)
    run.wait(36_000)
    run.event("resumed", step=25, workers=2, seconds=4.0, steps_lost=0)
    run.steps(26, 30)
    run.event("evaluated", step=30, workers=2, held_out_loss=2.25)
    run.event("finished", step=30, workers=2)
    return run


def test_the_span_is_divided_into_useful_replayed_idle_and_stopped(tmp_path: Path) -> None:
    total = totals(read_history(eventful(tmp_path).write()))
    assert total.useful_seconds == 6 + 14 * 2 + 10
    assert total.replayed_seconds == 4
    assert total.idle_seconds == 3 + 8 + 5 + 4
    assert total.unnamed_seconds == total.idle_seconds  # this log names no phases
    assert total.stopped_seconds == 36_000 - 4
    assert total.span_seconds == 3 + 10 + 8 + 28 + 5 + 5 + 36_000 + 5


def test_what_happened_is_counted(tmp_path: Path) -> None:
    total = totals(read_history(eventful(tmp_path).write()))
    assert (total.steps, total.tokens, total.steps_lost) == (30, 3000, 4)
    assert (total.workers_lost, total.resizes, total.notices, total.checkpoints) == (1, 2, 0, 1)


def test_a_replayed_step_counts_once(tmp_path: Path) -> None:
    run = eventful(tmp_path)
    place = run.write()
    file = tmp_path / "metrics.jsonl"
    first_try = {**run.metrics[7], "loss": 99.0}
    file.write_text(json.dumps(first_try) + "\n" + file.read_text())
    history = read_history(place)
    assert [step.step for step in history.steps] == list(range(1, 31))
    assert history.steps[6].loss == run.metrics[7]["loss"]


def test_half_a_last_line_is_passed_over_and_a_broken_one_costs_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = eventful(tmp_path).write()
    file = tmp_path / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"step": 31, "ti')
    assert len(read_history(place).steps) == 30
    file.write_text("{oops\n" + whole)
    assert len(read_history(place).steps) == 30
    assert "metrics.jsonl:1 is damaged and left out: not a JSON line" in caplog.text


def test_an_empty_folder_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to report") as caught:
        read_history(RunFolder(StoragePath(str(tmp_path))))
    assert "run folder" in str(caught.value.hint)


class Page(HTMLParser):
    """Collects what a browser would fetch or run, and checks that elements close."""

    VOID = ("meta", "input", "line", "circle", "path", "polygon", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.fetched += [
            f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_but_itself(tmp_path: Path) -> None:
    place = write_report(eventful(tmp_path).write())
    text = place.read_text()
    page = Page(text)
    assert place.name == "report.html"
    assert page.open == []
    assert page.fetched == []
    assert not re.search(r"@import|url\(|https?://", text)
    assert page.seen.count("svg") > 8
    assert "prefers-color-scheme: dark" in text


def test_every_loss_notice_resize_and_checkpoint_is_marked_in_both_views(tmp_path: Path) -> None:
    run = eventful(tmp_path)
    run.event("preemption_notice", step=30, workers=2, ranks=[0], grace_seconds=20)
    text = render(read_history(run.write()))
    for axis in ("step", "time"):
        charts = re.findall(rf'<svg viewBox[^>]*data-axis="{axis}".*?</svg>', text)
        assert len(charts) == 5
        for one in charts:
            kinds = [one.count(f'class="marked {kind}"') for kind in ("loss", "notice", "resize", "checkpoint")]
            assert kinds == [1, 1, 2, 1]


def test_what_a_run_says_cannot_become_markup(tmp_path: Path) -> None:
    run = eventful(tmp_path / "<img src=x>")
    run.event("failed", step=30, workers=2, message='</script><script>alert("x")</script>')
    run.event("<b>odd</b>", step=30)
    text = render(read_history(run.write()))
    page = Page(text)
    assert page.seen.count("script") == 2
    assert "img" not in page.seen
    assert "b" not in page.seen
    assert page.open == []


@pytest.mark.parametrize("loss", ["NaN", "Infinity", None, float("nan")])
def test_a_loss_that_is_no_number_leaves_the_page_whole(tmp_path: Path, loss: object) -> None:
    run = eventful(tmp_path)
    run.steps(31, 33, loss=loss, tokens_per_second=None)
    run.event("bad_loss", step=31, workers=2, loss="nan")
    text = render(read_history(run.write()))
    assert Page(text).open == []
    data = re.search(r'id="data">(.*?)</script>', text)
    assert data is not None
    assert json.loads(data[1], parse_constant=lambda name: pytest.fail(name))["rows"][-1][2] is None
    assert not re.search(r'(?:points|d|cx|cy|x|y)="[^"]*nan', text)


def test_a_run_that_only_began_has_a_page(tmp_path: Path) -> None:
    run = Writer(tmp_path)
    run.event("started", step=0, workers=1, seconds=2.0)
    assert "at step 0" in render(read_history(run.write()))
    run.steps(1, 1)
    assert "at step 1" in render(read_history(run.write()))


def test_a_long_run_stays_a_small_page(tmp_path: Path) -> None:
    run = Writer(tmp_path)
    run.event("started", step=0, workers=2, seconds=3.0)
    for start in range(1, 20_001, 20):
        run.steps(start, start + 19)
        run.event("checkpoint_committed", step=start + 19, workers=2, seconds=0.1, bytes=10)
    assert len(render(read_history(run.write()))) < 1_000_000


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("started", {"workers": 1, "seconds": 3.2}, "started with 1 worker after 3.2s"),
        (
            "resumed",
            {"step": 5, "workers": 2, "steps_lost": 1, "checkpoint": "runs/a/checkpoints/step-000000005"},
            "resumed from storage at step 5 with 2 workers, 1 step to train again",
        ),
        (
            "resumed",
            {"step": 5, "workers": 2, "steps_lost": 0},
            "resumed from memory at step 5 with 2 workers, no step lost",
        ),
        ("resumed", {"step": 0, "workers": 2}, "resumed at step 0 with 2 workers, no step lost"),
        ("shrink_requested", {"step": 9}, "another run waits for workers at step 9: some of these leave"),
        (
            "worker_lost",
            {"step": 9, "ranks": [1, 2], "last_committed": 5},
            "lost rank 1, 2 at step 9; last checkpoint: step 5",
        ),
        ("resized", {"step": 9, "workers": 1, "workers_before": 3}, "resized from 3 to 1 worker at step 9"),
        (
            "preemption_notice",
            {"step": 9, "grace_seconds": 28},
            "notice at step 9: a node will be reclaimed, 28s left; its workers leave",
        ),
        (
            "checkpoint_committed",
            {"step": 9, "seconds": 0.5, "bytes": 2048},
            "checkpoint of step 9 committed in 0.5s, 2.0 KiB",
        ),
        ("evaluated", {"step": 9, "held_out_loss": 2.5}, "held-out loss 2.5000 at step 9"),
        ("something_new", {"step": 9}, "something new at step 9"),
    ],
)
def test_events_in_words(kind: str, fields: dict[str, Any], words: str) -> None:
    assert parse_event({"event": kind, **fields}).describe() == words


def test_grouping_keeps_the_mean_and_the_extremes() -> None:
    points = grouped([(float(x), float(x % 10)) for x in range(1000)], most=100)
    assert len(points) == 100
    assert points[0] == Point(9.0, 4.5, 0.0, 9.0)


def test_marks_that_would_cover_each_other_are_told_in_few() -> None:
    def drawn(count: int) -> str:
        marks = [Mark(at, ("loss", "resize")[at % 2], f"event {at}") for at in range(count)]
        return chart(title="loss", axis=step_axis(count), series=[], marks=marks, label=str)

    assert drawn(20).count('class="marked') == 20
    many = drawn(5000)
    assert 100 < many.count('class="marked') < 200
    assert "event 0; and 29 more, up to: event 58" in many


def test_smoothing_keeps_a_straight_line() -> None:
    line = grouped([(float(x), float(x)) for x in range(500)])
    assert [point.value for point in smoothed(line)] == pytest.approx([point.value for point in line])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (2.3, 2.9), (0, 3e-4), (-5, 5), (1e6, 5e6), (3, 3)])
def test_ticks_are_inside_and_few(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_the_ranks_own_seconds_have_a_chart_where_they_were_measured(tmp_path: Path) -> None:
    log = Writer(tmp_path)
    log.event("started", step=0, workers=3, seconds=1.0)
    log.steps(1, 10, workers=3)
    assert "seconds a step by itself" not in render(read_history(log.write()))
    for step in (3, 6, 9):
        log.metrics[step]["rank_seconds"] = [0.5, 0.4, 0.9]
    log.event("straggler", step=9, rank=2, node="c", step_seconds=0.9, others_seconds=0.45, seconds=120.0)
    page = render(read_history(log.write()))
    assert "seconds a step by itself" in page
    assert "rank 2 on c is slow at step 9: by itself it takes 0.9 s a step, the others 0.45 s" in page
    assert 'class="marked slow"' in page


def test_the_held_out_loss_of_each_source_has_a_line_and_a_row(tmp_path: Path) -> None:
    run = Writer(tmp_path / "run")
    run.event("started", step=0, workers=1, seconds=1.0)
    run.steps(1, 30)
    for step, (web, books) in {10: (4.0, 3.5), 20: (3.0, 3.25), 30: (3.125, 3.0)}.items():
        by_source = {"web": web, "books <b>": books}
        run.event("evaluated", step=step, workers=1, held_out_loss=3.0, by_source=by_source)
    page = render(read_history(run.write()))
    section = page.partition("<h2>Sources</h2>")[2].partition("</section>")[0]
    assert section.count('class="line source-') == 2
    rows = [re.sub(r"<[^>]*>", "|", row) for row in re.findall(r"<tr><td>.*?</tr>", section)]
    assert [[cell for cell in row.split("|") if cell] for row in rows] == [
        ["books &lt;b&gt;", "3.5000", "3.0000", "30", "3.0000"],
        ["web", "4.0000", "3.0000", "20", "3.1250"],
    ]


def test_a_run_of_one_source_has_no_section_of_sources(tmp_path: Path) -> None:
    assert "<h2>Sources</h2>" not in render(read_history(eventful(tmp_path / "run").write()))
