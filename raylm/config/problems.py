"""What pydantic found wrong, as one error for people: file, line, key, what was expected, the nearest key."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raylm.config.describe import allowed
from raylm.config.keys import OWN_KINDS, children, is_kind, nearest
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
    "int_from_float": "expected an integer",
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


PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "ASCII letters, digits, '.', '_' and '-', the first a letter or a digit",
    r"^[A-Za-z0-9._-]+$": "ASCII letters, digits, '.', '_' and '-'",
}


def _problem(details: ErrorDetails, tree: Tree) -> tuple[str, str | None]:
    """One problem as (`file:line: key: what is wrong, got value`, hint)."""
    kind, key, seen = details["type"], _within(details["loc"], tree.values), details["input"]
    place = tree.place(key)
    if kind == "extra_forbidden":
        if len(key) < len(details["loc"]):  # a bare word, which stands for a key of that name
            key = (*key, details["loc"][-1])
        return f"{place}: unknown key '{dotted(key)}'", _nearest(key, tree, seen)
    if kind == "missing":
        return f"{place}: '{dotted(details['loc'])}' is missing", None
    if kind == "value_error":
        words = details["msg"].removeprefix("Value error, ")
        return f"{_flags(key, words, tree) or place}: {dotted(key)}: {words}", None
    if kind == "literal_error":
        expected = details["ctx"]["expected"]
        near = difflib.get_close_matches(str(seen), re.findall(r"'([^']+)'", expected), 1)
        hint = f"did you mean '{near[0]}'?" if near else OWN_KINDS if is_kind(dotted(key)) else None
        return f"{place}: {dotted(key)}: expected {expected}, got {shown(seen)}", hint
    if kind == "string_type" and isinstance(seen, int | float):
        text = tree.spellings.get(key, shown(seen))
        return f"{place}: {dotted(key)}: expected text, got {text}", f'put it in quotes: "{text}"'
    if kind == "string_pattern_mismatch" and details["ctx"]["pattern"] in PATTERNS:
        return f"{place}: {dotted(key)}: expected {PATTERNS[details['ctx']['pattern']]}, got {shown(seen)}", None
    hint = _section_for(dotted(key), seen) if kind == "model_type" else None
    wanted = _EXPECTED.get(kind, details["msg"].replace("Input should be", "must be").replace("String", "text"))
    return f"{place}: {dotted(key)}: {wanted}, got {shown(seen)}", hint


def _flags(section: Key, words: str, tree: Tree) -> str:
    """The flags that gave a section's keys which these words name: what the file says was right without them."""
    below = {key: place for key, place in tree.places.items() if len(key) == len(section) + 1 and key[:-1] == section}
    named = [place for key, place in below.items() if re.search(rf"\b{re.escape(str(key[-1]))}\b", words)]
    return ", ".join(place for place in named if place.startswith(("--set ", "override ")))


def _nearest(key: Key, tree: Tree, value: Any) -> str | None:
    return nearest(dotted(key), _kind_at(key[:-1], tree.values), value)


def _section_for(key: str, value: Any) -> str | None:
    """What to write where a plain value stands in a section's place."""
    below = {setting.name: setting.field for setting in children(key)}
    if isinstance(value, int | float) and not isinstance(value, bool) and set(below) == {"min", "max"}:
        return f"for at least that much write {{min: {value}}}"
    if isinstance(value, str):
        of_choice = [name for name, field in below.items() if value in allowed(field)]
        if meant := [*of_choice, *(name for name in below if name == "path")]:
            return f"did you mean '{key}.{meant[0]}'?"
    return None


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
