"""The public names of `import raylm`: imported late, the same whatever was imported before, and documented."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import raylm

NAMES = sorted(raylm._PUBLIC)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_raylm_loads_nothing_else() -> None:
    code = "import sys, raylm; print([m for m in ('pydantic', 'yaml', 'torch', 'ray', 'numpy') if m in sys.modules])"
    assert python(code) == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented(name: str) -> None:
    found = getattr(raylm, name)
    assert callable(found)
    assert inspect.getdoc(found)
    assert name in dir(raylm)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_the_same_whatever_was_imported_before(name: str) -> None:
    # A module of the same name, imported first, would stand in the way.
    module = raylm._PUBLIC[name]
    code = f"import {module}, raylm; from raylm import {name}; assert callable(raylm.{name}) and callable({name})"
    assert python(code) == ""


def test_type_checkers_see_the_same_names() -> None:
    text = Path(raylm.__file__).read_text()
    assert [name for name in NAMES if f" import {name} as {name}\n" not in text] == []


def test_raylm_train_is_a_function_and_a_package() -> None:
    assert python("import raylm.train.loop, raylm; assert raylm.train.loop and callable(raylm.train)") == ""
    assert python("import raylm; from raylm.train.launch import preflight; assert callable(raylm.train)") == ""


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        raylm.trian  # noqa: B018
