"""`raylm explain KEY`: what a key takes, its default, what it does, and the keys under it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from raylm.cli.common import import_plugins, plugin_options, print_rows

if TYPE_CHECKING:
    from raylm.config.keys import Setting


def _keys(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Every key that begins so, for a shell's completion."""
    from raylm.config.keys import settings_in

    found = dict.fromkeys(setting.spoken for setting in settings_in())
    return [key for key in found if key.startswith(incomplete)]


@click.command()
@click.argument("key", default="", shell_complete=_keys)
@plugin_options
def explain(key: str, plugins: tuple[str, ...], job_file: str | None) -> None:
    """Say what KEY of a job file takes, its default and what it does; without KEY list the sections.

    For example `raylm explain optim`, `raylm explain optim.lr`, `raylm explain prepare.steps.quality`.
    """
    from raylm.config.keys import find, settings_in, shared

    import_plugins(plugins, job_file)
    everything = list(settings_in())
    wanted = key.strip(".")
    if not wanted:
        _list([setting for setting in everything if not setting.parent])
        return
    found = find(wanted)
    of_kind = [setting for setting in everything if setting.kind and f"{_above(setting)}.{setting.kind}" == wanted]
    if not found and not of_kind:
        raise _unknown(wanted, everything)
    for one in shared(found):
        _one(one.setting, one.kinds)
    _list(of_kind or [setting for setting in everything if _above(setting) == found[0].spoken])


def _above(setting: Setting) -> str:
    """The section that a setting stands in, as it is spoken."""
    return setting.spoken.rpartition(".")[0]


def _one(setting: Setting, kinds: Sequence[str]) -> None:
    from raylm.config.describe import default_words, type_words

    kind = f" (kind: {', '.join(kinds)})" if kinds else ""
    click.echo(f"{setting.spoken}{kind}\n  {setting.meaning}")
    default = default_words(setting.field)
    rows = [("  takes", type_words(setting.field)), *([("  default", default)] if default else [])]
    if setting.other_names:
        rows.append(("  elsewhere", ", ".join(setting.other_names)))
    print_rows(rows)


def _list(settings: Sequence[Setting]) -> None:
    """The keys under a section; those that only some kinds of entries have are marked so."""
    from raylm.config.describe import default_words, type_words
    from raylm.config.keys import shared

    if not settings:
        return
    formatter = click.HelpFormatter(width=110)
    every = {setting.kind for setting in settings if setting.kind}
    rows = []
    for one in shared(settings):
        words, default = type_words(one.setting.field), default_words(one.setting.field)
        if default:
            words += f"; {'default ' if default != 'required' else ''}{default}"
        only = f" Of kind {', '.join(one.kinds)}." if one.kinds and set(one.kinds) != every else ""
        rows.append((one.setting.name, f"{one.setting.meaning} [{words}]{only}"))
    with formatter.section("Keys"):
        formatter.write_dl(rows)
    click.echo("\n" + formatter.getvalue(), nl=False)


def _unknown(key: str, everything: Sequence[Setting]) -> Exception:
    from raylm.errors import ConfigError

    if hint := _unknown_kind(key, everything):
        return ConfigError(f"no key of a job file is called {key}", hint=hint)
    last = key.rpartition(".")[2]
    spoken = dict.fromkeys(setting.spoken for setting in everything)
    named = [one.spoken for one in everything if one.name == last or last in one.other_names]
    named.sort(key=lambda one: -difflib.SequenceMatcher(None, one, key).ratio())
    near = named or difflib.get_close_matches(key, spoken, 1, 0.6)
    hint = f"did you mean {near[0]}?" if near else "raylm explain lists the sections"
    return ConfigError(f"no key of a job file is called {key}", hint=hint)


def _unknown_kind(key: str, everything: Sequence[Setting]) -> str | None:
    """A hint for a key below a registry's entries, where no entry is called so."""
    from raylm.config.keys import like, spoken, tables_in

    wanted = spoken(key)
    for above, table in tables_in():
        begin = f"{spoken(above)}."
        if not wanted.startswith(begin):
            continue
        kind = wanted.removeprefix(begin).split(".")[0]
        here = [setting for setting in everything if f"{_above(setting)}." == begin]
        if kind in table or any(setting.name == kind for setting in here):
            return None
        near = like(kind, here) or next(iter(difflib.get_close_matches(kind, table.names(), 1, 0.6)), None)
        own = "kinds of your own are shown with --job JOB or --plugin FILE"
        return f"did you mean {begin}{near}? {own}" if near else own
    return None
