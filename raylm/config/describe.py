"""Settings in words: what type of value a key takes, within which limits, and what its default is."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raylm.config.base import Settings
from raylm.config.paths import PathMark
from raylm.config.unions import NamedSettings

_PLAIN = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "any value", type(None): "null"}
_LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}  # as annotated_types names them


def type_words(field: FieldInfo | None) -> str:
    """What a key takes: `integer (>= 1)`; a section's own settings are listed under it."""
    if field is None:
        return "section"
    return _within(_type(field.annotation, field.metadata), field.metadata)


def default_words(field: FieldInfo | None) -> str:
    """The default as it would be written in a job file; `required` where there is none, nothing for a section."""
    if field is None or _is_section(field.annotation):
        return ""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, NamedSettings):
        return value.name
    return value if isinstance(value, str) and value else json.dumps(_plain(value), ensure_ascii=False)


def allowed(field: FieldInfo | None) -> list[str]:
    """The values of a key that takes only some; empty for any other."""
    return [str(value) for value in _literals(field.annotation)] if field else []


def _type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    for mark in metadata:
        if isinstance(mark, PathMark):
            return _with_others(annotation, mark.what)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _within(_type(arguments[0], arguments[1:]), arguments[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments)
    if origin is Literal:
        return f"one of {', '.join(json.dumps(one).strip(chr(34)) for one in arguments)}"
    if origin is list:
        entry = _type(arguments[0])
        return {"section": "list of sections", "operator": "list of operators"}.get(entry, f"list of {entry}")
    if origin is tuple:
        return f"[{', '.join(_type(one) for one in arguments)}]"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return str(annotation.table.what) if issubclass(annotation, NamedSettings) else "section"
    return _PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _with_others(annotation: Any, what: str) -> str:
    """A marked path, where the field takes something else as well: null, or a section."""
    arguments = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    return " or ".join([what, *(_type(one) for one in arguments if one is not str)])


def _within(words: str, metadata: Iterable[Any]) -> str:
    limits = _limits(metadata)
    return f"{words} ({', '.join(limits)})" if limits else words


def _limits(metadata: Iterable[Any]) -> list[str]:
    words = []
    for mark in metadata:
        if isinstance(mark, FieldInfo):
            words += _limits(mark.metadata)
        words += [f"{sign} {getattr(mark, name)}" for name, sign in _LIMITS.items() if hasattr(mark, name)]
        if least := getattr(mark, "min_length", None):
            words.append("not empty" if least == 1 else f"{least} or more")
        if pattern := getattr(mark, "pattern", None):
            words.append(f"matching {pattern}")
    return words


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for one in get_args(annotation) for value in _literals(one)]


def _is_section(annotation: Any) -> bool:
    is_settings = isinstance(annotation, type) and issubclass(annotation, Settings)
    return is_settings and not issubclass(annotation, NamedSettings)


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if value is PydanticUndefined else value
