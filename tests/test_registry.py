"""Registries import built-in entries late, give a name away once, and answer a wrong name with the nearest."""

import sys
from pathlib import Path

import pytest

from raylm.errors import ConfigError
from raylm.registry import Registry


def test_a_built_in_entry_is_imported_when_first_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_entry.py").write_text("ENTRY = 'made late'\n")
    monkeypatch.syspath_prepend(tmp_path)
    table: Registry[str] = Registry("operator", builtin={"late": "late_entry:ENTRY"})
    assert table.names() == ["late"]
    assert "late" in table
    assert "late_entry" not in sys.modules
    assert table.get("late") == "made late"
    assert dict(table.items()) == {"late": "made late"}


def test_a_name_is_taken_once() -> None:
    table: Registry[int] = Registry("operator", builtin={"sample": "nowhere:ENTRY"})
    table.register("own", 1)
    table.register("own", 1)  # the same plugin imported again
    with pytest.raises(ConfigError, match="operator 'own' is registered twice"):
        table.register("own", 2)
    with pytest.raises(ConfigError, match="raylm has a built-in operator of that name"):
        table.register("sample", 3)
    assert table.get("own") == 1
    assert table.names() == ["own", "sample"]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    table: Registry[int] = Registry("source", builtin={"parquet": "nowhere:ENTRY", "jsonl": "nowhere:ENTRY"})
    with pytest.raises(ConfigError, match="there is no source 'parqet'") as caught:
        table.get("parqet")
    assert caught.value.hint == "did you mean 'parquet'?"
    with pytest.raises(ConfigError) as caught:
        table.get("zzz")
    assert caught.value.hint == "known: jsonl, parquet"
