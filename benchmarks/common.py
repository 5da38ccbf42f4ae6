"""What every benchmark shares: the arguments, the header of a result, the folder it is kept in, the last line."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("torch", "ray", "deepspeed", "transformers", "pyarrow", "numpy")


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    # As Ctrl-C does: what a benchmark started must not outlive it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute: smaller sizes, fewer repeats")
    parser.add_argument("--keep", action="store_true", help="write the result under benchmarks/results/")
    return parser


def header(packages: Sequence[str] = _PACKAGES) -> dict[str, Any]:
    """Date, hardware and versions: what a figure means nothing without."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpu": _gpu(),
            "load_at_start": round(os.getloadavg()[0], 1),
        },
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
    }


def finish(name: str, figures: Mapping[str, Any], *, details: Mapping[str, Any], table: str, keep: bool) -> None:
    """Print the table and, as the last line, the figures as JSON; with `keep`, write both under benchmarks/results/."""
    about = header()
    print(table)
    if keep:
        RESULTS.mkdir(parents=True, exist_ok=True)
        content = {"benchmark": name, **about, "figures": dict(figures), "details": dict(details)}
        (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        hardware, versions = about["hardware"], about["versions"]
        lines = [
            f"# {name}",
            "",
            f"{about['date']}, commit {about['commit']}. {hardware['processor']}, {hardware['cores']} cores, "
            f"{hardware['memory_gib']} GiB, GPU: {hardware['gpu'] or 'none'}; load {hardware['load_at_start']}. "
            + ", ".join(f"{key} {value}" for key, value in versions.items() if value)
            + ".",
            "",
            table,
            "",
            *(f"- `{key}`: {value}" for key, value in figures.items() if not isinstance(value, Mapping)),
        ]
        (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    print(json.dumps(dict(figures)))


def make_peers(
    folder: Path,
    packages: Sequence[str],
    *,
    optional: Sequence[str] = (),
    flags: Sequence[str] = (),
    complete: Callable[[Path], None] = lambda folder: None,
) -> str | None:
    """The peers' own virtual environment, made on first use; what went wrong, or None when it is ready.

    `optional` packages may be missing, `flags` are pip's, and `complete` adds to a new environment.
    """
    done, content = folder / "done", "\n".join([*packages, *optional])
    if done.exists() and done.read_text() == content:
        return None
    print(f"making {folder.name} (about a minute) ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *flags]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([*pip, *packages], check=True)
    except subprocess.CalledProcessError as error:
        return f"the peers cannot be installed: {error}"
    for package in optional:
        subprocess.run([*pip, package], check=False)
    complete(folder)
    done.write_text(content)
    return None


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    return _output_of(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])


def _gpu() -> str | None:
    return _output_of(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])


def _output_of(command: Sequence[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
