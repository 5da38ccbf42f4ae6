"""An operator over a few texts, as preparation would run it, for tests of operators of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raylm.prep.operators import OperatorRecord, operator_of
from raylm.records import Document
from raylm.storage import Connection, StoragePath


def run_operator(
    step: str | dict[str, Any], texts: Iterable[str | Document], *, folder: StoragePath | None = None
) -> tuple[list[Document], OperatorRecord]:
    """The documents that leave an operator, and its record of what it did.

    `step` is what `prepare.steps` of a job would hold: a registered name, or a name with its settings. Texts become
    documents with their number as id. What has to be fitted first wants the `folder` that it was fitted in; a barrier,
    such as near_duplicates, has no operator, and shows in a preparation only.
    """
    from raylm.config.prepare.steps import OperatorSettings

    settings = OperatorSettings.model_validate(step)
    documents = [
        one if isinstance(one, Document) else Document(str(number), one, "texts") for number, one in enumerate(texts)
    ]
    record = OperatorRecord(settings.name)
    operator = operator_of(settings, Connection(), folder)
    return list(operator(documents, record)), record
