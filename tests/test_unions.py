"""Sections of several kinds: the registry decides which there are, and a mistake is located under its key."""

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field, SerializeAsAny, ValidationError

from raylm.config.base import Settings
from raylm.config.paths import PathOrUrl, context
from raylm.config.unions import NamedSettings, SettingsByKind
from raylm.registry import Registry


@dataclass(frozen=True)
class Entry:
    """What a registry holds: the class of the settings, here without the code that uses them."""

    settings: type[Settings]


class Inner(Settings):
    number: int = 1


class Quality(Settings):
    rules: list[int] = Field([1], description="Which rules.")
    inner: Inner = Inner()
    words: PathOrUrl | None = None


OPERATORS: Registry[Entry] = Registry("operator", builtin={})
OPERATORS.register("quality", Entry(Quality))
SOURCES: Registry[Entry] = Registry("source kind", builtin={})


class Operator(NamedSettings):
    table: ClassVar[Registry[Entry]] = OPERATORS


class Source(SettingsByKind):
    table: ClassVar[Registry[Entry]] = SOURCES
    default_kind: ClassVar[str] = "text"
    name: str = "source"


class Text(Source):
    kind: Literal["text"] = "text"
    glob: PathOrUrl


class Jsonl(Source):
    kind: Literal["jsonl"] = "jsonl"
    column: str = "text"


SOURCES.register("text", Entry(Text))
SOURCES.register("jsonl", Entry(Jsonl))


class Both(Settings):
    steps: list[Operator] = Field(default_factory=list)
    sources: list[SerializeAsAny[Source]] = Field(default_factory=list)


@pytest.mark.parametrize(
    ("given", "dumped"),
    [
        ({"steps": ["quality"]}, {"rules": [1], "inner": {"number": 1}, "words": None}),
        ({"steps": [{"quality": None}]}, {"rules": [1], "inner": {"number": 1}, "words": None}),
        (
            {"steps": [{"quality": {"rules": [2], "words": "a"}}]},
            {"rules": [2], "inner": {"number": 1}, "words": "/b/a"},
        ),
    ],
)
def test_an_entry_is_a_name_with_its_settings(given: dict[str, Any], dumped: dict[str, Any]) -> None:
    made = Both.model_validate(given, context=context("/b"))
    assert made.steps[0].name == "quality"
    assert isinstance(made.steps[0].settings, Quality)
    assert made.model_dump(mode="json")["steps"] == [{"quality": dumped}]
    assert Both.model_validate(made.model_dump(mode="json")) == made
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_section_takes_the_settings_of_its_kind() -> None:
    given = {"sources": [{"glob": "x"}, {"kind": "jsonl", "column": "body"}]}
    made = Both.model_validate(given, context=context("/b"))
    assert made.sources == [Text(glob="/b/x"), Jsonl(column="body")]
    assert made.model_dump(mode="json")["sources"][1] == {"name": "source", "kind": "jsonl", "column": "body"}
    assert Both.model_validate(made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"steps": [{"qualty": {}}]}, ("extra_forbidden", ("steps", 0, "qualty"))),
        ({"steps": [{"quality": {"rules": ["x"]}}]}, ("int_parsing", ("steps", 0, "quality", "rules", 0))),
        ({"steps": [{"quality": {"inner": {"n": 1}}}]}, ("extra_forbidden", ("steps", 0, "quality", "inner", "n"))),
        ({"steps": [{}]}, ("value_error", ("steps", 0))),
        ({"steps": [3]}, ("model_type", ("steps", 0))),
        ({"sources": [{"kind": "josnl"}]}, ("literal_error", ("sources", 0, "kind"))),
        ({"sources": [{"kind": "jsonl", "glob": "x"}]}, ("extra_forbidden", ("sources", 0, "glob"))),
        ({"sources": [{}]}, ("missing", ("sources", 0, "glob"))),
    ],
)
def test_a_mistake_is_located_under_its_key(given: dict[str, Any], found: tuple[str, tuple[str | int, ...]]) -> None:
    with pytest.raises(ValidationError) as caught:
        Both.model_validate(given)
    assert [(error["type"], error["loc"]) for error in caught.value.errors()] == [found]


def test_the_json_schema_lists_every_kind() -> None:
    schema = Both.model_json_schema()["$defs"]
    assert schema["Operator"]["anyOf"][0] == {"enum": ["quality"]}
    named = schema["Operator"]["anyOf"][1]
    assert named["properties"]["quality"]["anyOf"][0]["properties"]["rules"]["description"] == "Which rules."
    kinds = [entry["properties"]["kind"]["const"] for entry in schema["Source"]["anyOf"]]
    assert kinds == ["jsonl", "text"]


PROGRAM = """
import sys
from ray import cloudpickle
from test_unions import OPERATORS, SOURCES, Both, Entry, Settings, Source

class Own(Settings):
    number: int = 1

class Mine(Source):
    kind: str = "mine"

OPERATORS.register("own", Entry(Own))
SOURCES.register("mine", Entry(Mine))
made = Both.model_validate({"steps": [{"own": {"number": 7}}], "sources": [{"kind": "mine"}]})
sys.stdout.buffer.write(cloudpickle.dumps(made))
"""
ELSEWHERE = """
import pickle, sys
made = pickle.load(sys.stdin.buffer)
from test_unions import OPERATORS, SOURCES
assert OPERATORS.get("own").settings.__name__ == "Own" and SOURCES.get("mine").settings.__name__ == "Mine"
print(made.steps[0].settings.number)
"""


def test_what_a_program_registers_itself_goes_along_to_other_processes() -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths}

    def python(code: str, given: bytes = b"") -> bytes:
        return subprocess.run(
            [sys.executable, "-c", code], input=given, capture_output=True, check=True, env=environment
        ).stdout

    assert python(ELSEWHERE, python(PROGRAM)).strip() == b"7"
