"""What can be done with a run, a checkpoint or an export: `evaluate`, `generate`, `export` and `report`."""

from __future__ import annotations

import functools
import itertools
import sys
from typing import TYPE_CHECKING, Any, cast

import click

from raylm.cli.common import Command, connection_options, not_a_job, print_next, print_rows, quiet_logs, reached, typed
from raylm.generation import Sampling
from raylm.humanize import count

if TYPE_CHECKING:
    from raylm.evaluation import Evaluation
    from raylm.storage import Connection


def _run(_: click.Context, __: click.Parameter, path: str) -> str:
    return not_a_job(path, wanted=lambda job: job.run_url, what="the run folder")


RUN = click.argument("run", metavar="RUN", callback=_run)


@click.command()
@RUN
@click.option("--data", multiple=True, metavar="FOLDER", help="Datasets to evaluate on, instead of the run's own.")
@click.option("--sequences", type=click.IntRange(min=1), help="Evaluate on so many held-out sequences; all by default.")
@connection_options
def evaluate(run: str, data: tuple[str, ...], sequences: int | None, connection: Connection) -> None:
    """Held-out loss, perplexity and bits per byte of RUN: a run folder, a checkpoint or an export."""
    quiet_logs()
    from raylm.evaluation import evaluate as run_evaluate

    found = run_evaluate(run, data=data or None, sequences=sequences, connection=connection)
    print_rows(evaluation_rows(found))
    print_next(typed("raylm", "generate", run, "--prompt", "The ", *reached(run, connection)))


def evaluation_rows(found: Evaluation) -> list[tuple[str, str]]:
    """An evaluation in words."""
    rows = [
        ("held-out loss", f"{found.loss:.4f} nats per token"),
        ("perplexity", f"{found.perplexity:.2f}"),
        ("bits per byte", f"{found.bits_per_byte:.4f}"),
        ("over", f"{count(found.tokens)} tokens in {found.sequences:,} sequences"),
    ]
    return rows if found.step is None else [("step", f"{found.step:,}"), *rows]


def sampling_options(command: Command) -> Command:
    """How the next token is chosen and when to stop; handed on as one Sampling, `sampling`."""

    @functools.wraps(command)
    def with_sampling(*args: Any, max_tokens: int, stop: tuple[str, ...], **others: Any) -> Any:
        chosen = {name: others.pop(name) for name in ("temperature", "top_k", "top_p", "seed")}
        return command(*args, sampling=Sampling(max_new_tokens=max_tokens, stop=stop, **chosen), **others)

    usual = Sampling()
    for name, kind, default, words in (
        ("--stop", str, None, "End the text before this string; repeatable."),
        ("--seed", click.IntRange(0, 2**63 - 1), usual.seed, "Another number gives another text."),
        ("--top-p", float, usual.top_p, "Choose among those that sum to p."),
        ("--top-k", click.IntRange(min=0), usual.top_k, "Choose among the k likeliest; 0: among all."),
        ("--temperature", float, usual.temperature, "0 takes the likeliest token."),
        ("--max-tokens", click.IntRange(min=1), usual.max_new_tokens, "Stop after so many new tokens."),
    ):
        option = click.option(name, type=kind, default=default, show_default=True, help=words, multiple=default is None)
        with_sampling = option(with_sampling)
    return cast(Command, with_sampling)


@click.command()
@RUN
@click.option("--prompt", default="", help="Text to go on from.")
@sampling_options
@connection_options
def generate(run: str, prompt: str, sampling: Sampling, connection: Connection) -> None:
    """Continue a prompt with the model of RUN: a run folder, a checkpoint or an export."""
    quiet_logs()
    from raylm.generation import generate as run_generate

    parts = run_generate(run, prompt, sampling, connection)
    # The first part is there before anything is printed: what cannot work is said alone.
    for part in itertools.chain([prompt + next(parts, "")], parts):
        click.echo(part, nl=False)
        sys.stdout.flush()
    click.echo()


@click.command()
@RUN
@click.argument("dest", metavar="DEST")
@connection_options
def export(run: str, dest: str, connection: Connection) -> None:
    """Write RUN's model to DEST as a Hugging Face folder: weights as safetensors, tokenizer, generation config."""
    quiet_logs()
    from raylm.hf_export import export as run_export

    run_export(run, dest, connection=connection)
    print_rows([("export", dest)])
    command = typed("raylm", "generate", dest, "--prompt", "The ", *reached(dest, connection))
    print_next(command, "or AutoModelForCausalLM.from_pretrained in transformers")


@click.command()
@RUN
@click.option("--output", metavar="FILE", help="Where the page goes; RUN/report.html by default.")
@connection_options
def report(run: str, output: str | None, connection: Connection) -> None:
    """Write RUN's history as one HTML page: loss, throughput and workers, and where the time went."""
    from raylm.humanize import duration
    from raylm.report import read_history, render, totals
    from raylm.report.spent import SHOWN_SECONDS
    from raylm.run.folder import RunFolder
    from raylm.storage import StoragePath

    folder = RunFolder(StoragePath(run, connection))
    history = read_history(folder)
    page = StoragePath(output, connection) if output else folder.report
    page.write_text(render(history))
    total = totals(history)
    parts = [("useful", total.useful_seconds), ("replayed", total.replayed_seconds), ("idle", total.idle_seconds)]
    if total.stopped_seconds:
        parts.append(("stopped", total.stopped_seconds))
    idle = [f"{duration(seconds)} {name}" for name, seconds in total.idle if seconds >= SHOWN_SECONDS]
    print_rows(
        [
            ("steps", f"{total.steps:,}, {total.steps_lost} of them trained again after a loss"),
            ("time", ", ".join(f"{duration(seconds)} {name}" for name, seconds in parts)),
            *([("idle", ", ".join(idle))] if idle else []),
            ("last", history.events[-1].describe() if history.events else "-"),
            ("page", page.url),
        ]
    )
