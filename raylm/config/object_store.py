"""How object storage is reached: the section `object_store`."""

from __future__ import annotations

from pydantic import Field, field_validator

from raylm.config.base import Settings
from raylm.storage import Connection


class ObjectStore(Settings):
    """How to reach object storage. Credentials never stand here: they come from the provider's own chain."""

    endpoint: str | None = Field(
        None, description="URL of an S3- or GCS-compatible server, for example http://127.0.0.1:9000."
    )
    region: str | None = Field(None, description="Region name, where the server wants one.")
    anonymous: bool = Field(False, description="Read public buckets without credentials.")
    retries: int = Field(5, ge=0, description="How often a failed request is tried again, with growing pauses.")
    timeout_seconds: float = Field(30.0, gt=0, description="Longest wait for one request.")

    @field_validator("endpoint")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        # A URL with user:password@ would be dumped into run.yaml.
        if value is not None and "@" in value.split("//", 1)[-1].split("/", 1)[0]:
            raise ValueError("must not hold credentials; put them in the environment or the provider's profile")
        return value

    def connection(self) -> Connection:
        """The same, as storage takes it."""
        return Connection(self.endpoint, self.region, self.anonymous, self.retries, self.timeout_seconds)
