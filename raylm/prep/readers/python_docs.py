"""The English that is on every machine with Python: language topics and the docstrings of what is installed.

Documents come in a fixed order: topics, the standard library, then installed packages by name. Source files are parsed,
never imported, so that no package's code runs.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from raylm.config.prepare.sources import SourceSettings
from raylm.prep.readers.base import Raw, Reading
from raylm.prep.readers.kind import SourceKind
from raylm.rows import RowFile, read_rows

_SKIPPED = frozenset(
    {"test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "ensurepip", "__pycache__"}
    | {"_vendor", "vendor", "_vendored_packages", "site-packages", "dist-packages"}
)
_MIN_CHARACTERS = 200  # shorter documents are mostly license lines and one-word summaries
_PARSES = 3


class PythonDocsSource(SourceSettings):
    """The documentation of Python and of what is installed beside it."""

    kind: Literal["python-docs"] = Field("python-docs", description="How files are read.")

    @property
    def location(self) -> str:
        """There are no files to name."""
        return "of this Python"


def read(reading: Reading[PythonDocsSource]) -> Iterator[Raw]:
    """The documents that were collected."""
    source = reading.source
    file = RowFile(
        reading.path,
        columns=("text",),
        max_bytes=source.max_bytes,
        on_bad=lambda bad: reading.skip(bad.reason, bad.position, bad.why),
    )
    return (Raw(row.position, row.value["text"]) for row in read_rows(file, "jsonl"))


def documents() -> Iterator[tuple[str, str]]:
    """Every document as (id, text); one a language topic, one a module that says something."""
    yield from _topics()
    seen: set[Path] = set()
    for folder in _folders():
        for path in _modules(folder):
            real = path.resolve()
            if real in seen:
                continue
            seen.add(real)
            name = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
            text = module_text(name, _source(path))
            if len(text) >= _MIN_CHARACTERS:
                yield f"module:{name}", text


def module_text(name: str, source: str) -> str:
    """The docstrings of a module's source, its classes and functions, in the order in which they are written."""
    try:
        tree = parsed(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    parts = list(_described(tree, name))
    return "\n\n".join(parts) + "\n" if parts else ""


def parsed(source: str) -> ast.Module:
    """The source's tree. Python 3.11 counts the depth of all threads' trees in one place and may take another
    thread's for this one's, which it tells as a SystemError (its issue 106905): then once more."""
    for _ in range(_PARSES - 1):
        with contextlib.suppress(SystemError):
            return _parse(source)
    return _parse(source)


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        return ast.parse(source)


def _topics() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"topic:{name}", topics[name].strip() + "\n"


def _folders() -> list[Path]:
    paths = sysconfig.get_paths()
    ordered = dict.fromkeys(paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    return [Path(path) for path in ordered if Path(path).is_dir()]


def _modules(folder: Path) -> Iterator[Path]:
    """The folder's Python files, by name; tests, vendored copies and hidden folders are left out."""
    for path in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if path.name.startswith(".") or path.name in _SKIPPED:
            continue
        if path.is_dir():
            yield from _modules(path)
        elif path.suffix == ".py":
            yield path


def _source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _described(node: ast.AST, name: str) -> Iterator[str]:
    """One paragraph group a docstring: a heading as in source code, then the cleaned text."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield f"{_heading(node, name)}\n\n{inspect.cleandoc(text)}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _described(child, f"{name}.{child.name}")


def _heading(node: ast.AST, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {name}"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"def {name}({', '.join(argument.arg for argument in node.args.args)})"
    return f"module {name}"


SOURCE = SourceKind(
    "python-docs",
    PythonDocsSource,
    read,
    "the documentation of Python and of what is installed, from this machine",
    collect=lambda _: documents(),
)
