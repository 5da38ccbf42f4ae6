"""Storage promises the same on local disk, in memory and on four kinds of servers, also while requests fail."""

from __future__ import annotations

import errno
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylm.errors import StorageError
from raylm.storage import Connection, NotFound, StoragePath, find, retried
from raylm.storage import local as local_files
from raylm.storage.fsspec_internals import azure_client, mark_closed, replace_azure_client, without_protocol
from raylm.storage.retry import pause_seconds
from raylm.testing.servers import CREDENTIALS, Faults, S3Server, failing, free_port, proxy


@pytest.fixture(params=["local", "memory", "moto", "seaweed", "fake_gcs", "azurite"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoragePath]:
    if request.param == "local":
        yield StoragePath(str(tmp_path / "here"))
    elif request.param == "memory":
        place = StoragePath(f"memory://{tmp_path.name}")
        yield place
        place.remove()
    else:
        yield request.getfixturevalue(request.param).bucket() / "some/prefix"


def names(places: list[StoragePath]) -> list[str]:
    return [place.name for place in places]


def write_and_fail(place: StoragePath, size: int) -> None:
    with place.open_write() as stream:
        for _ in range(10):
            stream.write(b"x" * (size // 10))
        raise ZeroDivisionError


def test_what_is_written_is_read_back(folder: StoragePath) -> None:
    (folder / "a/x.bin").write_bytes(bytes(range(256)))
    (folder / "a/y.txt").write_text("ä\n")
    assert (folder / "a/x.bin").read_bytes() == bytes(range(256))
    assert (folder / "a/x.bin").read_range(10, 5) == bytes(range(10, 15))
    assert (folder / "a/x.bin").read_range(10, 0) == b""
    assert (folder / "a/y.txt").read_text() == "ä\n"
    assert (folder / "a/x.bin").size() == 256
    with (folder / "a/x.bin").open_read() as stream:
        stream.seek(250)
        assert stream.read() == bytes(range(250, 256))
    (folder / "a/x.bin").write_bytes(b"")
    assert (folder / "a/x.bin").read_bytes() == b""


def test_listings_are_sorted_and_never_stale(folder: StoragePath) -> None:
    assert folder.list() == []
    (folder / "b.txt").write_text("b")
    assert names(folder.list()) == ["b.txt"]
    (folder / "a/deep/c.txt").write_text("c")
    (folder / "a/d.bin").write_text("d")
    assert names(folder.list()) == ["a", "b.txt"]
    assert folder.list()[0].list() == [folder / "a/d.bin", folder / "a/deep"]
    assert folder.glob("**/*.txt") == [folder / "a/deep/c.txt", folder / "b.txt"]
    assert folder.glob("*.txt") == [folder / "b.txt"]
    assert find(f"{folder.url}/a/*.bin", folder.connection) == [(folder / "a/d.bin", 1)]
    assert find(f"{folder.url}/b.txt", folder.connection) == [(folder / "b.txt", 1)]
    assert find(f"{folder.url}/none/*.txt", folder.connection) == []
    (folder / "b.txt").remove()
    assert not (folder / "b.txt").exists()
    assert (folder / "a").exists()
    assert not (folder / "a").is_file()
    folder.remove()
    folder.remove()
    # SeaweedFS goes on listing folders whose last file was removed.
    assert [place for place in folder.list() if place.is_file()] == []


def test_a_stream_that_fails_leaves_nothing_visible(folder: StoragePath) -> None:
    for size in (10, 40 * 2**20):  # in one request, and in several parts
        with pytest.raises(ZeroDivisionError):
            write_and_fail(folder / "whole.bin", size)
        assert folder.list() == []


def test_a_long_stream_arrives_whole(folder: StoragePath) -> None:
    parts = [bytes([number]) * (7 * 2**20) for number in range(6)]
    assert (folder / "long.bin").write_parts(memoryview(part) for part in parts) == 42 * 2**20
    assert (folder / "long.bin").size() == 42 * 2**20
    assert (folder / "long.bin").read_range(7 * 2**20 - 1, 2) == b"\x00\x01"


def test_of_racing_creators_exactly_one_wins(folder: StoragePath) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        if (folder / "attempt").create_once(f"writer {number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not folder.url.startswith("memory"):  # fsspec's memory files look first, then write
        assert len(won) == 1
        assert (folder / "attempt").read_text() == f"writer {won[0]}"
    assert not (folder / "attempt").create_once(b"late")


def test_threads_share_a_store(folder: StoragePath) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(5):
            place = folder / f"{number}/{turn}"
            place.write_bytes(bytes([number, turn]) * 5000)
            if place.read_range(0, 4) != bytes([number, turn]) * 2 or len(place.read_bytes()) != 10_000:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(folder.glob("*/*")) == 40


def test_a_missing_file_is_named(folder: StoragePath) -> None:
    with pytest.raises(NotFound, match=f"cannot read {folder.url}/none: it does not exist"):
        (folder / "none").read_bytes()
    with pytest.raises(NotFound), (folder / "none").open_read():
        pass
    (folder / "short").write_bytes(b"12345")
    with pytest.raises(StorageError, match=r"short ends early: wanted bytes 3 to 13, 2 of 10 are there"):
        (folder / "short").read_range(3, 10)


def test_a_writable_folder_passes_and_stays_clean(folder: StoragePath) -> None:
    folder.check_writable(needed_bytes=1000)
    assert folder.list() == []


def test_a_folder_that_is_not_there_is_not_made_by_the_check(tmp_path: Path) -> None:
    StoragePath(str(tmp_path / "runs" / "a")).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_places_are_absolute_and_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = StoragePath("runs/a")
    assert place.local_path() == tmp_path / "runs/a"
    assert StoragePath(f"file://{tmp_path}/runs/a") == place
    assert pickle.loads(pickle.dumps(place / "b")) == place / "b"
    assert (place / "b").name == "b"
    assert StoragePath("s3://bucket/x/") / "y" == StoragePath("s3://bucket/x/y")


def test_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"no space at .*: 931322574\.62 GiB needed") as caught:
        StoragePath(str(tmp_path)).check_writable(needed_bytes=10**18)
    assert "free some space" in str(caught.value.hint)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local_files.os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        (StoragePath(str(tmp_path)) / "x").write_bytes(b"1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission") as caught:
        StoragePath(str(tmp_path / "runs")).check_writable()
    assert "owner and mode" in str(caught.value.hint)


def test_no_permission_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, data: bytes) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), url)

    monkeypatch.setattr(local_files.LOCAL, "write", refuse, raising=True)
    with pytest.raises(StorageError, match=r"cannot write .*: no permission") as caught:
        StoragePath(str(tmp_path)).check_writable()
    assert "owner and mode" in str(caught.value.hint)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match=f"cannot write .*{tmp_path}/runs"):
        (StoragePath(str(tmp_path / "runs")) / "x").write_bytes(b"1")


def test_unknown_kinds_of_storage_and_missing_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="unknown kind of storage nosuch://"):
        StoragePath("nosuch://a/b").exists()
    for library, url, extra in [("gcsfs", "gs", "gcs"), ("adlfs", "az", "azure"), ("adlfs", "abfs", "azure")]:
        for name in [name for name in sys.modules if name.split(".")[0] == library]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(StorageError, match=f"support for {url}:// is not installed") as caught:
            StoragePath(f"{url}://bucket/x", Connection(timeout_seconds=3.5)).exists()
        assert caught.value.hint == f"pip install 'raylm[{extra}]'"


def test_an_endpoint_that_nobody_serves() -> None:
    connection = Connection(f"http://127.0.0.1:{free_port()}", "us-east-1", retries=1)
    with pytest.raises(StorageError, match="the server cannot be reached") as caught:
        StoragePath("s3://bucket/x", connection).check_writable()
    assert "object_store.endpoint" in str(caught.value.hint)


# The next two have a timeout of their own, because fsspec keeps a connected client for each set of options.
def test_wrong_credentials(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = seaweed.bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"rejects the credentials|no permission") as caught:
        StoragePath(bucket.url, seaweed.connection(timeout_seconds=7.0)).check_writable()
    assert "AWS_ACCESS_KEY_ID" in str(caught.value.hint) or "keys" in str(caught.value.hint)


def test_no_credentials(moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CREDENTIALS:
        if "KEY" in name:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match="no credentials were found") as caught:
        StoragePath("s3://bucket/x", moto.connection(timeout_seconds=6.0)).check_writable()
    assert "object_store.anonymous" in str(caught.value.hint)


def test_a_missing_bucket(moto: S3Server) -> None:
    with pytest.raises(NotFound, match="there is no such bucket"):
        StoragePath("s3://raylm-no-such-bucket/x", moto.connection()).check_writable()


def test_failing_requests_are_tried_again(moto: S3Server) -> None:
    faults = Faults()
    with proxy(moto, faults) as flaky:
        bucket = flaky.bucket(retries=8)
        faults.choose = failing(0.3, seed=1)
        for number in range(12):
            data = bytes([number]) * 10_000
            (bucket / f"x{number}").write_bytes(data)
            assert (bucket / f"x{number}").read_bytes() == data
            assert (bucket / "once" / str(number)).create_once(data)
        assert len((bucket / "once").list()) == 12
    assert sum(count for fate, count in faults.counts.items() if fate != "pass") > 5


def test_a_lost_answer_to_create_once_is_not_a_lost_race(moto: S3Server) -> None:
    answers = iter(["the first"])

    def choose(method: str, path: str) -> str:
        # The put arrives, its answer does not: the client tries again and meets its own object.
        return "lose" if method == "PUT" and next(answers, None) else "pass"

    faults = Faults(choose)
    with proxy(moto, faults) as flaky:
        bucket = moto.bucket()
        assert (StoragePath(bucket.url, flaky.connection()) / "attempt").create_once(b"mine")
        assert faults.counts.get("lose") == 1
        assert not (StoragePath(bucket.url, flaky.connection()) / "attempt").create_once(b"mine")


def test_a_server_that_stays_broken_is_reported(moto: S3Server) -> None:
    with (
        proxy(moto, Faults(lambda method, path: "error")) as broken,
        pytest.raises(StorageError, match=r"cannot read s3://bucket/x: .*"),
    ):
        StoragePath("s3://bucket/x", broken.connection(retries=1)).read_bytes()


def test_an_upload_that_cannot_be_given_up_is_logged(moto: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    with proxy(moto, Faults(lambda method, path: "error" if method == "DELETE" else "pass")) as broken:
        folder = StoragePath(moto.bucket().url, broken.connection(retries=0))
        with pytest.raises(ZeroDivisionError):
            write_and_fail(folder / "whole.bin", 40 * 2**20)
    assert f"cannot discard what was written of {folder.url}/whole.bin" in caplog.text
    assert "lifecycle rule" in caplog.text
    assert StoragePath(folder.url, moto.connection()).list() == []


def test_trying_again_waits_longer_each_time_and_ends() -> None:
    calls: list[int] = []

    def failing_often() -> int:
        calls.append(len(calls))
        if len(calls) < 4:
            raise OSError
        return 7

    assert retried(failing_often, errors=OSError, retries=3, first_seconds=0.001) == 7
    calls.clear()
    with pytest.raises(OSError):
        retried(failing_often, errors=OSError, retries=2, first_seconds=0.001)
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(OSError):
        retried(failing_often, errors=OSError, retries=9, worth=lambda error: len(calls) < 2, first_seconds=0.001)
    for trial, doubled in enumerate((0.1, 0.2, 0.4)):
        assert all(doubled / 2 <= pause_seconds(trial) <= 1.5 * doubled for _ in range(50))
    assert pause_seconds(30) <= 15


# Names of fsspec's file systems that raylm/storage/fsspec_internals.py reaches for: a release may take them away.
def test_fsspec_still_strips_protocols() -> None:
    import fsspec

    assert without_protocol(fsspec.filesystem("memory"), "memory://folder/name/") == "/folder/name"


def test_gcsfs_still_makes_every_request_through_one_method_that_tries_again() -> None:
    import inspect

    core = pytest.importorskip("gcsfs.core")
    retry = pytest.importorskip("gcsfs.retry")
    once = core.GCSFileSystem._request.__wrapped__
    assert inspect.iscoroutinefunction(once)
    assert list(inspect.signature(once).parameters)[:3] == ["self", "method", "path"]
    assert retry.is_retriable(retry.HttpError({"code": 503, "message": "later"}))
    assert not retry.is_retriable(retry.HttpError({"code": 403, "message": "no"}))
    assert all(issubclass(kind, Exception) for kind in retry.RETRIABLE_EXCEPTIONS)


def test_adlfs_still_keeps_its_client_and_what_it_connects_with() -> None:
    adlfs = pytest.importorskip("adlfs")
    key = "a2V5"
    text = f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey={key};BlobEndpoint=http://127.0.0.1:9/a;"
    files = adlfs.AzureBlobFileSystem(connection_string=text, skip_instance_cache=True)
    before = files.service_client
    replace_azure_client(files, read_timeout=3)
    assert type(files.service_client) is type(before)
    assert files.service_client is not before
    assert azure_client(files).account_name == "a"
    for name in ("connection_string", "credential", "account_key", "sas_token"):
        assert hasattr(files, name), name
    named = adlfs.AzureBlobFileSystem(account_name="a", account_key=key, skip_instance_cache=True)
    assert named.account_url.startswith("https://a.")
    replace_azure_client(named, read_timeout=3)
    assert azure_client(named).account_name == "a"


def test_an_fsspec_stream_that_is_marked_closed_completes_nothing(tmp_path: Path) -> None:
    from fsspec.spec import AbstractBufferedFile

    uploads: list[bool] = []

    class File(AbstractBufferedFile):
        def _upload_chunk(self, final: bool = False) -> None:
            uploads.append(final)

        def _initiate_upload(self) -> None:
            pass

    import fsspec

    stream = File(fsspec.filesystem("memory"), "/x", mode="wb")
    stream.write(b"some")
    mark_closed(stream)
    stream.close()
    stream.__del__()
    assert uploads == []
