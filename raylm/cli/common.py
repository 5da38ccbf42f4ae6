"""What several commands share: the job argument, how to reach object storage, how a result is shown."""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from raylm.errors import ConfigError

if TYPE_CHECKING:
    from types import FrameType

    from raylm.config.job import Job
    from raylm.storage import Connection

Command = TypeVar("Command", bound=Callable[..., Any])


def job_options(command: Command) -> Command:
    """The argument JOB and the option --set, handed on as `job_file` and `overrides`; a ConfigError names the file."""

    @functools.wraps(command)
    def with_job(*args: Any, job_file: str, overrides: tuple[str, ...], **others: Any) -> Any:
        with naming_job(job_file, overrides):
            return command(*args, job_file=job_file, overrides=overrides, **others)

    with_job = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a setting, for example --set optim.lr=1e-4; repeatable.",
    )(with_job)
    return cast(Command, click.argument("job_file", metavar="JOB", type=click.Path(dir_okay=True))(with_job))


@contextmanager
def naming_job(job_file: str, overrides: Sequence[str]) -> Iterator[None]:
    """A ConfigError that names neither the job file nor a flag is raised again with the file and the flags it is about.

    Reading a job says the line; what is found out later, of the model or the run folder, does not know the file.
    """
    try:
        yield
    except ConfigError as error:
        if error.message.startswith("--set ") or _names(error.message, job_file):
            raise
        flags = [f"--set {flag}" for flag in overrides if _names(error.message, flag.partition("=")[0].strip())]
        place = f"{job_file} with {', '.join(flags)}" if flags else job_file
        raise ConfigError(f"{place}: {error.message}", hint=error.hint, key=error.key) from error


def _names(message: str, word: str) -> bool:
    """Whether a file or a key stands in a message as a word of its own."""
    return re.search(rf"(?<![\w./-]){re.escape(word)}(?![\w/-]|\.\w)", message) is not None


def connection_options(command: Command) -> Command:
    """How to reach an object store when no job file says so; handed on as one Connection, `connection`."""

    @functools.wraps(command)
    def with_connection(*args: Any, endpoint: str | None, region: str | None, anonymous: bool, **others: Any) -> Any:
        from raylm.config.object_store import ObjectStore

        store = ObjectStore(endpoint=endpoint, region=region, anonymous=anonymous)
        return command(*args, connection=store.connection(), **others)

    for option in (
        click.option("--anonymous", is_flag=True, help="Read a public bucket without credentials."),
        click.option("--region", help="Region of the object store, where it wants one."),
        click.option("--endpoint", metavar="URL", help="A server of S3's or Google's kind, for s3:// and gs:// URLs."),
    ):
        with_connection = option(with_connection)
    return cast(Command, with_connection)


def reached(url: str, connection: Connection) -> list[str]:
    """The options of `connection_options` that a command about this URL needs; none for a local path."""
    if "://" not in url:
        return []
    given = (("--endpoint", connection.endpoint), ("--region", connection.region))
    words = [word for flag, value in given if value is not None for word in (flag, value)]
    return [*words, *(["--anonymous"] if connection.anonymous else [])]


def plugin_options(command: Command) -> Command:
    """Options for commands about settings; handed on as `plugins` and `job_file` for `import_plugins`."""
    for option in (
        click.option("--job", "job_file", metavar="JOB", help="Include what this job's plugins register."),
        click.option(
            "--plugin", "plugins", multiple=True, metavar="FILE", help="Include what it registers; repeatable."
        ),
    ):
        command = option(command)
    return command


def import_plugins(plugins: Sequence[str], job_file: str | None) -> None:
    """Import the plugins of `plugin_options`."""
    from raylm.config.load import load_plugins_of
    from raylm.config.paths import absolute
    from raylm.plugins import is_file, load_plugins

    if job_file is not None:
        load_plugins_of(job_file)
    load_plugins([absolute(name) if is_file(name) else name for name in plugins])


def read_job(job_file: str, overrides: Sequence[str]) -> Job:
    """The checked job of `job_options`."""
    from raylm.config.load import load_job
    from raylm.config.together import refuse_mismatched

    job = load_job(job_file, overrides)
    refuse_mismatched(job)
    return job


def paths_row(job_file: str) -> tuple[str, str]:
    """The row of a dry run that says where relative paths start from."""
    from raylm.config.paths import absolute

    return "paths", f"in {job_file} relative to {Path(absolute(job_file)).parent}, in --set to the working directory"


def not_a_job(path: str, *, wanted: Callable[[Job], str], what: str) -> str:
    """The path of a command that takes no job; for a job file's, a ConfigError that names what the job would make."""
    if not path.endswith((".yaml", ".yml")) or not Path(path).expanduser().is_file():
        return path
    try:
        hint = f"did you mean {typed(as_typed(wanted(read_job(path, ()))))}?"
    except ConfigError:
        hint = f"name {what} that the job makes"
    raise ConfigError(f"{path} is a job file, not {what}", hint=hint)


def as_typed(path: str) -> str:
    """A path as a person would type it: from the working directory, where it lies below."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def command_line(command: str, job_file: str, overrides: Sequence[str], *more: str) -> str:
    """The command line that names this job, its overrides and more words."""
    return typed("raylm", command, job_file, *(word for override in overrides for word in ("--set", override)), *more)


def typed(*words: str) -> str:
    """A command line as a shell takes it."""
    return shlex.join(words)


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print rows of a name and a value, values aligned."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def print_next(*commands: str) -> None:
    """Print what to type next."""
    for index, command in enumerate(commands):
        click.echo(f"{'next:' if index == 0 else '     '} {command}")


def show_log(name: str) -> None:
    """Print what the logger of this name is told of its work, too; after `quiet_logs`."""
    import logging

    logging.getLogger(name).setLevel(logging.INFO)


def quiet_logs() -> None:
    """Print raylm's own warnings as lines of text on standard error, other libraries' from errors on."""
    import logging

    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    logging.getLogger("raylm").setLevel(logging.WARNING)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP end what runs in this block as Ctrl-C does, which saves; what nohup ignores stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGTERM: signal.default_int_handler, signal.SIGHUP: _hung_up}
    heard = {number: own for number, own in handlers.items() if signal.getsignal(number) is not signal.SIG_IGN}
    before = {number: signal.signal(number, own) for number, own in heard.items()}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def _hung_up(number: int, frame: FrameType | None) -> None:
    leave_terminal()
    signal.default_int_handler(number, frame)


def leave_terminal() -> None:
    """The terminal has gone: what is still said to it goes nowhere, and is no error.

    A terminal that has hung up is none for isatty any more, so any device is taken for one.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def say_how_to_stop() -> None:
    """Say so where Ctrl-C is not heard, as for what a shell's script began in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        click.echo(f"Ctrl-C is not heard here: `kill {os.getpid()}` saves and stops", err=True)
