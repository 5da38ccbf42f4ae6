"""Did a change cost speed? One benchmark runs in turns on two checkouts, and each figure's medians are compared.

    git worktree add ../before COMMIT
    python benchmarks/compare.py --before ../before --after . --rounds 5 step.py --quick

Everything behind the benchmark's name goes to the benchmark. Each checkout runs its own benchmarks/NAME with itself
first on PYTHONPATH, under the Python of its own .venv where it has one and this one otherwise, so that both use the
same libraries. Odd rounds begin with the one checkout, even rounds with the other: a machine that grows slower is
slower for both. Figures are what the benchmark's last line says. The ratio is after over before, the median of the
rounds' own ratios; the least and the most of them show the noise, and so does the spread of one checkout's figures
(its largest over its smallest). Whether more is better depends on the figure; benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Figures = dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """One figure over all rounds. A ratio is after over before, None where before was zero."""

    name: str
    before: float
    after: float
    ratio: float | None
    least: float | None
    most: float | None
    before_spread: float | None
    after_spread: float | None


def flattened(figures: Mapping[str, Any], prefix: str = "") -> Figures:
    """The numbers of a benchmark's last line; nested ones under dotted names, anything else left out."""
    found: Figures = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    return found


def compared(before: Sequence[Figures], after: Sequence[Figures]) -> list[Comparison]:
    """Every figure that both checkouts gave in all rounds; `before` and `after` are in the order of rounds."""
    names = [name for name in before[0] if all(name in figures for figures in [*before, *after])]
    found = []
    for name in names:
        old, new = [figures[name] for figures in before], [figures[name] for figures in after]
        ratios = [b / a for a, b in zip(old, new, strict=True)] if all(old) else []
        found.append(
            Comparison(
                name,
                statistics.median(old),
                statistics.median(new),
                statistics.median(ratios) if ratios else None,
                min(ratios, default=None),
                max(ratios, default=None),
                _spread(old),
                _spread(new),
            )
        )
    return found


def measure(checkout: Path, benchmark: str, arguments: Sequence[str]) -> Figures:
    """Run a checkout's own benchmark once; SystemExit with what it printed when it fails."""
    # A link in a virtual environment is what makes Python find its packages: it must not be resolved.
    own = checkout / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    command = [python, str(checkout / "benchmarks" / benchmark), *arguments]
    path = os.pathsep.join([str(checkout), str(checkout / "tests")])  # older benchmarks import helpers from tests/
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} gave {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return flattened(json.loads(done.stdout.strip().splitlines()[-1]))


def table(rows: Sequence[Comparison]) -> str:
    """A Markdown table."""
    head = "| figure | before | after | ratio | least to most | spread before | spread after |"
    lines = [head, "| --- " * 7 + "|"]
    for row in rows:
        numbers = [f"{row.before:.4g}", f"{row.after:.4g}", _number(row.ratio)]
        numbers += [f"{_number(row.least)} to {_number(row.most)}"]
        numbers += [_number(row.before_spread), _number(row.after_spread)]
        lines.append(f"| {row.name} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main() -> None:
    """Run in turns, compare, and end with one line of JSON: each figure's ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--after", type=Path, required=True, help="the checkout that was changed")
    parser.add_argument("--rounds", type=int, default=5, help="how often each checkout runs")
    parser.add_argument("benchmark", help="a file of benchmarks/, such as step.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the benchmark takes")
    options = parser.parse_args()
    checkouts = {"before": options.before.absolute(), "after": options.after.absolute()}
    figures: dict[str, list[Figures]] = {"before": [], "after": []}
    for number in range(options.rounds):
        for side in sorted(checkouts, reverse=number % 2 == 0):
            print(f"round {number + 1} of {options.rounds}: {side}", file=sys.stderr, flush=True)
            figures[side].append(measure(checkouts[side], options.benchmark, options.arguments))
            print(f"  {json.dumps(figures[side][-1])}", file=sys.stderr, flush=True)
    rows = compared(figures["before"], figures["after"])
    print(table(rows))
    print(json.dumps({row.name: row.ratio for row in rows}))


def _spread(values: Sequence[float]) -> float | None:
    return max(values) / min(values) if min(values) else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
