"""Job files as people write them: numbers that look octal, variables of the shell, a tilde, tags."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylm.config.job import Job
from raylm.config.load import load_job, parse_job, resolved_yaml
from raylm.errors import ConfigError, StorageError
from raylm.storage import StoragePath


def job(text: str, *overrides: str) -> Job:
    return parse_job(text, origin="job.yaml", overrides=overrides)


def refusal(text: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        job(text, *overrides)
    return refused.value


@pytest.mark.parametrize(
    ("written", "meant"), [("0100", 100), ("09", 9), ("+08", 8), ("1_000", 1000), ("0o17", 15), ("0x1F", 31)]
)
def test_a_leading_zero_means_nothing(written: str, meant: int) -> None:
    assert job(f"train: {{steps: {written}}}").train.steps == meant
    assert job("", f"train.steps={written}").train.steps == meant


@pytest.mark.parametrize("name", ["007", "0x1F", "1.10", "1e3", "~", "true"])
def test_a_text_that_looks_like_a_value_survives_the_resolved_file(name: str) -> None:
    text = f'prepare: {{sources: [{{kind: text, name: "{name}", glob: "*"}}]}}' if name != "~" else "{}"
    made = job(text)
    assert parse_job(resolved_yaml(made), origin="run.yaml") == made


@pytest.mark.parametrize("written", ["1.10", "007", "1e3"])
def test_a_number_where_text_belongs_is_quoted_as_it_was_written(written: str) -> None:
    text = f"prepare: {{sources: [{{glob: x, license: {written}}}]}}"
    assert refusal(text).hint == f'put it in quotes: "{written}"'
    error = refusal("prepare: {sources: [{glob: x}]}", f"prepare.sources.0.license={written}")
    assert error.hint == f'put it in quotes: "{written}"'


@pytest.mark.parametrize(
    "value", ["!!int many", "!!float x", "!!bool maybe", '!!int ""', "!!timestamp now", "!!binary '#'", "9" * 5000]
)
def test_a_value_that_its_type_cannot_hold_is_told_with_its_line(value: str) -> None:
    assert refusal(f"name: a\ntrain:\n  steps: {value}").message.startswith("job.yaml:3: ")
    assert refusal("", f"train.steps={value}").message.startswith("--set train.steps=")


@pytest.mark.parametrize(
    "line",
    [
        "storage: $DATA/runs",
        "storage: ${DATA}/runs",
        "storage: s3://$BUCKET/runs",
        "data: {path: /mnt/$USER}",
        "data: {mixture: [{path: 'x-${NAME}'}]}",
        "model: {config: $HOME/config.json}",
        "prepare: {output: $OUT}",
        "prepare: {tokenizer: {path: $TOK}}",
        "prepare: {sources: [{glob: $DATA/*.txt}]}",
        "plugins: [$HOME/own.py]",
    ],
)
def test_a_variable_in_a_path_is_refused_with_the_way_to_say_it(line: str) -> None:
    error = refusal(line)
    assert error.message.startswith("job.yaml")
    assert "job files know no environment variables" in error.message
    assert "$" in error.message


def test_a_dollar_that_begins_no_variable_is_a_letter_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "$real").mkdir()
    for path in (tmp_path / "cost$", tmp_path / "a$b", tmp_path / "$real"):
        assert job(f"storage: {path}").storage == str(path)


def test_a_tilde_is_the_home_folder_wherever_a_path_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "elsewhere" / "job.yaml"
    file.parent.mkdir()
    file.write_text(
        "storage: ~/runs\ndata: {path: ~/data}\nmodel: {config: ~/config.json}\ninit_from: {path: ~/old}\n"
        "prepare: {output: ~/out, tokenizer: {path: ~/tok}, sources: [{glob: ~/texts/*.txt}]}\n"
    )
    made = load_job(file, ["data.path=~/other"])
    named = (made.storage, made.data.path, made.model.config, made.init_from.path, made.prepare.output)
    assert named == tuple(str(tmp_path / name) for name in ("runs", "other", "config.json", "old", "out"))
    assert made.prepare.tokenizer.path == str(tmp_path / "tok")
    assert made.prepare.sources[0].location == str(tmp_path / "texts" / "*.txt")
    assert StoragePath("~/runs").url == str(tmp_path / "runs")


def test_a_tilde_of_an_unknown_user_is_told() -> None:
    assert "this machine has no user ~nobody-here" in refusal("storage: ~nobody-here/runs").message
    assert "this machine has no user ~nobody-here" in refusal("plugins: [~nobody-here/a.py]").message
    with pytest.raises(StorageError, match="this machine has no user ~nobody-here"):
        StoragePath("~nobody-here/runs")


def test_relative_paths_start_from_the_job_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("storage: runs\ndata: {path: ../data}\n")
    made = load_job(tmp_path / "job.yaml")
    assert (made.storage, made.data.path) == (str(tmp_path / "runs"), str(tmp_path.parent / "data"))
