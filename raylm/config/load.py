"""A checked `Job` from a job file in YAML and `--set key=value` flags, or one error that says where.

The file and the flags are all there is: no environment variable changes a setting.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raylm import __version__
from raylm.config.job import Job, required_job
from raylm.config.overrides import apply_change, apply_override, key_of
from raylm.config.paths import absolute, context, typed
from raylm.config.problems import explained
from raylm.config.yaml_lines import JobDumper, Tree, read_tree
from raylm.errors import ConfigError
from raylm.plugins import COPIES, is_file, load_plugins
from raylm.storage import StoragePath

Overrides = Sequence[str] | Mapping[str, Any]
RESOLVED = "# Every setting of this run, as raylm "  # how the settings in a run folder begin


def load_job(path: str | Path, overrides: Overrides = ()) -> Job:
    """Read a job file, apply overrides in order, and check the result.

    Overrides are `a.b=c` as on the command line, or a mapping as `with_overrides` takes it.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a job file's path is needed, not {path!r}", hint="raylm.job_from({...}) takes settings")
    path = Path(path)
    text = _text_of(path)
    return parse_job(
        text, origin=str(path), overrides=overrides, folder=path.parent, plugin_copies=_plugin_copies(path, text)
    )


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no job file {path}", hint=_similar_files(path)) from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder, not a job file", hint="give the path of a .yaml file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})", hint="save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def load_plugins_of(path: str | Path) -> None:
    """Import the plugins that a job file names, whatever else is in it."""
    text = _text_of(Path(path))
    tree = read_tree(text, str(path))
    given = tree.values.get("plugins")
    names = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
    try:
        load_plugins(
            [absolute(name, Path(path).parent) if is_file(name) else name for name in names],
            _plugin_copies(Path(path), text),
        )
    except ConfigError as error:
        raise _placed(error, tree) from error


def _plugin_copies(path: Path, text: str) -> StoragePath | None:
    """Where a run folder keeps its plugins' text, when this is the text of a run's settings."""
    return StoragePath(str(path.absolute().parent)) / COPIES if text.startswith(RESOLVED) else None


def parse_job(
    text: str,
    *,
    origin: str,
    overrides: Overrides = (),
    folder: str | Path | None = None,
    plugin_copies: StoragePath | None = None,
) -> Job:
    """Check the text of a job file; `origin` is the name that errors give it.

    Relative paths in the text start from `folder`, the working directory when None. Plugin files that cannot be read
    are taken from `plugin_copies`.
    """
    tree = read_tree(text, origin)
    _apply(tree, overrides)
    return _checked(tree, folder, plugin_copies)


def job_from(settings: Mapping[str, Any], overrides: Overrides = ()) -> Job:
    """Check settings that a program gives, as nested mappings, as a job file's are; relative paths start from here."""
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"a mapping of settings is needed, not {str(settings)[:80]!r}",
            hint="raylm.load_job(path, overrides) reads a job file",
        )
    tree = Tree(typed(dict(settings)), {}, "the job")
    _apply(tree, overrides)
    return _checked(tree, None)


def with_overrides(job: Job, changes: Mapping[str, Any]) -> Job:
    """The job with other values, by dotted key: `with_overrides(job, {"optim.lr": 1e-4, "name": "b"})`.

    Checked as a job file is; entries of a list are named by number. Relative paths start from the working directory.
    """
    tree = Tree(required_job(job).model_dump(), {}, "the job")
    _apply(tree, changes)
    return _checked(tree, None)


def _apply(tree: Tree, overrides: Overrides) -> None:
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            apply_change(tree, key, value)
    else:
        for override in [overrides] if isinstance(overrides, str) else overrides:
            apply_override(tree, override)


def _checked(tree: Tree, folder: str | Path | None, plugin_copies: StoragePath | None = None) -> Job:
    try:
        return Job.model_validate(tree.values, context={**context(folder), COPIES: plugin_copies})
    except ValidationError as error:
        raise explained(error, tree) from error
    except ConfigError as error:
        raise _placed(error, tree) from error


def _placed(error: ConfigError, tree: Tree) -> ConfigError:
    """The error of a check over several sections, or of a plugin, with the place where its key was written."""
    key = key_of(error.key.split(".")) if error.key else ()
    return ConfigError(f"{tree.place(key)}: {error.message}", hint=error.hint, key=error.key)


def resolved_yaml(job: Job) -> str:
    """Every setting of the job, defaults included, as a job file that loads to the same job."""
    body = yaml.dump(job.model_dump(mode="json"), Dumper=JobDumper, sort_keys=False)
    return f"{RESOLVED}{__version__} resolved it.\n{body}"


def _similar_files(path: Path) -> str | None:
    """A job file of much the same name, in the same folder or in jobs/; else those that are there."""
    folder = path.parent if path.parent.is_dir() else Path()
    there = sorted(found for place in (folder, folder / "jobs") for found in place.glob("*.y*ml"))
    named = {found.name: found for found in reversed(there)} | {found.stem: found for found in reversed(there)}
    near = difflib.get_close_matches(path.name, named, 1, 0.85)
    if near:
        return f"did you mean {named[near[0]]}?"
    return f"job files here: {', '.join(str(found) for found in there[:8])}" if there else None
