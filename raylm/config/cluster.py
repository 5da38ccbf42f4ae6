"""Where a job runs: the section `cluster`."""

from __future__ import annotations

from pydantic import Field

from raylm.config.base import Settings


class ClusterSettings(Settings):
    """Where the job runs."""

    address: str | None = Field(
        None, description="A running Ray cluster, as host:port or auto; a Ray of this machine's own when not set."
    )
