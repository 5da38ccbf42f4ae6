"""Preparation and training on Google's and Azure's storage: the bytes of local disk, and errors without secrets."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from raylm.checkpoint.restore import newest
from raylm.config.job import Job
from raylm.errors import StorageError
from raylm.prep.prepare import prepare
from raylm.prep.tasks import here
from raylm.run.folder import RunFolder
from raylm.run.lines import read_lines
from raylm.storage import Connection, NotFound, StoragePath, find
from raylm.testing.datasets import job_settings, make_data
from raylm.testing.servers import AZURE_ACCOUNT, AZURE_KEY, AzureServer, Faults, GoogleServer, failing, free_port, proxy
from raylm.train.without_ray import alone

CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
GOOGLE_SECRETS = ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "CLOUDSDK_CONFIG")


@pytest.fixture(params=["fake_gcs", "azurite"])
def store(request: pytest.FixtureRequest) -> GoogleServer | AzureServer:
    server: GoogleServer | AzureServer = request.getfixturevalue(request.param)
    return server


def object_store(server: GoogleServer | AzureServer) -> dict[str, Any]:
    return {"endpoint": server.endpoint, "anonymous": True} if isinstance(server, GoogleServer) else {}


def everything(folder: StoragePath) -> dict[str, bytes]:
    return {place.url.removeprefix(folder.url): place.read_bytes() for place in folder.glob("**/*")}


def write_texts(folder: StoragePath) -> None:
    for number in range(4):
        lines = (
            json.dumps({"text": f"file {number}, line {line}: naïve 東京 " * (1 + line % 5)}) for line in range(40)
        )
        (folder / f"part-{number}.jsonl").write_text("\n".join(lines))


def prepare_settings(folder: StoragePath, **more: Any) -> dict[str, Any]:
    return {
        "name": "stores",
        "prepare": {
            "sources": [{"name": "text", "kind": "jsonl", "glob": f"{folder}/raw/part-*.jsonl"}],
            "output": f"{folder}/shards",
            "steps": [{"exact_duplicates": {}}],
            "sequence_length": 64,
            "held_out": 0.1,
            "unit_bytes": 4000,
            "tokenizer": {"vocab_size": 400},
            "workers": 1,
        },
        **more,
    }


def shards_of(folder: StoragePath) -> dict[str, bytes]:
    """The shards and the tokenizer; what stands beside them names the folder that it was made in."""
    files = everything(folder / "shards")
    return {name: data for name, data in files.items() if name.startswith(("/train", "/held_out", "/tokenizer"))}


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> StoragePath:
    """The texts and their shards on local disk."""
    folder = StoragePath(str(tmp_path_factory.mktemp("disk")))
    write_texts(folder / "raw")
    prepare(Job.model_validate(prepare_settings(folder)), session=here)
    return folder


def test_what_is_prepared_on_a_store_is_what_is_prepared_on_disk(
    store: GoogleServer | AzureServer, on_disk: StoragePath
) -> None:
    folder = store.bucket()
    if isinstance(store, AzureServer):
        folder = StoragePath(folder.url.replace("az://", "abfs://"), folder.connection)
    write_texts(folder / "raw")
    job = Job.model_validate(prepare_settings(folder, object_store=object_store(store)))
    report = prepare(job, session=here)
    assert report.documents > 0
    assert {name.split("/")[1] for name in shards_of(on_disk)} == {"train", "held_out", "tokenizer"}
    assert shards_of(folder) == shards_of(on_disk)
    assert prepare(job, session=here).already_done
    assert not (folder / "shards/_work").exists()


@pytest.fixture(scope="module")
def run_on_disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of a run on local disk that has finished."""
    folder = tmp_path_factory.mktemp("run")
    data = make_data(folder / "data", rows=48)
    base = job_settings(
        folder / "runs", data, name="run", steps=2, checkpoint__every_steps=1, optim__schedule="constant"
    )
    alone(Job.model_validate(base))
    return base


def test_a_run_on_a_store_is_the_run_on_disk_and_resumes(
    store: GoogleServer | AzureServer, run_on_disk: dict[str, Any]
) -> None:
    base = run_on_disk
    data, local = Path(base["data"]["path"]), Job.model_validate(base)
    folder = store.bucket()
    for file in data.iterdir():
        (folder / "data" / file.name).write_bytes(file.read_bytes())
    there = {
        **base,
        "storage": f"{folder}/runs",
        "object_store": object_store(store),
        "data": {**base["data"], "path": f"{folder}/data"},
    }
    alone(Job.model_validate({**there, "train": {**base["train"], "steps": 1}}))
    alone(Job.model_validate(there))
    run = folder / "runs/run"
    found = newest(run / "checkpoints")
    assert found is not None
    assert found.step == 2
    ours, theirs = read_lines(RunFolder(run).metrics), read_lines(RunFolder.of(local).metrics)
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    assert "resumed" in [event["event"] for event in read_lines(RunFolder(run).events)]
    assert not [name for name, data in everything(run).items() if AZURE_KEY.encode() in data]


def test_the_command_on_azure_says_and_writes_no_key(
    azurite: AzureServer, on_disk: StoragePath, tmp_path: Path
) -> None:
    folder = azurite.bucket()
    write_texts(folder / "raw")
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(prepare_settings(folder)))
    # On Ray: its workers have to find the connection string too.
    done = raylm(["prepare", str(path)], tmp_path, azurite.connection_string)
    assert done.returncode == 0, done.stdout + done.stderr
    assert shards_of(folder) == shards_of(on_disk)
    wrong = raylm(["prepare", str(path), "--set", f"prepare.output={folder}/other"], tmp_path, broken(azurite))
    assert wrong.returncode != 0
    assert "error: cannot" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    written = [*everything(folder).values(), *everything(StoragePath(str(tmp_path))).values()]
    assert all(AZURE_KEY.encode() not in data for data in written)
    assert all(AZURE_KEY[:12] not in said.stdout + said.stderr for said in (done, wrong))


def raylm(words: list[str], folder: Path, connection: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own that knows the connection string."""
    environment = {**os.environ, CONNECTION: connection, "RAY_AUTH_MODE": "disabled"}
    code = "from raylm.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def broken(server: AzureServer) -> str:
    """A connection string whose key is no base64, though it holds most of the true one."""
    return server.connection_string.replace(AZURE_KEY, f"{AZURE_KEY[:-1]}!")


def azure_in(monkeypatch: pytest.MonkeyPatch, connection: str | None, **more: str) -> None:
    """Only this much of Azure in the environment."""
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    if connection is not None:
        monkeypatch.setenv(CONNECTION, connection)


def refusal(place: StoragePath) -> StorageError:
    with pytest.raises(StorageError) as caught:
        place.check_writable()
    return caught.value


# Clients are kept for each Connection and read the environment once: each test below has a timeout of its own.
def test_azure_without_or_with_wrong_credentials_is_one_error_that_names_the_way(
    azurite: AzureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = azurite.bucket().url
    azure_in(monkeypatch, None)
    error = refusal(StoragePath(url, azurite.connection(timeout_seconds=11.0)))
    assert "no credentials were found" in str(error)
    assert CONNECTION in str(error.hint)
    azure_in(monkeypatch, "AccountName=a;AccountKey=do-not-tell")
    error = refusal(StoragePath(url, azurite.connection(timeout_seconds=11.25)))
    assert "no credentials were found" in str(error)
    assert "do-not-tell" not in f"{error} {error.hint}"
    azure_in(monkeypatch, azurite.connection_string.replace(AZURE_KEY, AZURE_KEY[:8] + AZURE_KEY[4:8] * 4))
    error = refusal(StoragePath(url, azurite.connection(timeout_seconds=11.5)))
    assert "no permission" in str(error) or "rejects the credentials" in str(error)
    assert AZURE_KEY[:8] not in f"{error} {error.hint}"
    azure_in(monkeypatch, azurite.connection_string)


def test_google_without_credentials_is_one_error_that_names_the_way(
    fake_gcs: GoogleServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in GOOGLE_SECRETS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    error = refusal(StoragePath(fake_gcs.bucket().url, fake_gcs.connection(anonymous=False, timeout_seconds=11.0)))
    assert "no credentials were found" in str(error)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(error.hint)
    assert "object_store.anonymous" in str(error.hint)


@contextlib.contextmanager
def token_server(token: str, served: list[str]) -> Iterator[str]:
    """Who gives an access token for a signed request, as Google's does; the URL to ask at."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            served.append(token)
            body = json.dumps({"access_token": token, "expires_in": 3600, "token_type": "Bearer"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.server_address[1]}/token"
    finally:
        listener.shutdown()
        listener.server_close()


def write_account(path: Path, token_url: str) -> str:
    """A service account's file with a key of its own; what must not be told of it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    facts = {"type": "service_account", "project_id": "p", "private_key_id": "1", "private_key": key.decode()}
    path.write_text(json.dumps({**facts, "client_email": "a@p.example", "token_uri": token_url}))
    return key.decode().splitlines()[1]


def test_google_is_asked_with_a_service_account_of_which_nothing_is_told(
    fake_gcs: GoogleServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served: list[str] = []
    with token_server("raylm-bearer-token", served) as url:
        key = write_account(tmp_path / "account.json", url)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        folder = StoragePath(fake_gcs.bucket().url, fake_gcs.connection(anonymous=False, timeout_seconds=15.0))
        write_texts(folder / "raw")
        settings = {"endpoint": fake_gcs.endpoint, "timeout_seconds": 15.0}
        prepare(Job.model_validate(prepare_settings(folder, object_store=settings)), session=here)
        with proxy(fake_gcs, Faults(lambda method, path: "403")) as refusing:
            error = refusal(StoragePath(folder.url, refusing.connection(anonymous=False, retries=0)))
    assert served
    secrets = ("raylm-bearer-token", key)
    written = everything(folder)
    assert "/shards/manifest.json" in written
    for secret in secrets:
        assert secret not in f"{error} {error.hint} {caplog.text}"
        assert not [name for name, data in written.items() if secret.encode() in data]


@pytest.mark.parametrize(("status", "words"), [("401", "rejects the credentials"), ("403", "no permission")])
def test_what_google_refuses_is_said_in_words(fake_gcs: GoogleServer, status: str, words: str) -> None:
    with proxy(fake_gcs, Faults(lambda method, path: status)) as refusing:
        assert words in str(refusal(StoragePath(fake_gcs.bucket().url, refusing.connection(retries=0))))


def test_a_missing_bucket_is_named(store: GoogleServer | AzureServer) -> None:
    here = store.bucket()
    place = StoragePath(f"{here.url.split('://', 1)[0]}://raylm-no-such-bucket/x", here.connection)
    with pytest.raises(NotFound, match=r"there is no such (bucket|container)"):
        place.check_writable()
    with pytest.raises(NotFound, match=r"there is no such (bucket|container)"):
        place.create_once(b"1")
    with pytest.raises(NotFound, match=r"there is no such (bucket|container)"):
        place.write_parts([bytes(2**20)] * 40)


def test_a_missing_bucket_among_sources_is_named(fake_gcs: GoogleServer) -> None:
    with pytest.raises(NotFound, match="there is no such bucket"):
        find("gs://raylm-no-such-bucket/raw/*.jsonl", fake_gcs.connection())


def test_an_azure_url_that_names_another_account_is_refused(azurite: AzureServer) -> None:
    container, folder = azurite.bucket().url.removeprefix("az://").split("/", 1)
    ours = StoragePath(f"abfss://{container}@{AZURE_ACCOUNT}.dfs.core.windows.net/{folder}", azurite.connection())
    (ours / "x").write_text("1")
    assert StoragePath(f"az://{container}/{folder}/x", azurite.connection()).read_text() == "1"
    other = StoragePath(ours.url.replace(AZURE_ACCOUNT, "elsewhere"), azurite.connection())
    with pytest.raises(StorageError, match=f"names the account elsewhere, the credentials are of {AZURE_ACCOUNT}"):
        other.list()


def test_a_server_that_nobody_runs(azurite: AzureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    google = refusal(StoragePath("gs://bucket/x", Connection(f"http://127.0.0.1:{free_port()}", None, True, 1)))
    assert "the server cannot be reached" in str(google)
    monkeypatch.setenv(CONNECTION, AzureServer(f"http://127.0.0.1:{free_port()}").connection_string)
    azure = refusal(StoragePath("az://bucket/x", azurite.connection(retries=0, timeout_seconds=12.0)))
    assert "the server cannot be reached" in str(azure)
    assert AZURE_ACCOUNT in os.environ[CONNECTION]
    assert "connection string" in str(azure.hint)


def test_a_wrong_endpoint_is_named() -> None:
    pytest.importorskip("gcsfs", reason="gcsfs is not there: install the extra gcs")
    error = refusal(StoragePath("gs://bucket/x", Connection("127.0.0.1:9000", None, True, 0)))
    assert "object_store.endpoint" in str(error)
    assert "a whole URL" in str(error.hint)


@contextlib.contextmanager
def through_proxy(
    store: GoogleServer | AzureServer, faults: Faults, monkeypatch: pytest.MonkeyPatch, timeout: float
) -> Iterator[StoragePath]:
    """A new prefix, reached through a proxy that fails requests."""
    bucket = store.bucket()
    if isinstance(store, GoogleServer):
        with proxy(store, faults) as google:
            yield StoragePath(bucket.url, google.connection(retries=8))
    else:
        with proxy(store, faults) as azure:
            monkeypatch.setenv(CONNECTION, azure.connection_string)
            yield StoragePath(bucket.url, azure.connection(retries=8, timeout_seconds=timeout))


def test_failing_requests_are_tried_again(store: GoogleServer | AzureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults()
    with through_proxy(store, faults, monkeypatch, 13.0) as bucket:
        bucket.list()
        faults.choose = failing(0.2, seed=1)
        for number in range(4):
            data = bytes([number]) * 10_000
            (bucket / f"x{number}").write_bytes(data)
            assert (bucket / f"x{number}").read_bytes() == data
        assert len(bucket.list()) == 4
    assert sum(count for fate, count in faults.counts.items() if fate != "pass") >= 2


def test_a_lost_answer_to_create_once_is_not_a_lost_race(
    store: GoogleServer | AzureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["the first"])

    def choose(method: str, path: str) -> str:
        return "lose" if method in ("PUT", "POST") and next(answers, None) else "pass"

    faults = Faults(choose)
    with through_proxy(store, faults, monkeypatch, 14.0) as bucket:
        assert (bucket / "attempt").create_once(b"mine")
        assert faults.counts.get("lose") == 1
        assert not (bucket / "attempt").create_once(b"mine")
