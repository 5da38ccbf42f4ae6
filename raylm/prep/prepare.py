"""`raylm prepare`: raw text becomes a data set of tokenized shards, and a killed attempt goes on where it stopped.

Comes in: a `Job`. Leaves: shards, a tokenizer folder, what steps learned (fitted/), card.md, report.html, skipped.json
and, last of all, unless the data set misses one of prepare.require's rules, manifest.json. Before that the output
folder holds _work/ with the plan, markers of what was learned, and for each stage its markers, one a finished unit, and
what it hands to the next; it goes when the manifest stands.
"""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from raylm.config.job import Job
from raylm.errors import ConfigError, DataError
from raylm.prep.checks.measures import wanted
from raylm.prep.checks.quarantine import Quarantine
from raylm.prep.checks.requirements import refuse_unmet
from raylm.prep.operators import fit
from raylm.prep.operators.barrier import Runner
from raylm.prep.pack import pack_unit
from raylm.prep.passes import (
    FITTED_FOLDER,
    WORK_FOLDER,
    Pass,
    UnitLog,
    UnitResult,
    barrier_in,
    clean_unit,
    finished,
    fitted,
    marker,
    pass_documents,
    passes_of,
)
from raylm.prep.planning import new_plan, plan_of_before
from raylm.prep.report.publish import REPORT_NAME, check_shared, manifest_of, no_documents, verdicts_on, write_record
from raylm.prep.split import document_held_out
from raylm.prep.tasks import Session, on_ray
from raylm.prep.tokenizer import import_tokenizer, sample, write_tokenizer
from raylm.prep.tokenizer import load as load_tokenizer
from raylm.prep.tokenizer import train as train_tokenizer
from raylm.prep.units import Plan, Unit, refuse_other_settings, shaping_settings
from raylm.shards import MANIFEST_NAME, TOKENIZER_FOLDER, DatasetManifest, read_manifest, write_manifest
from raylm.storage import StoragePath

_TOKENIZER_MARKER = "tokenizer-done.json"
_SAMPLED_UNITS = 64  # a tokenizer is trained on parts of this many units, evenly spread


@dataclass(frozen=True)
class PrepareProgress:
    """How far a preparation is: its stage in words, and units, documents and tokens of that stage so far."""

    stage: str
    done: int = 0
    total: int = 0
    documents: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class PrepareReport:
    """What a preparation gave; `resumed_units` had been done by an earlier attempt.

    skipped: reason → documents or records that were left out.
    """

    already_done: bool
    manifest: DatasetManifest
    seconds: float
    documents: int
    tokens: int
    output: str
    resumed_units: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


ProgressCallback = Callable[[PrepareProgress], None]


def prepare(
    job: Job,
    *,
    progress: ProgressCallback | None = None,
    session: Session = on_ray,
    clock: Callable[[], float] = time.monotonic,
) -> PrepareReport:
    """Prepare the job's data, or go on with it; a finished job is left as it is.

    Every document of the sources is in the result exactly once, unless a step drops or multiplies it, and the bytes of
    the result do not depend on how often the job was killed, nor on how many tasks ran at once.
    """
    began = clock()
    tell = progress or (lambda _: None)
    output = StoragePath(job.shards_url, job.object_store.connection())
    done = _finished_manifest(job, output)
    if done is not None:
        (output / WORK_FOLDER).remove()
        return _report(done, output, clock() - began, already_done=True)
    plan = plan_of_before(job, output)
    if plan is None:
        tell(PrepareProgress("listing the sources"))
        plan = new_plan(job, output)
    stages = passes_of(job.prepare.steps)
    _make_ready(job, output, plan, stages, tell)
    logs: list[list[UnitLog]] = []
    with session(job) as run:
        for stage in stages[:-1]:
            results, _ = _stage(job, output, plan, stages[: stage.number + 1], tell, run)
            logs.append([result.log for result in results])
            _resolve(output, plan, stages[: stage.number + 1], tell, run)
        _make_tokenizer(job, output, plan, stages, tell)
        results, resumed = _stage(job, output, plan, stages, tell, run)
        logs.append([result.log for result in results])
    tell(PrepareProgress("writing the manifest", len(plan.units), len(plan.units)))
    manifest = manifest_of(job, output, results, logs)
    check_shared(output, manifest)
    verdicts = verdicts_on(job, manifest, results, logs)
    write_record(job, output, manifest, plan, logs, verdicts)
    refuse_unmet(verdicts, (output / REPORT_NAME).url)
    write_manifest(output, manifest)
    (output / WORK_FOLDER).remove()
    return _report(manifest, output, clock() - began, resumed_units=resumed)


def _finished_manifest(job: Job, output: StoragePath) -> DatasetManifest | None:
    if not (StoragePath(output.url, output.connection.quick) / MANIFEST_NAME).exists():  # the first contact: fail soon
        return None
    manifest = read_manifest(output)
    refuse_other_settings(manifest.settings, shaping_settings(job), output)
    return manifest


def _stage(
    job: Job, output: StoragePath, plan: Plan, stages: Sequence[Pass], tell: ProgressCallback, run: Runner
) -> tuple[list[UnitResult], int]:
    """Take all units through the last of these stages: results in the plan's order, and how many were there before."""
    stage = stages[-1]
    stored = {child.name for child in stage.units(output).list()}
    done: dict[int, UnitResult] = {}
    for unit in plan.units:
        if f"{unit.number:06d}.json" in stored and (result := _finished(job, output, stage, unit.number)) is not None:
            done[unit.number] = result
    resumed = len(done)
    words = _words(stage)
    tell(_progress(words, done.values(), len(plan.units)))
    quarantine = Quarantine(plan, job.prepare.max_broken_share)
    for result in done.values():
        quarantine.add(result)
    left = [unit.number for unit in plan.units if unit.number not in done]
    try:
        # Of what earlier attempts set aside, too much may be broken by today's settings.
        for answer in run(functools.partial(_do, job, output, tuple(stages), _by_number(plan)), left) if left else ():
            result = UnitResult.from_json(answer)
            done[result.number] = result
            tell(_progress(words, done.values(), len(plan.units)))
            quarantine.add(result)
            quarantine.check_files(result.source)
        quarantine.check_all()
    except DataError:
        # Files may be mended when it is tried again.
        for number in quarantine.damaged_units:
            marker(output, stage, number).remove()
        raise
    return [done[unit.number] for unit in plan.units], resumed


def _do(job: Job, output: StoragePath, stages: Sequence[Pass], units: Mapping[int, Unit], number: int) -> str:
    """One unit's way through the last of these stages, unless another attempt has done it."""
    result = _finished(job, output, stages[-1], number)
    if result is None:
        do = pack_unit if stages[-1].barrier is None else clean_unit
        result = do(job, output, stages, units[number])
        marker(output, stages[-1], number).write_text(result.to_json())
    return result.to_json()


def _finished(job: Job, output: StoragePath, stage: Pass, number: int) -> UnitResult | None:
    """What was made of the unit before, if it says all that the job's rules want to know by now."""
    result = finished(output, stage, number)
    if result is not None and stage.barrier is None and not wanted(job) <= result.measures.keys():
        return None
    return result


def _resolve(output: StoragePath, plan: Plan, stages: Sequence[Pass], tell: ProgressCallback, run: Runner) -> None:
    """Let the barrier at the end of the last of these stages decide; what only the stage before needed goes."""
    stage = stages[-1]
    assert stage.barrier is not None  # the last stage of a job has none, and is packed
    if not stage.resolved(output).exists():
        tell(PrepareProgress(f"deciding on {stage.barrier.name.replace('_', ' ')}"))
        barrier_in(stage).resolve(stage.gathered(output), [unit.number for unit in plan.units], run)
        stage.resolved(output).write_text("{}")
    if len(stages) > 1:
        stages[-2].documents(output).remove()
        stages[-2].gathered(output).remove()


def _make_ready(job: Job, output: StoragePath, plan: Plan, stages: Sequence[Pass], tell: ProgressCallback) -> None:
    """Do what is done once before any unit, unless an earlier attempt has done it."""
    try:
        if job.prepare.tokenizer.path:  # a wrong one is better found before hours of cleaning than after
            _make_tokenizer(job, output, plan, stages, tell)
        _fit_operators(job, output, tell)
    except (ConfigError, DataError):
        # No unit has been done: other settings may be tried in the same folder.
        for name in (FITTED_FOLDER, TOKENIZER_FOLDER, WORK_FOLDER):
            (output / name).remove()
        raise


def _fit_operators(job: Job, output: StoragePath, tell: ProgressCallback) -> None:
    if job.prepare.steps:
        tell(PrepareProgress("making the steps ready"))
    for number, step in enumerate(job.prepare.steps):
        done = output / WORK_FOLDER / f"fitted-{number:02d}.json"
        if not done.exists():
            fit(step, fitted(output, number, step), job.object_store.connection())
            done.write_text("{}")


def _make_tokenizer(job: Job, output: StoragePath, plan: Plan, stages: Sequence[Pass], tell: ProgressCallback) -> None:
    settings = job.prepare.tokenizer
    done = output / WORK_FOLDER / _TOKENIZER_MARKER
    folder = output / TOKENIZER_FOLDER
    if done.exists():
        return
    if settings.path:
        tell(PrepareProgress("copying the tokenizer"))
        import_tokenizer(StoragePath(settings.path, job.object_store.connection()), folder, settings)
    else:
        tell(PrepareProgress("training the tokenizer"))
        texts = _tokenizer_texts(job, output, plan, stages)
        write_tokenizer(folder, train_tokenizer(texts, settings))
    _, facts = load_tokenizer(folder)
    done.write_text(json.dumps({"fingerprint": facts.fingerprint}))


def _tokenizer_texts(job: Job, output: StoragePath, plan: Plan, stages: Sequence[Pass]) -> Iterator[str]:
    """Texts spread evenly over the units; held-out documents are not looked at."""
    step = -(-len(plan.units) // _SAMPLED_UNITS)
    chosen = plan.units[::step]
    max_bytes = -(-job.prepare.tokenizer.sample_bytes // len(chosen))
    quarantine = Quarantine(plan, job.prepare.max_broken_share)
    empty, logs = True, []
    for unit in chosen:
        log = UnitLog()
        logs.append(log)
        documents = pass_documents(job, output, stages, unit, log)
        texts = (document.text for document in documents if not document_held_out(document, job.prepare.held_out))
        for text in sample(texts, max_bytes):
            empty = False
            yield text
        # Rather now than after the tokenizer: what is broken here is among what the units will find.
        quarantine.add(UnitResult(unit.number, unit.source, log))
        quarantine.check_files(unit.source)
    if empty and step == 1:
        quarantine.check_all()
        raise no_documents(logs)


def _by_number(plan: Plan) -> dict[int, Unit]:
    return {unit.number: unit for unit in plan.units}


def _words(stage: Pass) -> str:
    names = [step.name.replace("_", " ") for step in stage.steps]
    if stage.barrier is None:
        return ", ".join([*names, "tokenizing"])
    return ", ".join([*names, f"looking at documents for {stage.barrier.name.replace('_', ' ')}"])


def _progress(words: str, results: Iterable[UnitResult], total: int) -> PrepareProgress:
    done = list(results)
    # Every stage ends with a record: of tokenizing, or of its last step; without steps, of what was read.
    documents = sum(one.log.steps[-1].kept if one.log.steps else one.log.skipped.documents for one in done)
    tokens = sum(one.counts.get("tokens", 0) + one.counts.get("held_out_tokens", 0) for one in done)
    return PrepareProgress(words, len(done), total, documents, tokens)


def _report(
    manifest: DatasetManifest,
    output: StoragePath,
    seconds: float,
    *,
    already_done: bool = False,
    resumed_units: int = 0,
) -> PrepareReport:
    counts = list(manifest.sources.values())
    skipped: Counter[str] = Counter()
    for count in counts:
        skipped.update({key.removeprefix("skipped_"): n for key, n in count.items() if key.startswith("skipped_")})
    return PrepareReport(
        already_done=already_done,
        manifest=manifest,
        seconds=seconds,
        documents=sum(count["documents"] + count["held_out_documents"] for count in counts),
        tokens=manifest.train_tokens + manifest.held_out_tokens,
        output=output.url,
        resumed_units=resumed_units,
        skipped=dict(sorted(skipped.items())),
    )
