"""The list `prepare.steps`: each entry names an operator, and under the name stand the operator's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from raylm.config.unions import NamedSettings
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


class OperatorSettings(NamedSettings):
    """One step: the name of an operator, and under it the operator's settings."""

    table: ClassVar[Registry[Any]] = OPERATORS
