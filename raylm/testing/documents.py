"""Parts of docs/ that follow from the code: every kind of event, and every error with its cure.

`python -m raylm.testing.documents` writes them anew; tests/test_docs.py compares.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raylm import errors
from raylm.prep.readers.python_docs import parsed
from raylm.run.events import EVENTS, Event

PACKAGE = Path(errors.__file__).parent
DOCS = PACKAGE.parent / "docs"
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.RaylmError) and kind is not errors.RaylmError
}
_PART = r"<!-- (\w+Error|events) -->\n.*?<!-- end -->"


@dataclass(frozen=True, order=True)
class KnownError:
    """An error as it stands in the code; what is filled in at run time is written as `…`."""

    code: int
    kind: str
    message: str
    hint: str


def known_errors() -> list[KnownError]:
    """Every error that the package raises with a message of its own, by exit code and message."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args:
                hint = next((keyword.value for keyword in node.keywords if keyword.arg == "hint"), None)
                message = _template(node.args[0])
                if len(re.sub(r"\W|…", "", message)) > 5:
                    code = KINDS[node.func.id].exit_code
                    found.add(KnownError(code, node.func.id, message, "" if hint is None else _template(hint)))
    return sorted(found)


def error_table(kind: str) -> str:
    """The errors of one kind as a Markdown table."""
    rows = [error for error in known_errors() if error.kind == kind]
    lines = ["| message | what to do |", "|---|---|"]
    return "\n".join(lines + [f"| {_cell(row.message)} | {_cell(row.hint)} |" for row in rows])


def event_table() -> str:
    """Every kind of event as a Markdown table."""
    common = {one.name for one in dataclasses.fields(Event)}
    lines = ["| event | what happened | further fields |", "|---|---|---|"]
    for name, kind in EVENTS.items():
        further = ", ".join(f"`{one.name}`" for one in dataclasses.fields(kind) if one.name not in common)
        lines.append(f"| `{name}` | {_cell(inspect.getdoc(kind) or '')} | {further} |")
    return "\n".join(lines)


def replaced(text: str) -> str:
    """The text of a page with every part between `<!-- NAME -->` and `<!-- end -->` written anew."""

    def part(match: re.Match[str]) -> str:
        body = event_table() if match[1] == "events" else error_table(match[1])
        return f"<!-- {match[1]} -->\n{body}\n<!-- end -->"

    return re.sub(_PART, part, text, flags=re.DOTALL)


def pages() -> Iterator[Path]:
    """The pages that have such parts."""
    for path in sorted(DOCS.glob("*.md")):
        if re.search(_PART, path.read_text(encoding="utf-8"), flags=re.DOTALL):
            yield path


def _template(node: ast.expr) -> str:
    """The text of an expression that makes a message, with … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left) + _template(node.right)
    if isinstance(node, ast.IfExp):
        either = [text for text in (_template(node.body), _template(node.orelse)) if text.strip("… ")]
        return " / ".join(either) if either else "…"
    return "…"


def _cell(text: str) -> str:
    return re.sub(r"…+", "…", re.sub(r"\s+", " ", text)).replace("|", "\\|").strip()


def main() -> None:
    """Write the parts anew."""
    for path in pages():
        path.write_text(replaced(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
