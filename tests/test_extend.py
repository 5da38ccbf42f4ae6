"""What users add from outside the package, by one file and one registration: it is known everywhere, and it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raylm.shards import Column, RowFormat
from raylm.testing.datasets import job_settings, write_dataset

OPERATOR = '''
"""Texts in capitals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import Field

from raylm.config.base import Settings
from raylm.prep.operators import (
    Operator, OperatorContext, OperatorKind, OperatorRecord, in_batches, register_operator,
)
from raylm.records import Document


class Shout(Settings):
    """Puts texts in capitals."""

    min_words: int = Field(1, ge=0, description="Documents of fewer words are dropped.")


def shout(settings: Shout, context: OperatorContext) -> Operator:
    def look(batch: Sequence[Document], record: OperatorRecord) -> Iterator[Document]:
        for document in batch:
            if len(document.text.split()) < settings.min_words:
                record.drop("too_short_to_shout", document)
            else:
                record.change("shouted")
                yield replace(document, text=document.text.upper())

    return in_batches(look, documents=7)


register_operator(OperatorKind("shout", Shout, "puts texts in capitals", shout))
'''


SOURCE = '''
"""Markdown, cut at its headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raylm import register_source
from raylm.prep.readers import FileSourceSettings, Raw, Reading, SourceKind


class MarkdownSource(FileSourceSettings):
    """Markdown, one section a document."""

    kind: Literal["markdown"] = Field("markdown", description="Markdown.")
    level: int = Field(1, ge=1, le=6, description="Headings of this level begin a document.")


def read(reading: Reading[MarkdownSource]) -> Iterator[Raw]:
    with reading.open() as stream:
        text = stream.read().decode()
    for match in re.finditer(rf"^{'#' * reading.source.level} (.+)\\n((?:(?!# ).*\\n)*)", text, re.M):
        if match[2].strip():
            yield Raw(match.start(), match[2], {"title": match[1]})
        else:
            reading.skip("empty_section", match.start(), match[1])


register_source(SourceKind("markdown", MarkdownSource, read, "Markdown, one section a document"))
'''


def python(code: str, folder: Path) -> str:
    """What a fresh process prints that runs this in the folder."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def raylm(folder: Path, *words: str) -> str:
    """What a command prints."""
    return python(f"from raylm.cli.main import main\nmain({[*words]!r})", folder)


@pytest.fixture
def shouting(tmp_path: Path) -> Path:
    """A folder with an operator in a file of its own, a job that names it, and texts."""
    (tmp_path / "shout.py").write_text(OPERATOR)
    (tmp_path / "lines.txt").write_text("".join(f"some words of line {number}\n" for number in range(90)) + "no\n" * 10)
    (tmp_path / "job.yaml").write_text(
        "name: loud\n"
        "plugins: [shout.py]\n"
        "prepare:\n"
        "  sources: [{glob: lines.txt, document: line}]\n"
        "  unit_bytes: 700\n"
        "  sequence_length: 64\n"
        "  tokenizer: {vocab_size: 300}\n"
        "  steps:\n"
        "    - shout: {min_words: 2}\n"
        "    - exact_duplicates\n"
        "    - shout\n"
    )
    return tmp_path


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


def test_an_operator_of_ones_own_prepares_data_on_ray_and_without_it(shouting: Path) -> None:
    raylm(shouting, "prepare", "job.yaml")
    code = (
        "from raylm.config.load import load_job\nfrom raylm.prep.prepare import prepare\n"
        "from raylm.prep.tasks import here\n"
    )
    python(f"{code}prepare(load_job('job.yaml', ['prepare.output=alone']), session=here)", shouting)
    on_ray, alone = manifest(shouting / "runs/loud/data"), manifest(shouting / "alone")
    assert on_ray["fingerprint"] == alone["fingerprint"]
    first, duplicates, second, _ = on_ray["steps"]
    assert (first["name"], first["documents"], first["kept"]) == ("shout", 100, 90)
    assert first["dropped"] == {"too_short_to_shout": 10}
    assert first["changed"] == {"shouted": 90}
    assert (duplicates["name"], second["name"], second["documents"]) == ("exact_duplicates", "shout", 90)
    assert (shouting / "alone/card.md").read_text().count("shout: 90 of 90 documents") == 1


def test_an_operator_of_ones_own_is_in_the_json_schema_and_explained(shouting: Path) -> None:
    schema = json.loads(raylm(shouting, "schema", "--plugin", "shout.py"))
    assert "shout" in json.dumps(schema)
    assert "Documents of fewer words are dropped." in json.dumps(schema)
    assert "shout" not in raylm(shouting, "schema")
    explained = raylm(shouting, "explain", "prepare.steps.shout.min_words", "--job", "job.yaml")
    assert "Documents of fewer words are dropped." in explained
    assert "min_words" in raylm(shouting, "explain", "prepare.steps.shout", "--plugin", "shout.py")
    plan = raylm(shouting, "prepare", "job.yaml", "--dry-run")
    assert "1. shout, min_words 2" in plan


def test_an_operator_of_ones_own_is_checked_like_others(shouting: Path) -> None:
    code = (
        "from raylm.config.load import load_job\nfrom raylm.errors import ConfigError\nload_job('job.yaml')\n"
        "try:\n    load_job('job.yaml', ['prepare.steps.0={shuot: {}}'])\nexcept ConfigError as error:\n"
        "    print(error.message, error.hint)\n"
        "try:\n    load_job('job.yaml', ['prepare.steps.0.shout.min_word=3'])\nexcept ConfigError as error:\n"
        "    print(error.message, error.hint)\n"
    )
    misspelled, wrong_key = python(code, shouting).splitlines()
    assert "'prepare.steps.0.shuot'" in misspelled
    assert "did you mean 'prepare.steps.0.shout'?" in misspelled
    assert "unknown key 'prepare.steps.0.shout.min_word'" in wrong_key
    assert "did you mean 'prepare.steps.0.shout.min_words'?" in wrong_key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quality", "operator 'quality' cannot be registered: raylm has a built-in operator of that name"),
        ("shout", "operator 'shout' is registered twice"),
    ],
)
def test_an_operator_under_a_name_in_use_is_one_error_before_anything_is_done(
    shouting: Path, name: str, message: str
) -> None:
    (shouting / "second.py").write_text(OPERATOR.replace('"shout"', f'"{name}"'))
    job = (shouting / "job.yaml").read_text().replace("[shout.py]", "[shout.py, second.py]")
    (shouting / "job.yaml").write_text(job)
    code = "from raylm.cli.main import main\nmain(['prepare', 'job.yaml'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=shouting, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (shouting / "runs").exists()


@pytest.fixture
def noting(tmp_path: Path) -> Path:
    """A folder with a kind of source in a file of its own, a job that names it, and notes."""
    (tmp_path / "markdown.py").write_text(SOURCE)
    sections = "".join(f"# Part {number}\nSome words of part {number}.\n" for number in range(60))
    (tmp_path / "notes.md").write_text(f"{sections}# Nothing\n")
    (tmp_path / "more.md").write_text("# Last\nThe last words.\n")
    (tmp_path / "job.yaml").write_text(
        "name: notes\n"
        "plugins: [markdown.py]\n"
        "prepare:\n"
        "  sources: [{kind: markdown, glob: '*.md'}]\n"
        "  unit_bytes: 700\n"
        "  sequence_length: 64\n"
        "  tokenizer: {vocab_size: 300}\n"
    )
    return tmp_path


def test_a_source_of_ones_own_prepares_data_on_ray_and_without_it(noting: Path) -> None:
    raylm(noting, "prepare", "job.yaml")
    code = (
        "from raylm.config.load import load_job\nfrom raylm.prep.prepare import prepare\n"
        "from raylm.prep.tasks import here\n"
        "prepare(load_job('job.yaml', ['prepare.output=alone']), session=here)"
    )
    python(code, noting)
    on_ray, alone = manifest(noting / "runs/notes/data"), manifest(noting / "alone")
    assert on_ray["fingerprint"] == alone["fingerprint"]
    counts = alone["sources"]["text"]
    assert counts["documents"] + counts["held_out_documents"] == 61
    assert json.loads((noting / "alone/skipped.json").read_text())["sources"]["text"]["reasons"]["empty_section"] == {
        "count": 1,
        "examples": [f"{noting}/notes.md#{(noting / 'notes.md').read_text().index('# Nothing')}: Nothing"],
    }


def test_a_source_of_ones_own_is_in_the_json_schema_and_explained(noting: Path) -> None:
    schema = json.loads(raylm(noting, "schema", "--job", "job.yaml"))
    kinds = {entry["properties"]["kind"]["const"]: entry for entry in _kinds(schema)}
    assert kinds["markdown"]["properties"]["level"]["description"] == "Headings of this level begin a document."
    assert "Headings of this level begin a document." in raylm(
        noting, "explain", "prepare.sources.level", "--job", "job.yaml"
    )


def _kinds(schema: dict[str, Any]) -> list[dict[str, Any]]:
    entries = schema["$defs"]["SourceSettings"]["anyOf"]
    return [schema["$defs"][entry["$ref"].rpartition("/")[2]] if "$ref" in entry else entry for entry in entries]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jsonl", "kind of source 'jsonl' cannot be registered: raylm has a built-in kind of source of that name"),
        ("markdown", "kind of source 'markdown' is registered twice"),
    ],
)
def test_a_source_under_a_name_in_use_is_one_error_before_anything_is_done(
    noting: Path, name: str, message: str
) -> None:
    (noting / "second.py").write_text(SOURCE.replace('"markdown"', f'"{name}"'))
    job = (noting / "job.yaml").read_text().replace("[markdown.py]", "[markdown.py, second.py]")
    (noting / "job.yaml").write_text(job)
    code = "from raylm.cli.main import main\nmain(['prepare', 'job.yaml'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=noting, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (noting / "runs").exists()


OBJECTIVE = '''
"""Next tokens of rows that count by a column of the dataset, with a penalty on large scores (the z-loss of PaLM)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raylm.config.base import Settings
from raylm.objectives import DeviceBatch, LossSums, Objective, ObjectiveKind, register_objective
from raylm.records import IGNORED, MicroBatch
from raylm.shards import WantedColumn


class RowWeighted(Settings):
    """Next tokens, of each row as often as its `row_weight` says."""

    z_loss: float = Field(1e-4, ge=0, description="Weight of the squared logarithm of the softmax's denominator.")


class Weighted(Objective):
    columns = (WantedColumn("row_weight", per="row"),)
    metrics = ("z_loss",)

    def __init__(self, settings: RowWeighted) -> None:
        self._z_loss = settings.z_loss

    def row_weights(self, batch: MicroBatch) -> Any:
        return (batch.labels[:, 1:] != IGNORED).sum(axis=1) * batch.columns["row_weight"]

    def loss_sums(self, model: Any, batch: DeviceBatch) -> LossSums:
        from torch.nn.functional import cross_entropy

        logits = model(input_ids=batch.tokens, use_cache=False).logits[:, :-1].float()
        targets = batch.labels[:, 1:]
        nats = cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        squares = logits.logsumexp(-1).square() * (targets != IGNORED)
        weights = batch.columns["row_weight"].unsqueeze(1)
        penalty = (squares * weights).sum()
        return LossSums((nats * weights).sum() + self._z_loss * penalty, {"z_loss": penalty})


register_objective(ObjectiveKind("row_weighted", RowWeighted, lambda settings, model: Weighted(settings)))
'''


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an objective in a file of its own, a job that names it, and data with and without its column."""
    folder = tmp_path_factory.mktemp("weighted")
    (folder / "weighted.py").write_text(OBJECTIVE)
    rows = RowFormat(32, 256, "none", eos_id=0, group_rows=8, columns=(Column("row_weight", "float32", per="row"),))
    tokens = np.random.default_rng(0).integers(1, 9, (80, 32))
    write_dataset(folder / "data", rows, tokens[:60], tokens[60:], columns=lambda row: {"row_weight": row[0] / 4})
    write_dataset(folder / "plain", RowFormat(32, 256, "none", eos_id=0, group_rows=8), tokens[:60], tokens[60:])
    settings = job_settings(folder / "runs", folder / "data", name="one", steps=6)
    settings |= {"plugins": ["weighted.py"], "objective": {"row_weighted": {"z_loss": 0.01}}}
    settings["batch"] = {"sequences": 12, "micro_batch": 2}
    settings["workers"] = {"min": 1, "max": 1, "gpu": False}
    settings["evaluate"] = {"every_steps": 3, "sequences": 8}
    (folder / "job.yaml").write_text(yaml.safe_dump(settings))
    return folder


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(400)
def test_an_objective_of_ones_own_trains_on_ray_alike_at_any_number_of_workers(weighted: Path) -> None:
    raylm(weighted, "train", "job.yaml")
    two = ["--set", "name=two", "--set", "workers.min=2", "--set", "workers.max=2"]
    raylm(weighted, "train", "job.yaml", *two)
    alone, together = lines(weighted, "one"), lines(weighted, "two")
    assert [line["workers"] for line in together] == [2] * 6
    for key in ("loss", "grad_norm", "z_loss"):
        found = np.array([[line[key] for line in run] for run in (alone, together)])
        np.testing.assert_allclose(found[1], found[0], rtol=2e-6)
        assert found[0][-1] < found[0][0]
    events = (weighted / "runs/two/events.jsonl").read_text().splitlines()
    evaluated = [json.loads(event) for event in events if json.loads(event)["event"] == "evaluated"]
    assert [event["step"] for event in evaluated] == [3, 6]
    assert all(event["z_loss"] > 0 for event in evaluated)


def test_an_objective_of_ones_own_is_in_the_json_schema_and_explained(weighted: Path) -> None:
    code = (
        "import json\nfrom raylm.config.job import Job\nfrom raylm.config.load import load_job\nload_job('job.yaml')\n"
    )
    schema = json.loads(python(f"{code}print(json.dumps(Job.model_json_schema()))", weighted))
    entry = json.dumps(schema["$defs"]["ObjectiveSettings"])
    assert "row_weighted" in entry
    assert "causal" in entry
    assert "squared logarithm" in entry
    explained = raylm(weighted, "explain", "objective.row_weighted.z_loss", "--job", "job.yaml")
    assert "squared logarithm" in explained
    assert "0.0001" in explained


def test_an_objective_whose_column_the_data_lacks_is_refused_before_anything_is_spent(weighted: Path) -> None:
    for more in ([], ["--dry-run"]):
        command = ["train", "job.yaml", "--set", "data.path=plain", "--set", "name=refused", *more]
        code = f"from raylm.cli.main import main\nmain({command!r})"
        done = subprocess.run([sys.executable, "-c", code], cwd=weighted, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "error: the objective needs the column 'row_weight', which " in done.stderr
        assert "plain lacks (its columns: none)" in done.stderr
        assert "hint:" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (weighted / "runs/refused").exists()


def test_an_objective_under_a_built_in_name_is_one_error(weighted: Path) -> None:
    (weighted / "second.py").write_text(OBJECTIVE.replace('"row_weighted"', '"causal"'))
    with pytest.raises(AssertionError, match="objective 'causal' cannot be registered"):
        raylm(weighted, "train", "job.yaml", "--set", "plugins=[second.py]", "--dry-run")
