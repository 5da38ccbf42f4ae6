"""`raylm quickstart`: text to a generating model on a cluster of two nodes, one of which is lost on the way."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raylm.cli.common import as_typed, print_next, print_rows, quiet_logs, typed
from raylm.cli.model import evaluation_rows
from raylm.errors import RaylmError
from raylm.humanize import duration

if TYPE_CHECKING:
    from raylm.config.job import Job
    from raylm.deploy.local import LocalCluster, NodeShape
    from raylm.run.events import Event
    from raylm.run.metrics import StepMetrics

JOB_NAME = "quickstart.yaml"
LOST = "node-1"
PROMPTS = ("Return the", "The list", "If the argument")


@click.command()
@click.option("--storage", default="runs", show_default=True, metavar="FOLDER", help="Where the run folder goes.")
@click.option("--steps", type=click.IntRange(min=20), help="Train for so many steps instead of the job file's.")
def quickstart(storage: str, steps: int | None) -> None:
    """Train a tiny model on this machine, losing a node on the way.

    Prepares the documentation that comes with Python, starts a Ray cluster of two nodes, trains on both, kills one
    half way and brings it back, evaluates, generates a few lines and writes a report. Takes a few minutes on two
    CPUs, downloads nothing, and ends only what it started. Running it again goes on with the same run.
    """
    began = time.monotonic()
    quiet_logs()
    job = quickstart_job(storage, steps)
    with two_nodes() as cluster:
        _prepare(job)
        loss = LosingANode(cluster, at_step=int(job.train.steps * 0.4))
        _train(job, loss)
    page = _look(job)
    click.echo(f"\ndone in {duration(time.monotonic() - began)}")
    _what_next(job, page)


def quickstart_job(storage: str, steps: int | None = None) -> Job:
    """The packaged job, with a worker to a node."""
    from raylm.config.load import parse_job
    from raylm.deploy.local import SLOT

    text = resources.files("raylm.cli").joinpath(JOB_NAME).read_text(encoding="utf-8")
    overrides = [f"storage={storage}", f"workers.resources={{{SLOT}: 1}}", "workers.gpu=false"]
    if steps is not None:
        overrides.append(f"train.steps={steps}")
    return parse_job(text, origin=JOB_NAME, overrides=overrides)


@contextmanager
def two_nodes() -> Iterator[LocalCluster]:
    """A head and one node, a worker slot on each, and this process connected to them."""
    from raylm.deploy.local import LocalCluster
    from raylm.runtime.connect import LocalRay, connected

    _stage("1/5  starting two Ray nodes")
    # Not TMPDIR: Ray's sockets need a short path.
    folder = Path(tempfile.mkdtemp(prefix="raylm-", dir="/tmp"))
    cluster = LocalCluster(folder)
    try:
        cluster.up(1, head=_shape(cpus=2), each=_shape(cpus=1))
        try:
            with connected(cluster.address, LocalRay(cpus=1)):
                yield cluster
        finally:
            cluster.down()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class LosingANode:
    """Kills a node once training has passed a step, and starts another when the group stands without it."""

    def __init__(self, cluster: LocalCluster, *, at_step: int) -> None:
        self._cluster, self._at_step = cluster, at_step
        self._killed = self._back = False

    def take(self, record: StepMetrics | Event) -> None:
        """Take a step or an event of the run."""
        from raylm.run.events import GroupStarted
        from raylm.run.metrics import StepMetrics

        if isinstance(record, StepMetrics):
            if not self._killed and record.step >= self._at_step and record.workers > 1:
                self._killed = True
                _stage(f"     killing {LOST}, as if its machine were reclaimed without notice")
                self._cluster.kill(LOST)
        elif self._killed and not self._back and isinstance(record, GroupStarted):
            self._back = True
            _stage("     training goes on; starting another node in its place")
            # In the background: the run must not wait for a node.
            threading.Thread(target=self._bring_back, daemon=True).start()

    def _bring_back(self) -> None:
        try:
            self._cluster.add(1, _shape(cpus=1))
        except RaylmError as error:
            click.echo(f"     no node came back: {error.message}", err=True)


def _prepare(job: Job) -> None:
    from raylm.cli.prepare import progress_lines, result_rows
    from raylm.prep.prepare import prepare

    _stage("2/5  preparing: the documentation on this machine becomes tokens")
    print_rows(result_rows(prepare(job, progress=progress_lines())))


def _train(job: Job, loss: LosingANode) -> None:
    from raylm.cli.progress import watching
    from raylm.train.launch import train

    _stage(f"3/5  training {job.model.preset} for {job.train.steps} steps on two workers")

    with watching(job.train.steps) as display:

        def both(record: StepMetrics | Event) -> None:
            display.show(record)
            loss.take(record)

        result = train(job, on_record=both)
    if result.already_finished:
        click.echo(f"trained already; remove {as_typed(job.run_url)} to see it again")


def _look(job: Job) -> str:
    """Evaluate, generate and report, as the commands of these names do; returns where the report is."""
    from raylm.evaluation import evaluate
    from raylm.generation import Sampling, generate
    from raylm.report import write_report
    from raylm.run.folder import RunFolder
    from raylm.trained import open_trained

    _stage("4/5  evaluating and generating, from the last checkpoint")
    trained = open_trained(job.run_url, job.object_store.connection())
    print_rows(evaluation_rows(evaluate(trained)))
    for prompt in PROMPTS:
        text = "".join(generate(trained, prompt, Sampling(max_new_tokens=32)))
        click.echo(f"    {' '.join(f'{prompt}{text}'.split())}")
    _stage("5/5  writing the report")
    page = write_report(RunFolder.of(job))
    click.echo(page.url)
    return page.url


def _what_next(job: Job, page: str) -> None:
    run = as_typed(job.run_url)
    print_next(
        f"open {as_typed(page)} in a browser",
        typed("raylm", "generate", run, "--prompt", "The function "),
        typed("raylm", "export", run, f"{run}/export"),
        "raylm jobs",
    )


def _stage(words: str) -> None:
    click.echo(f"\n{words}" if words[0].isdigit() else words)


def _shape(cpus: int) -> NodeShape:
    from raylm.deploy.local import NodeShape

    return NodeShape(cpus=cpus, slots=1)
