"""What users add from outside the package, by one file and one registration: it is known everywhere, and it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
    code = "from raylm.config.load import load_job\nfrom raylm.prep import here, prepare\n"
    python(f"{code}prepare(load_job('job.yaml', ['prepare.output=alone']), session=here)", shouting)
    on_ray, alone = manifest(shouting / "runs/loud/data"), manifest(shouting / "alone")
    assert on_ray["fingerprint"] == alone["fingerprint"]
    first, duplicates, second, _ = on_ray["steps"]
    assert (first["name"], first["documents"], first["kept"]) == ("shout", 100, 90)
    assert first["dropped"] == {"too_short_to_shout": 10}
    assert first["changed"] == {"shouted": 90}
    assert (duplicates["name"], second["name"], second["documents"]) == ("exact_duplicates", "shout", 90)
    assert (shouting / "alone/card.md").read_text().count("shout: 90 of 90 documents") == 1


def test_an_operator_of_ones_own_is_in_the_json_schema_and_checked_like_others(shouting: Path) -> None:
    code = (
        "import json\nfrom raylm.config.job import Job\nfrom raylm.config.load import load_job\n"
        "from raylm.errors import ConfigError\nload_job('job.yaml')\nprint(json.dumps(Job.model_json_schema()))\n"
        "try:\n    load_job('job.yaml', ['prepare.steps.0={shuot: {}}'])\nexcept ConfigError as error:\n"
        "    print(error.message, error.hint)\n"
        "try:\n    load_job('job.yaml', ['prepare.steps.0.shout.min_word=3'])\nexcept ConfigError as error:\n"
        "    print(error.message, error.hint)\n"
    )
    schema, misspelled, wrong_key = python(code, shouting).splitlines()
    entry = json.loads(schema)["$defs"]["OperatorSettings"]
    assert "shout" in entry["anyOf"][0]["enum"]
    assert "shout" in entry["anyOf"][1]["properties"]
    assert "Documents of fewer words are dropped." in json.dumps(entry)
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
