"""Comes in: a job file in YAML and `--set key=value` flags. Leaves: a checked `Job`, or one error that says where.

The file and the flags are all there is: no environment variable changes a setting. Scalars follow YAML 1.2, so that
`1e-4` is a number and `no` is a word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raylm import __version__
from raylm.config.schema import Job
from raylm.errors import ConfigError

Key = tuple[str | int, ...]

PROBLEMS_SHOWN = 5

_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^(?:[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")


class _JobLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars: no yes/no booleans, no 1:30 integers, no dates; 1e-4 is a float."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own pattern


class _JobDumper(yaml.SafeDumper):
    """SafeDumper that quotes whatever either YAML 1.1 or 1.2 would not read back as a string."""


for _tag, _pattern, _first in (
    ("bool", _BOOL, "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", _NULL, "~nN"),
):
    for _kind in (_JobLoader, _JobDumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))
_JobLoader.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, [""])


@dataclass(frozen=True)
class _Tree:
    """Plain values, and where each key was written: `file:line`, or the flag that set it."""

    values: dict[str, Any]
    places: dict[Key, str]
    origin: str

    def place(self, key: Key) -> str:
        """Where `key` was written, or the nearest section above it, or the file."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.places:
                return self.places[key[:length]]
        return self.origin


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file, apply `a.b=c` overrides in order, and check the result."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no job file {path}", hint=_similar_files(path)) from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder, not a job file", hint="give the path of a .yaml file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})", hint="save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    return parse_job(text, origin=str(path), overrides=overrides)


def parse_job(text: str, *, origin: str, overrides: Sequence[str] = ()) -> Job:
    """Check the text of a job file; `origin` is the name that errors give it."""
    tree = _read(text, origin)
    for override in overrides:
        _apply(tree, override)
    try:
        return Job.model_validate(tree.values)
    except ValidationError as error:
        raise _explained(error, tree) from error
    except ConfigError as error:
        # A check over several sections: its message opens with the key to change, the place is ours to add.
        key = tuple(re.split(r"[=\s]", error.message, maxsplit=1)[0].split("."))
        raise ConfigError(f"{tree.place(key)}: {error.message}", hint=error.hint) from error


def resolved_yaml(job: Job) -> str:
    """Every setting of the job, defaults included, as a job file that loads to the same job."""
    body = yaml.dump(job.model_dump(mode="json"), Dumper=_JobDumper, sort_keys=False)
    return f"# Every setting of this run, as raylm {__version__} resolved it.\n{body}"


# What a resumed run may not change: it would be another run under the same name. Everything else (workers, zero,
# checkpoint, evaluate, where, storage, train.steps, kernels) may differ from one resume to the next.
FIXED = (
    "method",
    "model.preset",
    "model.config",
    "model.path",
    "model.dtype",
    "model.document_attention",
    "model.dropout",
    "batch.sequences",
    "batch.micro_batch",
    "data.chunk_rows",
    "data.window_chunks",
    "optim",
    "train.seed",
)


def same_run(old: Job, new: Job) -> list[str]:
    """The settings that differ and may not between resumes, one `key: old, now new` line each; empty if none."""
    before, after = dict(_leaves(_fixed(old))), dict(_leaves(_fixed(new)))
    return [
        f"{key}: {before.get(key)!r} in the run, now {after.get(key)!r}"
        for key in before | after
        if before.get(key) != after.get(key)
    ]


def _fixed(job: Job) -> dict[str, Any]:
    """The part of a job that makes it this run; data may move, its mixture may not change."""
    dump = job.model_dump(mode="json")
    fixed = {key: _dig(dump, key) for key in FIXED}
    fixed["data.mixture"] = {
        str(index): {"weight": entry.weight, "weight_schedule": [at.model_dump() for at in entry.weight_schedule]}
        for index, entry in enumerate(job.mixture)
    }
    return fixed


def _dig(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        values = values[part]
    return values


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# --- YAML with places ---------------------------------------------------------------------------------------------


def _read(text: str, origin: str) -> _Tree:
    try:
        loader = _JobLoader(text)
        for token in yaml.scan(text, Loader=_JobLoader):
            if isinstance(token, yaml.AliasToken):
                # Every value stands on one line of its own, so that an error can point at it.
                raise ConfigError(
                    f"{origin}:{token.start_mark.line + 1}: alias *{token.value} is not supported",
                    hint="write the value out",
                )
        node = loader.get_single_node()
        places: dict[Key, str] = {}
        values = {} if node is None else _plain(loader, node, (), origin, places)
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
            f"{origin}: a job file is a mapping of sections, got {_shown(values)}",
            hint="start from jobs/quickstart.yaml",
        )
    return _Tree(values, places, origin)


def _plain(loader: _JobLoader, node: yaml.Node, key: Key, origin: str, places: dict[Key, str]) -> Any:
    """The node's plain value; fills `places` with the line of every key and list entry below it."""
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = f"{origin}:{key_node.start_mark.line + 1}"
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if name is None:
                raise ConfigError(f"{line}: a key must be a word, got {key_node.tag.rsplit(':', 1)[-1]}")
            if name in result:
                raise ConfigError(
                    f"{line}: duplicate key '{_dotted((*key, name))}', first given at {places[(*key, name)]}",
                    hint="keep one of the two",
                )
            places[(*key, name)] = line
            result[name] = _plain(loader, value_node, (*key, name), origin, places)
        return result
    if isinstance(node, yaml.SequenceNode):
        entries = []
        for index, entry in enumerate(node.value):
            places[(*key, index)] = f"{origin}:{entry.start_mark.line + 1}"
            entries.append(_plain(loader, entry, (*key, index), origin, places))
        return entries
    return loader.construct_object(node)


# --- overrides ----------------------------------------------------------------------------------------------------


def _apply(tree: _Tree, override: str) -> None:
    """Set one `a.b=c` in the tree; a number names a list's entry."""
    dotted, equals, text = override.partition("=")
    parts = dotted.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: not of the form key=value", hint="for example --set optim.lr=1e-4")
    flag = f"--set {override}"
    value_tree = _read(f"value: {text}" if "\n" not in text else f"value:\n{text}", flag)
    if set(value_tree.values) != {"value"}:
        raise ConfigError(f"{flag}: the value is not valid YAML", hint="quote it: --set 'key=\"value\"'")
    node: Any = tree.values
    for depth, part in enumerate(parts[:-1]):
        node = _enter(node, part, parts[: depth + 1], flag)
    _assign(node, parts, value_tree.values["value"], flag)
    key: Key = tuple(int(part) if part.isdigit() else part for part in parts)
    for known in [known for known in tree.places if known[: len(key)] == key]:
        del tree.places[known]  # the flag replaced what stood on those lines
    for length in range(1, len(key)):
        tree.places.setdefault(key[:length], flag)
    tree.places[key] = flag


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
        raise ConfigError(f"{flag}: {'.'.join(path)} is {_shown(below)}, not a section")
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


# --- explaining what pydantic found -------------------------------------------------------------------------------


def _explained(error: ValidationError, tree: _Tree) -> ConfigError:
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


def _problem(details: ErrorDetails, tree: _Tree) -> tuple[str, str | None]:
    """One problem as (`file:line: key: what is wrong, got value`, hint)."""
    kind, key, seen = details["type"], _within(details["loc"], tree.values), details["input"]
    place = tree.place(key)
    if kind == "extra_forbidden":
        return f"{place}: unknown key '{_dotted(key)}'", _nearest(key)
    if kind == "missing":
        return f"{place}: '{_dotted(details['loc'])}' is missing", None
    if kind == "value_error":
        return f"{place}: {_dotted(key)}: {details['msg'].removeprefix('Value error, ')}", None
    if kind == "literal_error":
        allowed = details["ctx"]["expected"]
        near = difflib.get_close_matches(str(seen), re.findall(r"'([^']+)'", allowed), 1)
        hint = f"did you mean '{near[0]}'?" if near else None
        return f"{place}: {_dotted(key)}: expected {allowed}, got {_shown(seen)}", hint
    if kind == "string_type" and isinstance(seen, int | float):
        return f"{place}: {_dotted(key)}: expected text, got {_shown(seen)}", f'put it in quotes: "{seen}"'
    wanted = _EXPECTED.get(kind, details["msg"].replace("Input should be", "must be").replace("String", "text"))
    return f"{place}: {_dotted(key)}: {wanted}, got {_shown(seen)}", None


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


def _nearest(key: Key) -> str | None:
    """A hint that names the nearest key: in the same section first, then anywhere in the schema."""
    known = sorted(schema_keys())
    section = ".".join("0" if isinstance(part, int) else part for part in key[:-1])
    here = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    wrong = str(key[-1])
    if near := difflib.get_close_matches(wrong, here, 1, 0.6):
        return f"did you mean '{_dotted((*key[:-1], near[0]))}'?"
    elsewhere = [name for name in known if name.rpartition(".")[2] == wrong]
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    return f"keys here: {', '.join(here)}" if here else None


def schema_keys(model: type[BaseModel] = Job, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a job file may hold; entries of a list appear as `0`."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner, is_list in _models_in(field.annotation):
            yield from schema_keys(inner, f"{prefix}{name}.0." if is_list else f"{prefix}{name}.")


def _models_in(annotation: Any, is_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, is_list
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument, is_list or getattr(annotation, "__origin__", None) is list)


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def _shown(value: Any) -> str:
    """The value as a person wrote it, cut when long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _similar_files(path: Path) -> str | None:
    folder = path.parent if path.parent.is_dir() else Path()
    names = [found.name for found in folder.glob("*.y*ml")]
    near = difflib.get_close_matches(path.name, names, 1)
    return f"did you mean {folder / near[0]}?" if near else None
