"""What every section of a job file is: frozen, and strict about its keys."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """A frozen section of a job file that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python counts True as 1, so `steps: true` would train for one step. `no` is a word, in YAML 1.2.
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation in (int, float, int | None, float | None):
            raise ValueError(f"expected a number, got {str(value).lower()}")
        if annotation in (bool, bool | None) and isinstance(value, str | int | float) and not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {value}")
        return value
