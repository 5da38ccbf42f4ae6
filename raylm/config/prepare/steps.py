"""The list `prepare.steps`: each entry names an operator, and under the name stand the operator's settings."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import (
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    SerializationInfo,
    SerializeAsAny,
    ValidationInfo,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema

from raylm.config.base import Settings
from raylm.registry import Registry

if TYPE_CHECKING:
    from raylm.prep.operators.kind import OperatorKind

_PACKAGE = "raylm.prep.operators"
OPERATORS: Registry[OperatorKind[Any]] = Registry(
    "operator",
    builtin={
        "blocklist": f"{_PACKAGE}.blocklist:OPERATOR",
        "classifier": f"{_PACKAGE}.classifier:OPERATOR",
        "counterfactual": f"{_PACKAGE}.counterfactual:OPERATOR",
        "decontaminate": f"{_PACKAGE}.decontaminate.operator:OPERATOR",
        "exact_duplicates": f"{_PACKAGE}.dedup.exact:OPERATOR",
        "fairness": f"{_PACKAGE}.fairness:OPERATOR",
        "language": f"{_PACKAGE}.language:OPERATOR",
        "near_duplicates": f"{_PACKAGE}.dedup.near:OPERATOR",
        "normalize": f"{_PACKAGE}.normalize:OPERATOR",
        "personal_data": f"{_PACKAGE}.personal.operator:OPERATOR",
        "quality": f"{_PACKAGE}.quality:OPERATOR",
        "sample": f"{_PACKAGE}.sample:OPERATOR",
        "toxicity": f"{_PACKAGE}.toxicity:OPERATOR",
    },
)


class OperatorSettings(Settings):
    """One step: the name of an operator, and under it the operator's settings; the name alone takes the defaults."""

    name: str
    settings: SerializeAsAny[Settings]

    @model_validator(mode="wrap")
    @classmethod
    def _by_name(
        cls, value: Any, handler: ModelWrapValidatorHandler[OperatorSettings], info: ValidationInfo
    ) -> OperatorSettings:
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, dict):
            raise ValueError("a step is the name of an operator, or the name with its settings under it")
        if len(value) != 1:
            given = ", ".join(sorted(map(str, value))) or "nothing"
            raise ValueError(f"a step names one thing to do, got {given}; begin each with a dash of its own")
        ((name, settings),) = value.items()
        # The model has the operator's name as its only key, so that errors name the place in the job file.
        model: type[Settings] = Settings
        if name in OPERATORS:
            model = _keyed(OPERATORS.get(name).settings, name)
        checked = model.model_validate({name: {} if settings is None else settings}, context=info.context)
        return cls.model_construct(name=name, settings=getattr(checked, name))

    @model_serializer(mode="plain")
    def _as_written(self, info: SerializationInfo) -> dict[str, Any]:
        settings = self.settings.model_dump(
            mode=info.mode, exclude_defaults=info.exclude_defaults, exclude_unset=info.exclude_unset
        )
        return {self.name: settings}

    @classmethod
    def choices(cls) -> Iterator[tuple[str, type[Settings]]]:
        """What an entry may hold: the name of each operator that is known, and its settings."""
        for name, kind in OPERATORS.items():
            yield name, kind.settings

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        entries: list[dict[str, Any]] = [{"type": "string", "enum": OPERATORS.names()}]
        for name, settings in cls.choices():
            below = handler(settings.__pydantic_core_schema__)
            entries.append(
                {
                    "type": "object",
                    "properties": {name: {"anyOf": [below, {"type": "null"}]}},
                    "required": [name],
                    "additionalProperties": False,
                }
            )
        return {"anyOf": entries, "description": cls.__doc__ or ""}


@functools.cache
def _keyed(settings: type[Settings], name: str) -> type[Settings]:
    """A section whose one key is this name."""
    model: type[Settings] = create_model("step", __base__=Settings, **{name: (settings, ...)})  # type: ignore[call-overload]
    return model
