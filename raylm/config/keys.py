"""Every key that a job file may hold, found by walking the settings and the registries behind them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from raylm.config.base import Settings
from raylm.config.job import Job
from raylm.config.other_names import OTHER_NAMES
from raylm.config.unions import NamedSettings, SettingsByKind, is_union
from raylm.registry import Registry

ENTRY, ANY_NAME = "0", "*"  # stand in a key for the entries of a list and of a mapping


@dataclass(frozen=True)
class Setting:
    """One key: its field, and the section that it opens, if it does; `kind` when only that kind of entry has it."""

    key: str
    field: FieldInfo | None
    section: type[Settings] | None = None
    kind: str | None = None

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """The key of the section it stands in; empty at the top."""
        return self.key.rpartition(".")[0]

    @property
    def spoken(self) -> str:
        """The key as `raylm explain` takes it: without numbers of entries."""
        return spoken(self.key)

    @property
    def meaning(self) -> str:
        """What it does, in one sentence; of a section the first sentence of its class where the field has none."""
        if self.field is not None and self.field.description:
            return self.field.description
        return (inspect.getdoc(self.section) or "").split("\n\n")[0].replace("\n", " ") if self.section else ""

    @property
    def other_names(self) -> list[str]:
        """What other libraries call it."""
        return OTHER_NAMES.get(self.key, "").split()


def settings_in(section: type[Settings] = Job, prefix: str = "", kind: str | None = None) -> Iterator[Setting]:
    """Every setting below a section, depth first, in the order in which they are written down."""
    if is_union(section) and issubclass(section, SettingsByKind):
        yield Setting(f"{prefix}kind", _kind_field(section))
        for name, entry in section.table.items():
            yield from (one for one in settings_in(entry.settings, prefix, name) if one.key != f"{prefix}kind")
        return
    if is_union(section) and issubclass(section, NamedSettings):
        for name, entry in section.table.items():
            yield Setting(f"{prefix}{name}", None, entry.settings)
            yield from settings_in(entry.settings, f"{prefix}{name}.")
        return
    for name, field in section.model_fields.items():
        below = list(_sections_of(field.annotation))
        yield Setting(f"{prefix}{name}", field, below[0][0] if below else None, kind)
        for inner, path in below:
            yield from settings_in(inner, ".".join([f"{prefix}{name}", *path, ""]))


def tables_in(section: type[Settings] = Job, prefix: str = "") -> Iterator[tuple[str, Registry[Any]]]:
    """Every key below a section under which entries of a registry stand, with the registry."""
    for name, field in section.model_fields.items():
        for inner, path in _sections_of(field.annotation):
            key = ".".join([f"{prefix}{name}", *path])
            if issubclass(inner, NamedSettings | SettingsByKind):
                yield key, inner.table
            else:
                yield from tables_in(inner, f"{key}.")


def _kind_field(section: type[SettingsByKind]) -> FieldInfo:
    """The key `kind` as all kinds have it together."""
    field = section.model_fields.get("kind")
    return FieldInfo(
        annotation=cast(Any, Literal[tuple(section.table.names())]),
        default=section.default_kind,
        description=field.description if field else "Which settings the entry takes.",
    )


def schema_keys() -> Iterator[str]:
    """Every dotted key, once; entries of a list appear as `0`, of a mapping as `*`."""
    yield from dict.fromkeys(setting.key for setting in settings_in())


def _sections_of(annotation: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[type[Settings], tuple[str, ...]]]:
    """The classes of settings in a type, each with what stands in a key between the field and its own keys."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation, path
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        arguments = arguments[:1]
    elif origin in (list, tuple):
        path = (*path, ENTRY)
    elif origin is dict:
        path, arguments = (*path, ANY_NAME), arguments[1:]
    for argument in arguments:
        yield from _sections_of(argument, path)


def _stands_for(pattern: str, key: str) -> bool:
    """Whether a key with the numbers and names of entries is the one that the pattern describes."""
    parts, given = pattern.split("."), key.split(".")
    return len(parts) == len(given) and all(
        part in (one, ANY_NAME) or (part == ENTRY and one.isdigit()) for part, one in zip(parts, given, strict=True)
    )


def children(key: str) -> list[Setting]:
    """The settings of the section that a key, with the numbers and names of entries, opens."""
    return [setting for setting in settings_in() if _stands_for(setting.parent, key)]


OWN_KINDS = "what your own code registers has to be listed under plugins"


def is_kind(key: str) -> bool:
    """Whether the key is the `kind` of an entry, which a registry knows."""
    return any(_stands_for(f"{above}.kind", key) for above, _ in tables_in())


def nearest(key: str, kind: str | None = None, value: Any = None) -> str | None:
    """A hint that names the key most likely meant: in the same section first, then anywhere.

    `kind` is that of the entry the key stands in, where there are several; `value` is what the key was given.
    """
    known = sorted(settings_in(), key=lambda setting: (setting.key.count("."), setting.key))
    section, _, wrong = key.rpartition(".")
    here = [setting for setting in known if _stands_for(setting.parent, section)]
    of_kind = [setting for setting in here if setting.kind in (None, kind)] or here
    if near := like(wrong, of_kind):
        return f"did you mean '{_opened(f'{section}.{near}'.lstrip('.'), wrong, value)}'?"
    if others := sorted({str(setting.kind) for setting in here if setting.name == wrong}):
        return f"'{wrong}' is a key of kind: {' or '.join(others)}"
    if elsewhere := [setting for setting in known if wrong == setting.name or wrong in setting.other_names]:
        # One that takes the value, and is not deep in some operator's settings where a section's own fits as well.
        elsewhere.sort(key=lambda setting: (not _takes(setting, value), setting.key.count("."), setting.name != wrong))
        return f"did you mean '{elsewhere[0].key}'?"
    names = ", ".join(sorted(dict.fromkeys(setting.name for setting in of_kind)))
    if of_kind and of_kind[0].field is None:
        return f"known: {names}; {OWN_KINDS}"
    if not names:
        return (
            f"{section.rpartition('.')[2]} takes no keys"
            if any(_stands_for(one.key, section) for one in known)
            else None
        )
    free = [
        one.name for one in of_kind if one.field and one.section is None and get_origin(one.field.annotation) is dict
    ]
    return f"keys here: {names}" + (f"; names of your own go under '{section}.{free[0]}'" if free else "")


def _takes(setting: Setting, value: Any) -> bool:
    """Whether the value would be right for a plain setting; where none is known, whether it may be any."""
    if setting.field is None or setting.section is not None:
        return isinstance(value, dict | list | None)
    try:
        wanted: Any = Annotated[cast(Any, setting.field.annotation), setting.field]
        TypeAdapter(wanted).validate_python(value)
    except ValidationError:
        return value is None
    return True


def _opened(key: str, wrong: str, value: Any) -> str:
    """The key, or the one below it that a section by another library's name was given."""
    if isinstance(value, dict) and len(value) == 1 and wrong in OTHER_NAMES.get(key, "").split():
        [name] = value
        return f"{key}.{name}" if name in {setting.name for setting in children(key)} else key
    return key


def like(wrong: str, settings: list[Setting]) -> str | None:
    """The name of the setting that another library calls so, or that is spelled much the same."""
    for setting in settings:
        if wrong in setting.other_names:
            return setting.name
    near = difflib.get_close_matches(wrong, dict.fromkeys(setting.name for setting in settings), 1, 0.6)
    return near[0] if near else None


def find(key: str) -> list[Setting]:
    """The settings that a key names, numbers of entries left out or not; one for each kind that has it."""
    wanted = spoken(key)
    return [setting for setting in settings_in() if setting.spoken == wanted]


def spoken(key: str) -> str:
    """The key without the numbers of entries."""
    return ".".join(part for part in key.replace("[]", "").split(".") if part != ANY_NAME and not part.isdigit())


@dataclass(frozen=True)
class Shared:
    """A setting with the kinds of entries that have it, all with one meaning; no kinds where there is one kind only."""

    setting: Setting
    kinds: tuple[str, ...]


def shared(settings: Iterable[Setting]) -> list[Shared]:
    """Settings that several kinds of entries have alike, once each, those of most kinds first."""
    alike: dict[tuple[str, str, str], list[Setting]] = {}
    for setting in settings:
        looks = repr((setting.field.annotation, setting.field.default)) if setting.field else ""
        alike.setdefault((setting.key, setting.meaning, looks), []).append(setting)
    found = [Shared(same[0], tuple(one.kind for one in same if one.kind)) for same in alike.values()]
    return sorted(found, key=lambda one: -len(one.kinds) if one.kinds else -len(found) - 1000)
