"""What share of the GPU time that spot machines offer would training 7B turn into steps? A simulation.

    python benchmarks/goodput.py [--assume FILE] [--quick] [--keep]

Published traces of spot machines are run through step by step, with nodes of one GPU and of eight, in several ways:
`restart` starts every worker anew from storage; `bodies` keeps the survivors, whose state comes from host memory, and
lets newcomers join when they have warmed up. `goodput` is the work of the steps that were kept over the time of all
GPUs that were there. Nothing here is measured on GPUs: every assumption stands in `goodput_costs.Assumptions` with its
source, and is printed. An earlier, independent calculation of three of the ways stands beside them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import arguments, finish, table
from benchmarks.goodput_costs import Assumptions, Costs, Way
from benchmarks.goodput_simulation import Outcome, simulate
from benchmarks.goodput_traces import HOUR_SECONDS, Trace, traces
from raylm.testing.external import VARIABLE, external_data

FOLDER = "spot-traces"
GPUS_A_NODE = (1, 8)
Figures = dict[str, dict[str, float]]  # by trace, then by GPUs a node

RESTART = Way("restart", stays=False, copies=False, empty_build=False)
EMPTY_RESTART = Way("restart_empty_build", stays=False, copies=False)
EIGHT_SECONDS = Way("survivors_8s", copies=False, fixed_pause_seconds=8.0, join_seconds=60.0)
KILLED = Way("bodies_killed")
NOTICED = Way("bodies_noticed", notices=True)
LATE = Way("bodies_noticed_late", notices=True, leave="late")
BASES = (RESTART, EMPTY_RESTART, EIGHT_SECONDS, KILLED, NOTICED, LATE)
# What else a way could be, or the world: changes of the way and of the assumptions.
LEVERS: tuple[tuple[str, Way, dict[str, Any]], ...] = (
    ("killed_redo_micro_batches", replace(KILLED, redo="micro_batches"), {}),
    ("killed_batch_of_1m", KILLED, {"batch_tokens": 1 << 20}),
    ("killed_nccl_1s", KILLED, {"nccl_seconds": 1.0}),
    ("killed_redo_micro_batches_nccl_1s", replace(KILLED, redo="micro_batches"), {"nccl_seconds": 1.0}),
    ("killed_silent_6s", KILLED, {"detect_seconds": 6.3}),
    ("killed_copies_not_hidden", KILLED, {"copy_drag": 1.0}),
    ("killed_copies_hidden", KILLED, {"copy_drag": 0.0}),
    ("killed_joins_at_once", KILLED, {"regroup_costs": 0.0}),
    ("killed_joins_after_20_pauses", KILLED, {"regroup_costs": 20.0}),
    ("killed_1024_lanes", KILLED, {"lanes": 1024}),
    ("killed_a100", KILLED, {"gpu_flops_per_second": 140e12}),
    ("late_nccl_1s", LATE, {"nccl_seconds": 1.0}),
    ("late_nccl_1s_copies_hidden", LATE, {"nccl_seconds": 1.0, "copy_drag": 0.0}),
)
# The earlier calculation: goodput at one GPU a node and at eight.
EARLIER: dict[str, dict[str, tuple[float, float]]] = {
    "restart": {
        "p3": (0.59, 0.60),
        "gcp-a100": (0.93, 0.94),
        "p2": (0.90, 0.91),
        "parcae-hh": (0.54, 0.56),
        "parcae-hl": (0.73, 0.76),
        "parcae-lh": (0.48, 0.45),
        "parcae-ll": (0.85, 0.87),
    },
    "restart_empty_build": {
        "p3": (0.84, 0.87),
        "gcp-a100": (0.98, 0.98),
        "p2": (0.96, 0.97),
        "parcae-hh": (0.81, 0.85),
        "parcae-hl": (0.88, 0.92),
        "parcae-lh": (0.74, 0.81),
        "parcae-ll": (0.94, 0.95),
    },
    "survivors_8s": {
        "p3": (0.94, 0.96),
        "gcp-a100": (0.99, 0.99),
        "p2": (0.99, 0.99),
        "parcae-hh": (0.93, 0.95),
        "parcae-hl": (0.96, 0.97),
        "parcae-lh": (0.90, 0.94),
        "parcae-ll": (0.98, 0.99),
    },
}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--assume", type=Path, help="JSON: names of Assumptions with other values, as measured phases")
    options = parser.parse_args()
    folder = external_data(FOLDER)
    if not folder.exists():
        print(f"skipped: {FOLDER} is not below {VARIABLE}")
        print(json.dumps({"skipped": f"{FOLDER} is not below {VARIABLE}"}))
        return
    given = assumptions(json.loads(options.assume.read_text()) if options.assume else {})
    found = [one for one in traces(folder) if not options.quick or one.name.startswith("parcae")]
    outcomes = {way.name: run(found, way, given, quick=options.quick) for way in BASES}
    for name, way, changes in LEVERS:
        outcomes[name] = run(found, way, replace(given, **changes), quick=options.quick)
    goodput = {name: rounded(one) for name, one in outcomes.items()}
    names = [trace.name for trace in found]
    finish(
        "goodput",
        {
            "goodput": goodput,
            "least": {name: min(min(pair.values()) for pair in figures.values()) for name, figures in goodput.items()},
            "targets_reached": {name: len(reached(figures)) for name, figures in goodput.items()},
            "targets": len(names) * len(GPUS_A_NODE),
            "largest_difference_to_earlier": largest_differences(goodput),
        },
        details={"assumptions": sources(given), "quick": options.quick},
        table="\n\n".join(
            [
                table(*goodput_table(found, goodput)),
                "A cell: nodes of one GPU / of eight. * is at or over the target.",
                table(*spent_table(names, outcomes)),
                "Percent of the available GPU time, at one GPU a node / at eight.",
                table(["assumption", "value", "source"], [[name, *line] for name, line in sources(given).items()]),
            ]
        ),
        keep=options.keep,
    )


def assumptions(changes: Mapping[str, Any]) -> Assumptions:
    """The defaults with other values by name."""
    unknown = sorted(set(changes) - {one.name for one in fields(Assumptions)})
    if unknown:
        raise SystemExit(f"no such assumptions: {', '.join(unknown)}")
    return replace(Assumptions(), **changes)


def sources(given: Assumptions) -> dict[str, list[Any]]:
    """Value and source of each assumption; another value than the default's was given."""
    defaults = Assumptions().sources()
    return {
        name: line if line == defaults[name] else [line[0], "given by --assume"]
        for name, line in given.sources().items()
    }


def run(found: Sequence[Trace], way: Way, given: Assumptions, *, quick: bool = False) -> dict[str, dict[str, Outcome]]:
    """The outcome of each trace at each shape."""
    return {
        trace.name: {str(gpus): averaged(trace, Costs(given, way, gpus), 2 if quick else 8) for gpus in GPUS_A_NODE}
        for trace in found
    }


def averaged(trace: Trace, costs: Costs, starts: int) -> Outcome:
    """One outcome of several runs that begin at other parts of a step; long traces average by themselves."""
    runs = starts if trace.seconds <= HOUR_SECONDS else 1
    found = [simulate(trace, costs, begun=number / runs) for number in range(runs)]
    spent = {name: sum(one.spent[name] for one in found) for name in found[0].spent}
    return Outcome(
        useful=sum(one.useful for one in found),
        available=sum(one.available for one in found),
        spent=spent,
        counts=found[0].counts,
    )


def rounded(outcomes: Mapping[str, Mapping[str, Outcome]]) -> Figures:
    """Goodput to three places."""
    return {name: {gpus: round(one.goodput, 3) for gpus, one in pair.items()} for name, pair in outcomes.items()}


def target(trace: str, gpus: str) -> float:
    """0.97 where survivors that pause for eight seconds were to reach 0.98, and 0.93 elsewhere."""
    earlier = EARLIER["survivors_8s"][trace][GPUS_A_NODE.index(int(gpus))]
    return 0.97 if earlier >= 0.98 else 0.93


def reached(figures: Figures) -> list[tuple[str, str]]:
    """Trace and shape of the figures at or over their target."""
    return [(name, gpus) for name, pair in figures.items() for gpus, one in pair.items() if one >= target(name, gpus)]


def largest_differences(goodput: Mapping[str, Figures]) -> dict[str, float]:
    """How far each way that was calculated before is from that."""
    return {
        way: round(
            max(
                abs(figure - before[name][GPUS_A_NODE.index(int(gpus))])
                for name, pair in goodput[way].items()
                for gpus, figure in pair.items()
            ),
            3,
        )
        for way, before in EARLIER.items()
    }


def goodput_table(found: Sequence[Trace], goodput: Mapping[str, Figures]) -> tuple[list[str], list[list[str]]]:
    """A row a way, a column a trace; the earlier calculation's rows below its ways."""
    head = [f"{one.name}, {one.seconds / HOUR_SECONDS:.0f} h, {one.removals} removals" for one in found]
    rows = []
    for way, figures in goodput.items():
        above = reached(figures)
        cells = [
            " / ".join(f"{one:.3f}{'*' if (name, gpus) in above else ''}" for gpus, one in pair.items())
            for name, pair in figures.items()
        ]
        rows.append([way, *cells])
        if way in EARLIER:
            rows.append(["… calculated earlier", *("{:.2f} / {:.2f}".format(*EARLIER[way][one.name]) for one in found)])
    return ["way", *head], rows


def spent_table(
    names: Sequence[str], outcomes: Mapping[str, Mapping[str, Mapping[str, Outcome]]]
) -> tuple[list[str], list[list[str]]]:
    """What the time went to that was not useful."""
    rows = []
    for way in (RESTART, KILLED, NOTICED, LATE):
        for cause in outcomes[way.name][names[0]]["1"].spent:
            pairs = [outcomes[way.name][name].values() for name in names]
            cells = [" / ".join(f"{100 * one.spent[cause] / one.available:.1f}" for one in pair) for pair in pairs]
            rows.append([f"{way.name}: {cause}", *cells])
    return ["way: cause", *names], rows


if __name__ == "__main__":
    main()
