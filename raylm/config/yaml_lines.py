"""YAML as plain values, with the line of every key. Scalars follow YAML 1.2: `1e-4` is a number and `no` is a word."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from raylm.errors import ConfigError

Key = tuple[str | int, ...]


_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^(?:[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")


class JobLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars: no yes/no booleans, no 1:30 integers, no dates; 1e-4 is a float."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own pattern


def _integer(loader: JobLoader, node: yaml.ScalarNode) -> int:
    """A leading zero means nothing in YAML 1.2; PyYAML's own reads it as octal."""
    text = loader.construct_scalar(node).replace("_", "")
    sign, digits = (text[0], text[1:]) if text[0] in "+-" else ("+", text)
    base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
    return int(sign + digits, base)


JobLoader.add_constructor("tag:yaml.org,2002:int", _integer)


class JobDumper(yaml.SafeDumper):
    """SafeDumper that quotes whatever either YAML 1.1 or 1.2 would not read back as a string."""


for _tag, _pattern, _first in (
    ("bool", _BOOL, "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", _NULL, "~nN"),
):
    for _kind in (JobLoader, JobDumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))
JobLoader.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, [""])
JobDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)


@dataclass(frozen=True)
class Tree:
    """Plain values, and where each key was written: `file:line`, or the flag that set it.

    `spellings` holds what was written where the value is no text: `1.10` and `007` are other texts than their numbers.
    """

    values: dict[str, Any]
    places: dict[Key, str]
    origin: str
    spellings: dict[Key, str] = field(default_factory=dict)

    def place(self, key: Key) -> str:
        """Where `key` was written, or the nearest section above it, or the file."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.places:
                return self.places[key[:length]]
        return self.origin


def read_tree(text: str, origin: str) -> Tree:
    try:
        loader = JobLoader(text)
        for token in yaml.scan(text, Loader=JobLoader):
            if isinstance(token, yaml.AliasToken):
                # Every value stands on one line of its own, so that an error can point at it.
                raise ConfigError(
                    f"{origin}:{token.start_mark.line + 1}: alias *{token.value} is not supported",
                    hint="write the value out",
                )
        node = loader.get_single_node()
        tree = Tree({}, {}, origin)
        values = {} if node is None else _plain(loader, node, (), tree)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}:{mark.line + 1}" if mark else origin
        detail = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where}: not valid YAML: {detail}", hint="check indentation, quotes and colons") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{origin}: a job file is a mapping of sections, got {shown(values)}",
            hint="start from one that `raylm jobs` lists",
        )
    return replace(tree, values=values)


def _plain(loader: JobLoader, node: yaml.Node, key: Key, tree: Tree) -> Any:
    """The node's plain value; tells the tree the line of every key and list entry below it."""
    origin, places = tree.origin, tree.places
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = f"{origin}:{key_node.start_mark.line + 1}"
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if name is None:
                raise ConfigError(f"{line}: a key must be a word, got {key_node.tag.rsplit(':', 1)[-1]}")
            if name in result:
                raise ConfigError(
                    f"{line}: duplicate key '{dotted((*key, name))}', first given at {places[(*key, name)]}",
                    hint="keep one of the two",
                )
            places[(*key, name)] = line
            result[name] = _plain(loader, value_node, (*key, name), tree)
        return result
    if isinstance(node, yaml.SequenceNode):
        entries = []
        for index, entry in enumerate(node.value):
            places[(*key, index)] = f"{origin}:{entry.start_mark.line + 1}"
            entries.append(_plain(loader, entry, (*key, index), tree))
        return entries
    assert isinstance(node, yaml.ScalarNode)
    value = _scalar(loader, node, f"{origin}:{node.start_mark.line + 1}")
    if not isinstance(value, str):
        tree.spellings[key] = node.value
    return value


def _scalar(loader: JobLoader, node: yaml.ScalarNode, place: str) -> Any:
    try:
        return loader.construct_object(node)
    except (ValueError, LookupError, AttributeError) as error:  # PyYAML's, over `!!int x` or 5,000 digits
        kind = node.tag.rsplit(":", 1)[-1]
        raise ConfigError(
            f"{place}: {shown(node.value)} cannot be read as {kind}",
            hint=f"remove the tag !!{kind}, or correct the value",
        ) from error


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def shown(value: Any) -> str:
    """The value as a person wrote it, cut when long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
