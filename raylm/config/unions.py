"""Sections of which there are several kinds, each with settings of its own that stand beside the code that uses them.

The kinds are the entries of a `Registry`; an entry has an attribute `settings`, the class of its settings. Two shapes:
`- quality: {rules: [c4]}` (`NamedSettings`) and `- {kind: jsonl, glob: "*.jsonl"}` (`SettingsByKind`). An entry's
module is imported when a job names it, all of them for the JSON Schema and for hints.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Self

from pydantic import (
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    SerializationInfo,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails

from raylm.config.base import Settings
from raylm.registry import Registry


class _FromTable(Settings):
    """Settings of an entry of a registry; one that a program registered itself goes along to other processes."""

    table: ClassVar[Registry[Any]]

    def __reduce__(self) -> tuple[Any, ...]:
        # A module of the user's registers its entry wherever it is imported; a notebook's cells are not imported.
        name = self._entry_name()
        own = type(getattr(self, "settings", self)).__module__ == "__main__"
        return (_restored, (type(self), name, self.table.get(name) if own else None, self.__getstate__()))

    def _entry_name(self) -> str:
        raise NotImplementedError


def _restored(section: type[_FromTable], name: str, entry: Any, state: dict[Any, Any]) -> _FromTable:
    if entry is not None:
        section.table.register(name, entry, replace=True)
    made = section.__new__(section)
    made.__setstate__(state)
    return made


class NamedSettings(_FromTable):
    """An entry `name: settings`; a bare name, or a name with nothing after it, asks for the defaults.

    A subclass names its table: `table: ClassVar[Registry[Operator]] = OPERATORS`.
    """

    name: str
    settings: SerializeAsAny[Settings]

    def _entry_name(self) -> str:
        return self.name

    @model_validator(mode="wrap")
    @classmethod
    def _by_name(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if isinstance(value, str):
            value = {value: None}
        if not isinstance(value, dict) or isinstance(value.get("settings"), Settings):
            return handler(value)
        unknown = [key for key in value if key not in cls.table]
        if unknown:
            raise _problem(cls, "extra_forbidden", unknown[0], value[unknown[0]])
        if len(value) != 1:
            given = ", ".join(sorted(value)) or "nothing"
            raise ValueError(f"an entry names one {cls.table.what}, got {given}; begin each with a dash of its own")
        [(name, given)] = value.items()
        made = _alone(name, cls.table.get(name).settings).model_validate(
            {name: {} if given is None else given}, context=info.context
        )
        return handler({"name": name, "settings": getattr(made, name)})

    @model_serializer(mode="plain")
    def _as_written(self, info: SerializationInfo) -> dict[str, Any]:
        settings = self.settings.model_dump(
            mode=info.mode, exclude_defaults=bool(info.exclude_defaults), context=info.context
        )
        return {self.name: settings}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        entries = {
            name: {"anyOf": [handler(entry.settings.__pydantic_core_schema__), {"type": "null"}]}
            for name, entry in cls.table.items()
        }
        named = {"type": "object", "properties": entries, "additionalProperties": False}
        return {"anyOf": [{"enum": cls.table.names()}, named | {"minProperties": 1, "maxProperties": 1}]}


@lru_cache(maxsize=256)
def _alone(name: str, settings: type[Settings]) -> type[Settings]:
    """A section with one key, so that what is wrong below it is located under its name."""
    fields: dict[str, Any] = {name: (settings, ...)}
    return create_model(f"{settings.__name__}Entry", __base__=Settings, **fields)


class SettingsByKind(_FromTable):
    """A section whose `kind` says which settings it takes; made by `model_validate`, never by its own constructor.

    A direct subclass names its table and holds what all kinds share; each kind's class derives from that one and
    begins with `kind: Literal["jsonl"] = "jsonl"`.
    """

    default_kind: ClassVar[str]

    def _entry_name(self) -> str:
        return str(getattr(self, "kind", self.default_kind))

    @model_validator(mode="wrap")
    @classmethod
    def _by_kind(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if not is_union(cls) or not isinstance(value, dict):
            return handler(value)
        kind = value.get("kind", cls.default_kind)
        if kind not in cls.table:
            *most, last = (repr(name) for name in cls.table.names())
            expected = f"{', '.join(most)} or {last}" if most else last
            raise _problem(cls, "literal_error", "kind", kind, {"expected": expected})
        made: Self = cls.table.get(kind).settings.model_validate(value, context=info.context)
        return made

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        if not is_union(cls):
            return handler(core_schema)
        return {"anyOf": [handler(entry.settings.__pydantic_core_schema__) for _, entry in cls.table.items()]}


def is_union(section: type[Settings]) -> bool:
    """Whether the class stands for several kinds: a direct subclass of one of the two above."""
    return NamedSettings in section.__bases__ or SettingsByKind in section.__bases__


def _problem(
    section: type[Settings], kind: str, key: str, value: Any, details: dict[str, Any] | None = None
) -> ValidationError:
    line: InitErrorDetails = {"type": kind, "loc": (key,), "input": value, "ctx": details or {}}
    return ValidationError.from_exception_data(section.__name__, [line])
