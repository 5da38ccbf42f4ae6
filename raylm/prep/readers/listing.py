"""The files of a source and their sizes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch

from raylm.config.prepare.sources import FileSourceSettings, SourceSettings
from raylm.errors import DataError
from raylm.rows import opened
from raylm.storage import Connection, NotFound, StoragePath, find

_SIZES_AT_ONCE = 32  # requests for sizes: ninety thousand files one after the other take an hour


def list_files(source: SourceSettings, connection: Connection) -> list[tuple[StoragePath, int]]:
    """The files that `glob` matches or `paths` names, in order; a DataError when there is none."""
    assert isinstance(source, FileSourceSettings)  # a kind of other settings lists its files itself
    if source.paths is not None:
        return _from_list(source, StoragePath(source.paths, connection), connection)
    assert source.glob is not None  # the settings ask for one of them
    try:
        found = find(source.glob, connection.quick)
    except ValueError as error:  # the library's, of a pattern that it cannot read
        raise DataError(
            f"source {source.name!r}: {source.glob} is no pattern of files: {error}",
            hint="`**` stands alone between two strokes, as in data/**/*.txt; `*` stays within a folder",
        ) from error
    files = [(StoragePath(path.url, connection), size) for path, size in found if not _is_hidden(path, source.glob)]
    if not files:
        hint = "check the path and the wildcards (`*` stays within a folder, `**/` crosses folders)"
        if found:
            hint = "files and folders whose names begin with a dot are left out, unless the glob names them"
        elif StoragePath(source.glob, connection).list():
            hint = f"it is a folder: {source.glob.rstrip('/')}/* matches the files in it, /**/* those below it as well"
        raise DataError(f"source {source.name!r}: no file matches {source.glob}", hint=hint)
    return files


def _is_hidden(path: StoragePath, glob: str) -> bool:
    """Whether a file, or a folder above it, begins with a dot where the glob has a wildcard."""
    named = {part for part in glob.split("/") if part.startswith(".")}
    parts = path.url.split("/")[glob.partition("*")[0].count("/") :]
    return any(part.startswith(".") and not any(fnmatch(part, name) for name in named) for part in parts)


def _from_list(source: FileSourceSettings, path: StoragePath, connection: Connection) -> list[tuple[StoragePath, int]]:
    try:
        with opened(path) as stream:
            names = [line.decode().lstrip("\ufeff").strip() for line in stream]
    except (NotFound, UnicodeDecodeError) as error:
        raise DataError(
            f"source {source.name!r}: {path.url} is no list of files: {error}",
            hint="paths must be a text file, plain or compressed, with one path a line",
        ) from error
    # Without a prefix a relative line starts from the list's own folder, whatever folder the command was typed in.
    prefix = source.prefix or f"{path.url.rpartition('/')[0]}/"
    files = [StoragePath(name if _is_whole(name, source) else f"{prefix}{name}", connection) for name in names if name]
    if not files:
        raise DataError(f"source {source.name!r}: {path.url} names no file", hint="correct the list, or use a glob")
    with ThreadPoolExecutor(_SIZES_AT_ONCE, thread_name_prefix="file sizes") as pool:
        sizes = list(pool.map(_size, files))
    missing = next((number for number, size in enumerate(sizes) if size is None), None)
    if missing is not None:
        raise DataError(
            f"source {source.name!r}: {files[missing].url}, line {missing + 1} of {path.url}, does not exist",
            hint="check `prefix` of this source, or take the line out",
        )
    return [(file, size) for file, size in zip(files, sizes, strict=True) if size is not None]


def _is_whole(name: str, source: FileSourceSettings) -> bool:
    """Whether a line is a path or URL by itself, where the source gives no prefix."""
    return not source.prefix and ("://" in name or name.startswith("/"))


def _size(path: StoragePath) -> int | None:
    try:
        return path.size()
    except NotFound:
        return None
