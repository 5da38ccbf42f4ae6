"""What raylm.testing gives to people who test operators and objectives of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import or_skip

from raylm.records import Document
from raylm.testing import servers
from raylm.testing.datasets import job_settings, make_data
from raylm.testing.elastic import run_at_sizes
from raylm.testing.operators import run_operator


def test_an_operator_runs_over_texts_and_says_what_it_did() -> None:
    kept, record = run_operator({"blocklist": {"words": ["bad"]}}, ["good words", "a bad word", "fine"])
    assert [document.text for document in kept] == ["good words", "fine"]
    assert [document.id for document in kept] == ["0", "2"]
    assert sum(record.dropped.values()) == 1
    kept, _ = run_operator("normalize", [Document("mine", "cafe\u0301", "here")])
    assert (kept[0].id, kept[0].text) == ("mine", "caf\u00e9")


def test_a_job_gives_the_same_losses_at_one_worker_and_at_two(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", rows=48)
    settings = job_settings(tmp_path / "runs", data, name="sizes", steps=3, evaluate__every_steps=None)
    found = run_at_sizes(tmp_path, settings)
    assert len(found[1].losses) == 3
    assert found[2].losses == pytest.approx(found[1].losses, abs=1e-4)
    assert found[1].audit_table() == found[2].audit_table()


def test_a_server_that_is_not_installed_is_skipped_and_one_that_does_not_start_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no room >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(servers, "_program", lambda name, missing: str(broken))
    with pytest.raises(RuntimeError, match="broken ended with 3: no room"), or_skip(), servers.moto(tmp_path / "moto"):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(servers, "sys", type("Elsewhere", (), {"executable": str(tmp_path / "python")}))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="moto_server is not there"), or_skip(), servers.moto(tmp_path):
        pass


def test_it_loads_without_what_only_development_needs() -> None:
    names = ("cluster", "datasets", "elastic", "external", "operators", "ranks", "servers")
    hidden = ("pytest", "boto3", "botocore", "moto", "hypothesis")
    code = f"import sys\nfor name in {hidden!r}: sys.modules[name] = None\n"
    code += "".join(f"import raylm.testing.{name}\n" for name in names)
    subprocess.run([sys.executable, "-c", code], check=True)
