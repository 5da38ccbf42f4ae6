"""One value of a job changed, by its dotted key: `--set key=value`, or a key and a value from a program."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from raylm.config.paths import typed
from raylm.config.yaml_lines import Key, Tree, read_tree, shown
from raylm.errors import ConfigError


def apply_override(tree: Tree, override: str) -> None:
    """Set one `a.b=c` in the tree; a number names a list's entry."""
    dotted, equals, text = override.partition("=")
    parts = dotted.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: not of the form key=value", hint="for example --set optim.lr=1e-4")
    flag = f"--set {override}"
    _refuse_brackets(dotted.strip(), flag)
    value_tree = read_tree(f"value: {text}" if "\n" not in text else f"value:\n{text}", flag)
    if set(value_tree.values) != {"value"}:
        raise ConfigError(f"{flag}: the value is not valid YAML", hint="quote it: --set 'key=\"value\"'")
    _set(tree, parts, typed(value_tree.values["value"]), flag)
    for below, text in value_tree.spellings.items():
        tree.spellings[(*key_of(parts), *below[1:])] = text


def apply_change(tree: Tree, key: str, value: Any) -> None:
    """Put a program's value at a dotted key."""
    parts = key.split(".")
    if not all(parts):
        raise ConfigError(f"override {key!r} is not a dotted key", hint='for example {"optim.lr": 1e-4}')
    flag = f"override {key}={shown(value)}"
    _refuse_brackets(key, flag)
    _set(tree, parts, typed(value), flag)


def _refuse_brackets(key: str, flag: str) -> None:
    """Entries of lists are `sources.0`; other libraries write `sources[0]`."""
    ours = re.sub(r"\[(\d+)\]", r".\1", key)
    if ours != key:
        raise ConfigError(f"{flag}: an entry of a list is named without brackets", hint=f"did you mean '{ours}'?")


def _set(tree: Tree, parts: Sequence[str], value: Any, flag: str) -> None:
    node: Any = tree.values
    for depth, part in enumerate(parts[:-1]):
        node = _enter(node, part, parts[: depth + 1], flag)
    _assign(node, parts, value, flag)
    key = key_of(parts)
    for written in (tree.places, tree.spellings):
        for known in [known for known in written if known[: len(key)] == key]:
            del written[known]  # the flag replaced what stood on those lines
    for length in range(1, len(key)):
        tree.places.setdefault(key[:length], flag)
    tree.places[key] = flag


def key_of(parts: Sequence[str]) -> Key:
    """The parts of a dotted key, numbers of entries as numbers."""
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _enter(node: Any, part: str, path: Sequence[str], flag: str) -> Any:
    """The section or list entry `part` of node, made when it is not there yet."""
    if isinstance(node, list):
        below = node[_index(node, part, path, flag)]
    else:
        _refuse_entry_of_nothing(node, part, path, flag)
        if node.get(part) is None:
            node[part] = {}
        below = node[part]
    if not isinstance(below, dict | list):
        raise ConfigError(f"{flag}: {'.'.join(path)} is {shown(below)}, not a section")
    return below


def _assign(node: Any, path: Sequence[str], value: Any, flag: str) -> None:
    if isinstance(node, list):
        node[_index(node, path[-1], path, flag)] = value
    else:
        _refuse_entry_of_nothing(node, path[-1], path, flag)
        node[path[-1]] = value


def _refuse_entry_of_nothing(node: dict[str, Any], part: str, path: Sequence[str], flag: str) -> None:
    if part.isdigit() and not node:
        above = ".".join(path[:-1])
        raise ConfigError(
            f"{flag}: the job file has no list {above} to take entry {part} of",
            hint=f"give the whole list: --set '{above}=[...]'",
        )


def _index(entries: list[Any], part: str, path: Sequence[str], flag: str) -> int:
    if not part.isdigit() or int(part) >= len(entries):
        above = ".".join(path[:-1])
        raise ConfigError(
            f"{flag}: {above} is a list of {len(entries)}, it has no entry '{part}'",
            hint=f"entries are {above}.0 to {above}.{len(entries) - 1}" if entries else f"set {above} as a whole",
        )
    return int(part)
