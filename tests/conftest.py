"""What every test shares: a quiet, offline environment, and object stores that start when the first test asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings

# Before anything imports torch or Ray: two cores are shared by several processes of one test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from raylm.testing.servers import CREDENTIALS, AzureServer, GoogleServer, S3Server, ServerMissing
from raylm.testing.servers import azurite as run_azurite
from raylm.testing.servers import fake_gcs as run_fake_gcs
from raylm.testing.servers import moto as run_moto
from raylm.testing.servers import seaweed as run_seaweed

os.environ.update(CREDENTIALS)

# The same examples in every run: a default test that fails only sometimes tells nobody anything.
# HYPOTHESIS_PROFILE=explore looks further.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@contextmanager
def or_skip() -> Iterator[None]:
    """Skip the test where a server is not installed."""
    try:
        yield
    except ServerMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """moto's S3 server."""
    with or_skip(), run_moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS's S3 server."""
    with or_skip(), run_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleServer]:
    """fake-gcs-server."""
    with or_skip(), run_fake_gcs(tmp_path_factory.mktemp("fake_gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """azurite, with its connection string in the environment."""
    folder = tmp_path_factory.mktemp("azurite")
    with or_skip(), run_azurite(folder) as server, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AZURE_STORAGE_CONNECTION_STRING", server.connection_string)
        yield server


@pytest.fixture(scope="session", params=["moto", "seaweed"])
def s3(request: pytest.FixtureRequest) -> S3Server:
    """Each of the servers in turn."""
    server: S3Server = request.getfixturevalue(request.param)
    return server
