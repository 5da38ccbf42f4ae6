"""What can be done with a run, a checkpoint or an export: `evaluate`, `generate`, `export` and `report`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from raylm.cli.common import connection, next_step, quiet_logs, reach_options, show
from raylm.humanize import count

if TYPE_CHECKING:
    from raylm.evaluation import Evaluation

RUN = click.argument("run", metavar="RUN")


@click.command()
@RUN
@click.option("--data", multiple=True, metavar="FOLDER", help="Shards to evaluate on, instead of the run's own.")
@click.option("--sequences", type=click.IntRange(min=1), help="Evaluate on so many held-out rows; all by default.")
@reach_options
def evaluate(
    run: str, data: tuple[str, ...], sequences: int | None, endpoint: str | None, region: str | None, anonymous: bool
) -> None:
    """Held-out loss, perplexity and bits per byte of RUN: a run folder, a checkpoint or an export."""
    quiet_logs()
    from raylm.evaluation import evaluate as run_evaluate

    found = run_evaluate(
        run, data=data or None, sequences=sequences, connection=connection(endpoint, region, anonymous)
    )
    show(evaluation_rows(found))
    next_step(f"raylm generate {run} --prompt 'The '")


def evaluation_rows(found: Evaluation) -> list[tuple[str, str]]:
    """An evaluation in words."""
    rows = [
        ("held-out loss", f"{found.loss:.4f} nats a token"),
        ("perplexity", f"{found.perplexity:.2f}"),
        ("bits per byte", f"{found.bits_per_byte:.4f}"),
        ("over", f"{count(found.tokens)} tokens in {found.sequences:,} rows"),
    ]
    return rows if found.step is None else [("step", f"{found.step:,}"), *rows]


@click.command()
@RUN
@click.option("--prompt", default="", help="Text to go on from.")
@click.option("--max-tokens", type=int, default=128, show_default=True, help="Stop after so many new tokens.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Choose among the k likeliest; 0: among all.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="Choose among those that sum to p.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@reach_options
def generate(
    run: str,
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    endpoint: str | None,
    region: str | None,
    anonymous: bool,
) -> None:
    """Continue a prompt with the model of RUN: a run folder, a checkpoint or an export."""
    quiet_logs()
    from raylm.generation import Sampling
    from raylm.generation import generate as run_generate

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_tokens, seed=seed)
    click.echo(prompt, nl=False)
    for piece in run_generate(run, prompt, sampling, connection=connection(endpoint, region, anonymous)):
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


@click.command()
@RUN
@click.argument("dest", metavar="DEST")
@reach_options
def export(run: str, dest: str, endpoint: str | None, region: str | None, anonymous: bool) -> None:
    """Write RUN's model to DEST as a Hugging Face folder: weights as safetensors, tokenizer, generation config."""
    quiet_logs()
    from raylm.hf_export import export as run_export

    run_export(run, dest, connection=connection(endpoint, region, anonymous))
    show([("export", dest)])
    next_step(f"raylm generate {dest} --prompt 'The '", "or AutoModelForCausalLM.from_pretrained in transformers")


@click.command()
@RUN
@click.option("--output", metavar="FILE", help="Where the page goes; RUN/report.html by default.")
@reach_options
def report(run: str, output: str | None, endpoint: str | None, region: str | None, anonymous: bool) -> None:
    """Write RUN's history as one HTML page: loss, throughput and workers, and where the time went."""
    from raylm.humanize import duration
    from raylm.report import read_history, totals, write_report
    from raylm.run.folder import RunFolder
    from raylm.storage import StoragePath

    at = connection(endpoint, region, anonymous)
    folder = RunFolder(StoragePath(run, at))
    page = write_report(folder, StoragePath(output, at) if output else None)
    history = read_history(folder)
    total = totals(history)
    show(
        [
            ("steps", f"{total.steps:,}, {total.steps_lost} of them trained again after a loss"),
            (
                "time",
                f"{duration(total.useful_seconds)} useful, {duration(total.replayed_seconds)} replayed, "
                f"{duration(total.idle_seconds)} idle",
            ),
            ("last", history.events[-1].describe() if history.events else "-"),
            ("page", page.url),
        ]
    )
