"""Paths of a job: types of their own, made absolute when the job is checked.

A relative path in a job file starts from the job file's folder, so that a job means the same wherever it is started
from. On the command line (`--set`) and in programs, which have no file, it starts from the working directory. What
is checked is absolute, so that every worker and every task reads the same file. URLs are left as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    SerializationInfo,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from raylm.errors import ConfigError

FOLDER = "folder"  # key of pydantic's context: where relative paths start from, read and written


class CommandLineText(str):
    """Text from the command line or a program: as a path it starts from the working directory, not the job file."""

    __slots__ = ()


@dataclass(frozen=True)
class PathMark:
    """Says in a field's metadata what its text names, for `raylm explain` and the reference of job files."""

    what: str


def context(folder: str | Path | None) -> dict[str, str]:
    """What pydantic is handed so that relative paths start from `folder`; the working directory when None.

    Given to `model_dump`, paths that were given as relative ones are written relative to it.
    """
    return {} if folder is None else {FOLDER: absolute(str(folder))}


def typed(value: Any) -> Any:
    """The value of an override with every text and path in it marked as typed on the command line."""
    if isinstance(value, str | os.PathLike):
        return CommandLineText(os.fspath(value))
    if isinstance(value, dict):
        return {key: typed(entry) for key, entry in value.items()}
    return [typed(entry) for entry in value] if isinstance(value, list) else value


def absolute(path: str, folder: str | Path | None = None) -> str:
    """A local path from `folder`, or from the working directory, without `..`; a URL as it is."""
    if not path or "://" in path:
        return str(path)
    try:
        home = Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: this machine has no user {path.split('/')[0]}", hint="write the path out"
        ) from error
    # normpath and not Path.resolve: a link is kept as the name that it was given under.
    return os.path.normpath(Path.cwd() / (folder or "") / home)


def _folder_for(value: Any, info: ValidationInfo) -> str | None:
    """Where this value starts from, when it is a relative path."""
    given = info.context if isinstance(info.context, Mapping) else {}
    return None if isinstance(value, CommandLineText) else given.get(FOLDER)


class MovesAlong(str):
    """An absolute path that was given as a relative one: it changes when the folder that it lies in is moved."""

    __slots__ = ()


def _resolved(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return value
    try:
        found = absolute(value, _folder_for(value, info))
    except ConfigError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error
    _refuse_variable(value, found)
    _refuse_half_url(value, found)
    return found


_VARIABLE = re.compile(r"(?:^|(?<=[/=:]))\$(?:\w+|\{\w+\})|\$\{\w+\}", re.ASCII)


def _refuse_variable(given: str, found: str) -> None:
    """No environment variable changes a job: `$DATA/x` would be a folder of that name, meant only if it is there."""
    variable = _VARIABLE.search(given)
    if variable is None or ("://" not in found and os.path.lexists(found)):
        return
    raise ValueError(
        f"{given} holds {variable[0]}, and job files know no environment variables; write the path out, or let the "
        f'shell put it in, as in --set "KEY={variable[0]}/..." in double quotes'
    )


_HALF_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)(.*)")


def _refuse_half_url(given: str, found: str) -> None:
    """`s3:/bucket` would be a folder called `s3:` here, which nobody means who has none."""
    half = _HALF_URL.fullmatch(given)
    if half is not None and not os.path.lexists(found):
        raise ValueError(
            f"{given} is no URL, and there is no such folder; a URL has two slashes: {half[1]}://{half[2]}"
        )


def _remembered(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """The path, marked when it was given as a relative one."""
    checked = handler(value)
    given = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    moves = isinstance(value, MovesAlong) or (given is not None and checked != given and given[:1] not in ("~", "/"))
    return MovesAlong(checked) if moves and isinstance(checked, str) else checked


def _resolved_if_path(value: Any, info: ValidationInfo) -> Any:
    is_path = isinstance(value, os.PathLike) or (isinstance(value, str) and looks_like_a_path(value))
    return _resolved(value, info) if is_path else value


def looks_like_a_path(text: str) -> bool:
    """Whether a text that may be a name or a path is a path: it has a slash in it, or begins with a dot or a tilde."""
    return "/" in text or text.startswith((".", "~"))


def _resolved_prefix(value: Any, info: ValidationInfo) -> Any:
    resolved = _resolved(value, info)
    return f"{resolved}/" if isinstance(value, str) and value.endswith("/") and value != resolved else resolved


def resolved_module_or_file(value: Any, info: ValidationInfo) -> Any:
    """A plugin's file made absolute; a module's name as it is."""
    is_file = isinstance(value, os.PathLike) or (isinstance(value, str) and value.endswith(".py"))
    return _resolved(value, info) if is_file else value


def _written(value: Any, info: SerializationInfo) -> Any:
    """A path that was given as a relative one, relative to the folder of the context, where there is one."""
    folder = info.context.get(FOLDER) if isinstance(info.context, Mapping) else None
    if folder is None or not isinstance(value, MovesAlong):
        return value
    relative = os.path.relpath(value, folder)
    return f"{relative if relative.startswith('..') else f'./{relative}'}{'/' if value.endswith('/') else ''}"


_Written = PlainSerializer(_written)
_Remembered = WrapValidator(_remembered)

PathOrUrl = Annotated[str, BeforeValidator(_resolved), _Remembered, _Written, PathMark("path or URL")]
# A name that a library knows, or a path.
NameOrPath = Annotated[str, BeforeValidator(_resolved_if_path), _Remembered, _Written, PathMark("name or path")]
# A Python module by its dotted name, or a file whose name ends in .py.
ModuleOrFile = Annotated[str, BeforeValidator(resolved_module_or_file), PathMark("module or file")]
# What paths begin with; a slash at its end stays.
PathPrefix = Annotated[str, BeforeValidator(_resolved_prefix), _Remembered, _Written, PathMark("path or URL")]
