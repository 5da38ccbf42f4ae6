"""Where a job runs: the section `cluster`."""

from __future__ import annotations

from pydantic import Field

from raylm.config.base import Settings


class ClusterSettings(Settings):
    """Where the job runs."""

    address: str | None = Field(None, description="A running Ray cluster; a local Ray is started when not set.")
