"""WET files become documents: the texts that a crawler made of its pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raylm.config.prepare.sources import FileSourceSettings
from raylm.prep.readers.base import Raw, Reading
from raylm.prep.readers.kind import SourceKind
from raylm.prep.readers.warc import pages


class WetSource(FileSourceSettings):
    """Web archives with the texts of pages."""

    kind: Literal["wet"] = Field("wet", description="How files are read.")


def read(reading: Reading[WetSource]) -> Iterator[Raw]:
    """The archive's texts in its order."""
    return pages(reading, whole=False)


SOURCE = SourceKind("wet", WetSource, read, "WET archives of a crawl, the texts of its pages")
