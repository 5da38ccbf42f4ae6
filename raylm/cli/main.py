"""The command `raylm`: one of the commands run, and an exit code.

A command's module is imported when the command runs, so that `raylm --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from raylm import __version__
from raylm.cli.common import terminated_as_interrupted
from raylm.errors import Interrupted, RaylmError

# Command → where it lives, and its line in `raylm --help`.
COMMANDS = {
    "quickstart": ("raylm.cli.quickstart:quickstart", "Train a tiny model on this machine, losing a node on the way."),
    "jobs": ("raylm.cli.jobs:jobs", "List job files to start from."),
    "prepare": ("raylm.cli.prepare:prepare", "Turn raw text into tokenized shards."),
    "inspect": ("raylm.cli.inspect:inspect", "Show what a prepared dataset holds."),
    "plan": ("raylm.cli.plan:plan", "Say what a job needs: parameters, FLOPs, memory per worker."),
    "schema": ("raylm.cli.schema:schema", "Print the JSON Schema of job files."),
    "explain": ("raylm.cli.explain:explain", "Say what a key of a job file takes and does."),
    "train": ("raylm.cli.train:train", "Train, or go on with a run that stopped."),
    "evaluate": ("raylm.cli.model:evaluate", "Held-out loss, perplexity and bits per byte."),
    "generate": ("raylm.cli.model:generate", "Continue a prompt."),
    "export": ("raylm.cli.model:export", "Write a Hugging Face folder."),
    "cluster": ("raylm.cli.cluster:cluster", "Start, kill and drain Ray nodes on this machine."),
    "report": ("raylm.cli.model:report", "Write a run's history as one HTML page."),
    "completion": ("raylm.cli.completion:completion", "Print what makes a shell complete commands and keys."),
}


class LazyGroup(click.Group):
    """A group that imports a command only to run it or to print its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named; UsageError says which one it looks like."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            if not near or near[0] in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]}?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="raylm", message="%(prog)s %(version)s")
@click.option("--traceback", is_flag=True, help="Show where in raylm an error arose.")
def cli(traceback: bool) -> None:
    """Train language models on machines that come and go.

    Start with `raylm quickstart`, then look at the job files that `raylm jobs` lists.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0, the error's own code, or 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # A polite kill ends a run as Ctrl-C does, so that what was started is ended too.
        with terminated_as_interrupted():
            code = cli.main(given, prog_name="raylm", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(tell(Interrupted("stopped", hint="the same command goes on from where it was")))
    except BrokenPipeError:
        # The reader, `head` for one, has gone; nothing more can be said to it.
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        reason = reason_for_people(error)
        if reason is None or "--traceback" in given:
            raise
        sys.exit(tell(reason))
    sys.exit(code if isinstance(code, int) else 0)


def tell(error: RaylmError) -> int:
    """Print an error for people, and a stop that was asked for as none; returns the exit code."""
    click.echo(error.message if isinstance(error, Interrupted) else f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint:  {error.hint}", err=True)
    return error.exit_code


def reason_for_people(error: BaseException) -> RaylmError | None:
    """The RaylmError that this error is, or carries: Ray wraps what a worker raised."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, RaylmError):
            return current
        seen.add(id(current))
        inner = getattr(current, "cause", None)
        current = inner if isinstance(inner, BaseException) else current.__cause__
    return None


if __name__ == "__main__":
    main()
