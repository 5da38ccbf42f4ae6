"""What somebody new to raylm stumbled over in models, storage and programs."""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raylm
from raylm.config.load import job_from
from raylm.config.model import ModelSettings
from raylm.errors import ConfigError, StorageError
from raylm.model.build import model_config
from raylm.storage import Connection, StoragePath
from raylm.storage.errors import storage_error
from raylm.storage.once import Unreachable, asked_once


@pytest.mark.parametrize(
    ("config", "near"),
    [
        ({"model_type": "gpt2", "n_layers": 3}, "n_layer"),
        ({"model_type": "llama", "hiden_size": 64}, "hidden_size"),
        ({"model_type": "qwen3", "num_atention_heads": 4}, "num_attention_heads"),
        ({"model_type": "gpt_neox", "rotary_pc": 0.5}, "rotary_pct"),
    ],
)
def test_a_misspelt_key_of_an_inline_config_is_refused_with_the_right_one(config: dict[str, Any], near: str) -> None:
    with pytest.raises(ConfigError, match="has no such key") as refused:
        model_config(ModelSettings(config=config), 600, 64)
    assert refused.value.hint == f"did you mean {near}?"


def test_a_key_that_nothing_reads_is_told_and_older_spellings_are_not(caplog: pytest.LogCaptureFixture) -> None:
    older = {"model_type": "llama", "hidden_size": 64, "rope_theta": 5e5, "torch_dtype": "float32"}
    with caplog.at_level(logging.WARNING, "raylm"):
        model_config(ModelSettings(config=older), 600, 64)
        assert caplog.messages == []
        model_config(ModelSettings(config={**older, "wheels": 4}), 600, 64)
    assert caplog.messages == ["model.config: a 'llama' model does not know wheels, and nothing reads it"]


def test_the_length_of_a_model_that_is_a_folder_is_not_to_be_raised(tmp_path: Path) -> None:
    config = '{"model_type": "gpt2", "n_positions": 32, "vocab_size": 600}'
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match="exceed the model's n_positions=32") as refused:
        model_config(ModelSettings(path=str(tmp_path)), 600, 64)
    assert refused.value.hint == "set prepare.sequence_length to 32 or less and prepare again"


@pytest.mark.parametrize(
    ("named", "fetched"),
    [
        ("hf://gpt2", "gpt2"),
        ("hf://models/org/name", "org/name"),
        ("https://huggingface.co/gpt2", "gpt2"),
        ("https://huggingface.co/org/name/tree/main", "org/name"),
        ("org/name", "org/name"),
    ],
)
def test_a_model_of_the_hub_is_told_how_to_be_fetched_by_its_name(named: str, fetched: str) -> None:
    job = job_from({"model": {"path": named}})
    with pytest.raises(ConfigError, match="which is not there") as refused:
        model_config(job.model, 600, 64)
    assert f"`hf download {fetched} --local-dir FOLDER`" in str(refused.value.hint)


@pytest.mark.parametrize("url", ["s3:/bucket/runs", "gs:/bucket", "https:/host/file"])
def test_a_url_with_one_slash_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="a URL has two slashes"):
        job_from({"storage": url})
    monkeypatch.chdir(tmp_path)
    (tmp_path / url).mkdir(parents=True)
    assert job_from({"storage": url}).storage == str(tmp_path / url), "whoever has such a folder means it"


@pytest.fixture
def no_http() -> Iterator[str]:
    """A server that answers, and speaks no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    found, _ = listening.accept()
                except OSError:
                    return
                with found:
                    found.recv(100)
                    found.sendall(b"220 mail here\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_an_endpoint_that_speaks_no_http_is_told(no_http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(StorageError, match="the server cannot be reached") as told:
        StoragePath("s3://bucket/x", Connection(endpoint=no_http, retries=0)).exists()
    assert "object_store.endpoint (--endpoint)" in str(told.value.hint)


def test_a_server_that_does_not_answer_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    path = StoragePath("s3://bucket/x", Connection(endpoint="http://127.0.0.1:9", retries=0))
    with asked_once():
        with pytest.raises(Unreachable):
            path.exists()
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(Unreachable, match="cannot read s3://bucket/x/y: the server cannot be reached"):
                (path / "y").read_bytes()
        assert time.monotonic() - began < 0.2
        with pytest.raises(Unreachable):
            StoragePath("s3://another/x", path.connection).exists()
    with pytest.raises(Unreachable) as again:
        path.exists()
    assert again.value.hint is not None, "asked anew"


def test_what_the_hubs_client_raises_is_told_in_words() -> None:
    kind = type("ConnectError", (Exception,), {"__module__": "httpx"})
    told = storage_error(kind("[Errno -2] Name or service not known"), "hf://datasets/x/y", "list")
    assert told is not None
    assert "the server cannot be reached" in told.message


@pytest.mark.parametrize("call", ["train", "start", "prepare"])
@pytest.mark.parametrize("given", ["mix.yaml", Path("mix.yaml"), {"name": "x"}], ids=str)
def test_what_is_no_job_is_told_how_to_become_one(call: str, given: object) -> None:
    with pytest.raises(ConfigError, match="a Job is needed") as told:
        getattr(raylm, call)(given)
    assert "raylm.load_job" in str(told.value.hint)


def test_one_override_may_be_given_as_a_text() -> None:
    assert job_from({}, "optim.lr=0.5").optim.lr == 0.5


def test_where_a_run_starts_from_is_shown(tmp_path: Path) -> None:
    from raylm.cli.preview import _first_state

    assert _first_state(job_from({"model": {"preset": "tiny"}})) == "random weights"
    assert _first_state(job_from({"model": {"path": str(tmp_path)}})) == f"the weights in {tmp_path}"
    assert _first_state(job_from({"init_from": {"path": str(tmp_path)}})) == str(tmp_path)


def test_a_cluster_without_memory_is_no_traceback() -> None:
    import ray

    from raylm.errors import ClusterError
    from raylm.runtime.connect import cluster_lost_in_words

    with pytest.raises(ClusterError, match="ran out of memory") as told, cluster_lost_in_words("start it again"):
        raise ray.exceptions.OutOfMemoryError("Memory on the node was 0.95\nand many lines more")
    assert "many lines" not in told.value.message
    assert str(told.value.hint).endswith("start it again")


def test_a_change_of_weights_that_is_never_reached_is_told_and_shares_are_shown() -> None:
    from raylm.cli.preview import _mixture_rows
    from raylm.config.together import changes_never_reached

    mixture = [
        {"path": "/a", "weight": 3, "weight_schedule": [{"step": 20, "weight": 1}]},
        {"path": "/b", "weight": 1, "weight_schedule": [{"step": 2000, "weight": 1}]},
    ]
    job = job_from({"data": {"mixture": mixture}, "train": {"steps": 40}})
    (words,) = changes_never_reached(job)
    assert words.startswith("data.mixture.1.weight_schedule changes a weight to 1 at step 2,000, which the run of ")
    assert _mixture_rows(job) == [
        ("mixture", "/a: 75.0%, then 50.0% from step 20"),
        ("", "/b: 25.0%, then 50.0% from step 20"),
    ]
    assert _mixture_rows(job_from({"data": {"path": "/a"}})) == []


def test_a_machine_alone_with_too_little_is_told_so(tmp_path: Path) -> None:
    """No cluster is named, so no node will come for what this machine lacks."""
    from raylm.testing.datasets import job_settings, make_data, write_job
    from raylm.testing.elastic import DRIVER, environment

    data = make_data(tmp_path / "data", rows=240)
    settings = job_settings(tmp_path / "runs", data, name="run", steps=2, workers__resources={"unicorn": 1})
    command = [*DRIVER, "train", str(write_job(tmp_path, settings))]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 7, done.stderr
    assert "this machine has room for 0 of the 1 worker" in done.stderr
    assert "1 unicorn each" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_export_whose_disk_is_full_is_told_in_words(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    from raylm.hf_export import _full_disk_in_words

    with pytest.raises(StorageError, match="No space left"), _full_disk_in_words(tmp_path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(StorageError, match="no space left"), _full_disk_in_words(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_place_where_nothing_can_be_written_is_not_called_full() -> None:
    with pytest.raises(StorageError) as told:
        StoragePath("/proc/raylm").check_writable(needed_bytes=1000)
    assert "no space" not in told.value.message


def test_metadata_that_a_record_lacks_costs_no_record_and_a_key_of_none_is_refused(tmp_path: Path) -> None:
    from raylm.errors import DataError
    from raylm.prep.first_look import check_metadata
    from raylm.rows import RowFile, read_rows

    path = StoragePath(str(tmp_path / "x.jsonl"))
    path.write_text('{"text": "a", "lang": "en"}\n{"text": "b"}\n{"lang": "de"}\n')
    bad: list[Any] = []
    read = RowFile(path, columns=("text", "lang"), optional=frozenset({"lang"}), on_bad=bad.append)
    assert [row.value for row in read_rows(read, "jsonl")] == [{"text": "a", "lang": "en"}, {"text": "b", "lang": None}]
    assert [one.why for one in bad] == ["has no key 'text'; it has: lang"]
    for names, refused in ((["lang"], False), (["lang", "langg"], True)):
        job = job_from({"prepare": {"sources": [{"kind": "jsonl", "glob": path.url, "meta": names}]}})
        files = [(path, path.size())]
        if not refused:
            check_metadata(job.prepare.sources[0], files)
            continue
        with pytest.raises(DataError, match="has no key 'langg', which `meta` names, in any of its first records"):
            check_metadata(job.prepare.sources[0], files)


def test_a_misspelt_command_is_told_which_it_looks_like() -> None:
    from click.testing import CliRunner

    from raylm.cli.main import cli

    assert "Did you mean train?" in CliRunner().invoke(cli, ["trian", "x"]).output


def test_a_pipe_as_output_takes_the_bytes_and_stays_a_pipe(tmp_path: Path) -> None:
    """As root, a rename would put a file in the place of /dev/null."""
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()), daemon=True)
    reader.start()
    StoragePath(str(pipe)).write_bytes(b"a page")
    reader.join(10)
    assert heard == [b"a page"]
    assert pipe.is_fifo()
