"""JSON as records: one strict parser, whose errors name what is wrong."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

T = TypeVar("T")


def parse_json(kind: type[T], data: bytes | str) -> T:
    """A dataclass from JSON, its types exact; ValueError names the first field that is missing or wrong."""
    from pydantic import ValidationError

    try:
        made: T = _adapter(cast(Hashable, kind)).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] in ("missing", "missing_argument"):
            raise ValueError(f"{name} is missing") from error
        if not name:
            raise ValueError(first["msg"]) from error
        raise ValueError(f"{name} is {first['input']!r}: {first['msg']}") from error
    return made


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
