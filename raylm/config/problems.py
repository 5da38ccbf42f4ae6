"""What pydantic found wrong, as one error for people: file, line, key, what was expected, the nearest key."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raylm.config.keys import nearest
from raylm.config.yaml_lines import Key, Tree, dotted, shown
from raylm.errors import ConfigError

PROBLEMS_SHOWN = 5


def explained(error: ValidationError, tree: Tree) -> ConfigError:
    """The first few problems, one a line, unknown keys first: they tend to cause the others."""
    found = sorted(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
    problems: dict[Key, tuple[str, str | None]] = {}
    for details in found:
        # A union gives an error for each of its members; one is enough.
        problems.setdefault(_within(details["loc"], tree.values), _problem(details, tree))
    if len(problems) == 1:
        [(message, hint)] = problems.values()
        return ConfigError(message, hint=hint)
    lines = [f"{message} ({hint})" if hint else message for message, hint in problems.values()]
    if len(lines) > PROBLEMS_SHOWN:
        lines[PROBLEMS_SHOWN:] = [f"and {len(lines) - PROBLEMS_SHOWN} more"]
    return ConfigError("\n       ".join([f"{len(problems)} problems in {tree.origin}", *lines]))


_EXPECTED = {
    "int_type": "expected an integer",
    "int_parsing": "expected an integer",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "string_type": "expected text",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected a section",
    "model_type": "expected a section",
}


def _problem(details: ErrorDetails, tree: Tree) -> tuple[str, str | None]:
    """One problem as (`file:line: key: what is wrong, got value`, hint)."""
    kind, key, seen = details["type"], _within(details["loc"], tree.values), details["input"]
    place = tree.place(key)
    if kind == "extra_forbidden":
        return f"{place}: unknown key '{dotted(key)}'", nearest(dotted(key), _kind_at(key[:-1], tree.values))
    if kind == "missing":
        return f"{place}: '{dotted(details['loc'])}' is missing", None
    if kind == "value_error":
        return f"{place}: {dotted(key)}: {details['msg'].removeprefix('Value error, ')}", None
    if kind == "literal_error":
        allowed = details["ctx"]["expected"]
        near = difflib.get_close_matches(str(seen), re.findall(r"'([^']+)'", allowed), 1)
        hint = f"did you mean '{near[0]}'?" if near else None
        return f"{place}: {dotted(key)}: expected {allowed}, got {shown(seen)}", hint
    if kind == "string_type" and isinstance(seen, int | float):
        return f"{place}: {dotted(key)}: expected text, got {shown(seen)}", f'put it in quotes: "{seen}"'
    wanted = _EXPECTED.get(kind, details["msg"].replace("Input should be", "must be").replace("String", "text"))
    return f"{place}: {dotted(key)}: {wanted}, got {shown(seen)}", None


def _within(loc: Key, values: Any) -> Key:
    """The part of pydantic's location that names keys of the file; a union adds its member's name at the end."""
    key: list[str | int] = []
    for part in loc:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            break
        key.append(part)
    return tuple(key)


def _kind_at(key: Key, values: Any) -> str | None:
    """The `kind` that the entry of that key was given."""
    for part in key:
        values = values[part]
    kind = values.get("kind") if isinstance(values, dict) else None
    return str(kind) if kind is not None else None
