"""The user's own operators, sources and objectives: modules and files that a job names under `plugins`.

A plugin is imported before its job is checked, and registers what it adds. A module has to be installed wherever the
job runs; a file travels with the job, as text, and is imported again in every worker and task. A run folder keeps that
text, so that the run can be read where the file is not.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from raylm.errors import ConfigError
from raylm.registry import registering

if TYPE_CHECKING:
    from raylm.storage import StoragePath

COPIES = "plugins"  # the folder beside a run's settings that keeps its plugins' files


@dataclass(frozen=True)
class Plugin:
    """A plugin as a job carries it: a module's name, or a file's path with its text."""

    name: str
    source: str | None = None

    @property
    def module_name(self) -> str:
        """The name it is imported under; of a file it follows from path and text, the same in every process."""
        if self.source is None:
            return self.name
        digest = hashlib.sha256(f"{self.name}\0{self.source}".encode()).hexdigest()[:12]
        return f"raylm_plugin_{re.sub(r'[^a-zA-Z0-9_]', '_', Path(self.name).stem)}_{digest}"


# What this process has imported, by name as in the job.
_loaded: dict[str, Plugin] = {}


class Carried(tuple[Plugin, ...]):
    """Plugins on their way to another process; unpickling imports them, before anything pickled after them."""

    __slots__ = ()

    def __reduce__(self) -> tuple[object, ...]:
        return (_arrived, tuple(self))


def _arrived(*plugins: Plugin) -> Carried:
    for plugin in plugins:
        _import(plugin)
    return Carried(plugins)


def is_file(name: str) -> bool:
    """Whether a plugin is named by its file, not by its module."""
    return name.endswith(".py")


def copy_names(names: Sequence[str]) -> dict[str, str]:
    """Each plugin file with its name in a run folder: steps.py, and steps-2.py for the second file of that name."""
    found: dict[str, str] = {}
    for name in filter(is_file, names):
        stem, number = Path(name).stem, 1
        while name not in found:
            copy = f"{stem}-{number}.py" if number > 1 else f"{stem}.py"
            if copy not in found.values():
                found[name] = copy
            number += 1
    return found


def load_plugins(names: Sequence[str], copies: StoragePath | None = None) -> None:
    """Import each plugin, once; ConfigError with `key` plugins.N for one that cannot be.

    A file that cannot be read where it was is taken from `copies`, the folder where a run keeps its plugins' text.
    """
    kept = {} if copies is None else {name: copies / copy for name, copy in copy_names(names).items()}
    for number, name in enumerate(names):
        try:
            _import(_read(name, kept.get(name)))
        except ConfigError as error:
            raise ConfigError(error.message, hint=error.hint, key=f"plugins.{number}") from error


def carried(names: Sequence[str]) -> Carried:
    """The plugins of a job that was checked in this process, for another process."""
    return Carried(_loaded[name] for name in names)


def _read(name: str, copy: StoragePath | None) -> Plugin:
    if not is_file(name):
        return Plugin(name)
    try:
        return Plugin(name, Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        if name in _loaded:  # came with a job from another machine
            return _loaded[name]
        if copy is not None and copy.exists():
            return Plugin(name, copy.read_text())
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"plugin {name} cannot be read: {reason}", hint="check the path") from error


def _import(plugin: Plugin) -> None:
    if _loaded.get(plugin.name) == plugin:
        return
    try:
        with registering(plugin.name):
            if plugin.source is None:
                importlib.import_module(plugin.name)
            else:
                _run(plugin, plugin.source)
    except ConfigError as error:
        raise ConfigError(f"plugin {plugin.name}: {error.message}", hint=error.hint) from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"plugin {plugin.name} cannot be imported: {error}",
            hint="install the module wherever the job runs; a plugin of one file is named by its path, as ./steps.py"
            if _is_in(plugin, error.name)
            else f"install {error.name} wherever the job runs; a plugin of one file imports no files beside it",
        ) from error
    except SystemExit as error:
        raise ConfigError(
            f"plugin {plugin.name} ended the program (SystemExit){_line_in(plugin, error)}",
            hint='put what is only for running the file under `if __name__ == "__main__":`',
        ) from error
    except Exception as error:  # the user's own code: whatever it raises is said with its line, not with ours
        line = _line_in(plugin, error)
        raise ConfigError(
            f"plugin {plugin.name} raised {type(error).__name__}{line}: {error}",
            hint="run it with python to see more" if plugin.source else f'try python -c "import {plugin.name}"',
        ) from error
    _loaded[plugin.name] = plugin


def _run(plugin: Plugin, source: str) -> None:
    """Import the file's text as a module of its own; pickled references to what it defines find it by its name."""
    module = ModuleType(plugin.module_name)
    module.__file__ = plugin.name
    code = compile(source, plugin.name, "exec")
    sys.modules[plugin.module_name] = module
    exec(code, module.__dict__)


def _is_in(plugin: Plugin, module: str | None) -> bool:
    """Whether the plugin is that module, or one inside of it."""
    return module is not None and plugin.source is None and f"{plugin.name}.".startswith(f"{module}.")


def _line_in(plugin: Plugin, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == plugin.name]
    return f" in line {lines[-1]}" if lines else ""
