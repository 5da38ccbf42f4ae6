"""`raylm prepare`: raw text becomes a dataset of tokenized shards, and a killed attempt goes on where it stopped.

The output folder gets shards, a tokenizer folder, what operators learned (fitted/), card.md, report.html, skipped.json
and, last of all, unless the dataset misses one of prepare.require's rules, manifest.json. Before that it holds _work/
with the work list, markers of what was learned, and for each pass its markers, one per finished unit, and what it hands
to the next pass; it goes when the manifest stands.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raylm.config.job import Job, required_job
from raylm.config.together import refuse_no_sources
from raylm.errors import ConfigError, DataError
from raylm.prep.checks.measures import wanted
from raylm.prep.checks.quarantine import Quarantine
from raylm.prep.checks.requirements import refuse_unmet, refuse_unspelled
from raylm.prep.checks.verdicts import verdicts_on
from raylm.prep.listed import news, news_of_finished, write_listed
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
    fitted_folder,
    marker,
    pass_documents,
    passes_of,
    resources_of,
)
from raylm.prep.planning import new_worklist, stored_worklist
from raylm.prep.report.publish import check_shared, manifest_of
from raylm.prep.report.totals import documents_in, no_documents, skipped_in
from raylm.prep.report.write import REPORT_NAME, warnings_in, write_report
from raylm.prep.split import document_held_out
from raylm.prep.tasks import Session, on_ray
from raylm.prep.tokenizer import import_tokenizer, sample, write_tokenizer
from raylm.prep.tokenizer import load as load_tokenizer
from raylm.prep.tokenizer import train as train_tokenizer
from raylm.prep.units import Unit, WorkList, refuse_other_settings, shaping_settings
from raylm.shards import MANIFEST_NAME, TOKENIZER_FOLDER, DatasetManifest, read_manifest, write_manifest
from raylm.storage import StoragePath

log = logging.getLogger(__name__)

_TOKENIZER_MARKER = "tokenizer-done.json"
_SAMPLED_UNITS = 64  # a tokenizer is trained on parts of this many units, evenly spread


@dataclass(frozen=True)
class PrepareProgress:
    """How far a preparation is: its phase in words, and units, documents and tokens of that phase so far."""

    phase: str
    done: int = 0
    total: int = 0
    documents: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class PrepareReport:
    """What a preparation gave; `resumed_units` had been done by an earlier attempt.

    skipped: reason → documents or records that were left out. warnings: where more was left out than is plausible.
    """

    already_done: bool
    manifest: DatasetManifest
    seconds: float
    documents: int
    tokens: int
    output: str
    resumed_units: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


ProgressCallback = Callable[[PrepareProgress], None]


@dataclass(frozen=True)
class Preparation:
    """What every part of one attempt works with: the job, where it writes, what it has to do, and who does it."""

    job: Job
    output: StoragePath
    worklist: WorkList
    passes: tuple[Pass, ...]
    progress: ProgressCallback
    run: Runner


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
    job = required_job(job)
    began = clock()
    refuse_no_sources(job)
    progress = progress or (lambda _: None)
    output = StoragePath(job.shards_url, job.object_store.connection())
    done = finished_manifest(job, output)
    if done is not None:
        (output / WORK_FOLDER).remove()
        warnings = (*warnings_in(output), *news_of_finished(job, output))
        return _report(done, output, clock() - began, warnings, already_done=True)
    worklist, late = _worklist(job, output, progress)
    with session(job) as run:
        preparation = Preparation(job, output, worklist, passes_of(job.prepare.steps), progress, run)
        _make_ready(preparation)
        results, resumed, logs = _all_passes(preparation)
    progress(PrepareProgress("writing the manifest", len(worklist.units), len(worklist.units)))
    manifest = manifest_of(job, output, results, logs)
    check_shared(output, manifest)
    verdicts = verdicts_on(job, manifest, results, logs)
    warnings = (*write_report(job, output, manifest, worklist, logs, verdicts), *late)
    write_listed(output, worklist.files)
    refuse_unmet(verdicts, (output / REPORT_NAME).url)
    refuse_unspelled(manifest.fertility, job.prepare.tokenizer.max_unknown)
    write_manifest(output, manifest)
    (output / WORK_FOLDER).remove()
    return _report(manifest, output, clock() - began, warnings, resumed_units=resumed)


def _worklist(job: Job, output: StoragePath, progress: ProgressCallback) -> tuple[WorkList, list[str]]:
    """What is to be done, as an earlier attempt wrote it down if any did; and which files came too late for that."""
    worklist = stored_worklist(job, output)
    if worklist is None:
        progress(PrepareProgress("listing the sources"))
        return new_worklist(job, output), []
    late = news(job, output, worklist.files)
    for line in late:
        log.warning("%s", line)
    return worklist, late


def finished_manifest(job: Job, output: StoragePath) -> DatasetManifest | None:
    """The manifest of the job's data where it is finished; a ConfigError where it is that of other settings."""
    if not (StoragePath(output.url, output.connection.quick) / MANIFEST_NAME).exists():  # the first contact: fail soon
        return None
    manifest = read_manifest(output)
    refuse_other_settings(manifest.settings, shaping_settings(job), output)
    return manifest


def _all_passes(preparation: Preparation) -> tuple[list[UnitResult], int, list[list[UnitLog]]]:
    """Results of the last pass, how many of them an earlier attempt had, and the logs of every pass's units."""
    logs: list[list[UnitLog]] = []
    *before, last = preparation.passes
    for current in before:
        results, _ = _do_pass(preparation, current)
        logs.append([result.log for result in results])
        _resolve(preparation, current)
    _make_tokenizer(preparation)
    results, resumed = _do_pass(preparation, last)
    return results, resumed, [*logs, [result.log for result in results]]


def _do_pass(preparation: Preparation, current: Pass) -> tuple[list[UnitResult], int]:
    """Take all units through a pass: results in the work list's order, and how many were there before."""
    job, output, units = preparation.job, preparation.output, preparation.worklist.units
    done = _done_before(preparation, current)
    resumed = len(done)
    totals = _Totals(_words(current), len(units))
    quarantine = Quarantine(preparation.worklist, job.prepare.max_broken_share)
    for result in done.values():
        totals.add(result)
        quarantine.add(result)
    preparation.progress(totals.progress())
    left = [unit for unit in units if unit.number not in done]
    task = functools.partial(_do_unit, job, output, current.number)
    try:
        # Of what earlier attempts set aside, too much may be broken by today's settings.
        for answer in preparation.run(task, left, resources_of(current)) if left else ():
            result = UnitResult.from_json(answer)
            done[result.number] = result
            totals.add(result)
            preparation.progress(totals.progress())
            quarantine.add(result)
            quarantine.check_files(result.source)
        quarantine.check_all()
    except DataError:
        # Files may be mended when it is tried again.
        for number in quarantine.damaged_units:
            marker(output, current, number).remove()
        raise
    return [done[unit.number] for unit in units], resumed


def _done_before(preparation: Preparation, current: Pass) -> dict[int, UnitResult]:
    """What earlier attempts made of units in this pass, by the units' numbers."""
    job, output = preparation.job, preparation.output
    stored = {child.name for child in current.markers(output).list()}
    done: dict[int, UnitResult] = {}
    for unit in preparation.worklist.units:
        if marker(output, current, unit.number).name in stored:
            result = _finished(job, output, current, unit.number)
            if result is not None:
                done[unit.number] = result
    return done


def _do_unit(job: Job, output: StoragePath, number: int, unit: Unit) -> str:
    """One unit's way through the job's pass of this number, unless another attempt has done it."""
    current = passes_of(job.prepare.steps)[number]
    result = _finished(job, output, current, unit.number)
    if result is None:
        do = pack_unit if current.barrier is None else clean_unit
        result = do(job, output, current, unit)
        marker(output, current, unit.number).write_text(result.to_json())
    return result.to_json()


def _finished(job: Job, output: StoragePath, current: Pass, number: int) -> UnitResult | None:
    """What was made of the unit before, if it says all that the job's rules want to know by now."""
    result = finished(output, current, number)
    if result is not None and current.barrier is None and not wanted(job) <= result.measures.keys():
        return None
    return result


def _resolve(preparation: Preparation, current: Pass) -> None:
    """Let the barrier at the pass's end decide; what only the pass before needed goes."""
    output = preparation.output
    assert current.barrier is not None  # only the last pass has none, and it is packed
    if not current.resolved(output).exists():
        preparation.progress(PrepareProgress(f"deciding on {current.barrier.name.replace('_', ' ')}"))
        numbers = [unit.number for unit in preparation.worklist.units]
        barrier_in(current).resolve(current.gathered(output), numbers, preparation.run)
        current.resolved(output).write_text("{}")
    if current.before is not None:
        current.before.documents(output).remove()
        current.before.gathered(output).remove()


def _make_ready(preparation: Preparation) -> None:
    """Do what is done once before any unit, unless an earlier attempt has done it."""
    try:
        if preparation.job.prepare.tokenizer.path:  # a wrong one is better found before hours of cleaning than after
            _make_tokenizer(preparation)
        _fit_operators(preparation)
    except (ConfigError, DataError):
        # No unit has been done: other settings may be tried in the same folder.
        for name in (FITTED_FOLDER, TOKENIZER_FOLDER, WORK_FOLDER):
            (preparation.output / name).remove()
        raise


def _fit_operators(preparation: Preparation) -> None:
    job, output = preparation.job, preparation.output
    if job.prepare.steps:
        preparation.progress(PrepareProgress("making the steps ready"))
    for number, step in enumerate(job.prepare.steps):
        done = output / WORK_FOLDER / f"fitted-{number:02d}.json"
        if not done.exists():
            fit(step, fitted_folder(output, number, step), job.object_store.connection())
            done.write_text("{}")


def _make_tokenizer(preparation: Preparation) -> None:
    job, output = preparation.job, preparation.output
    settings = job.prepare.tokenizer
    done = output / WORK_FOLDER / _TOKENIZER_MARKER
    folder = output / TOKENIZER_FOLDER
    if done.exists():
        return
    if settings.path:
        preparation.progress(PrepareProgress("copying the tokenizer"))
        import_tokenizer(StoragePath(settings.path, job.object_store.connection()), folder, settings)
    else:
        preparation.progress(PrepareProgress("training the tokenizer"))
        write_tokenizer(folder, train_tokenizer(_tokenizer_texts(preparation), settings))
    _, facts = load_tokenizer(folder)
    done.write_text(json.dumps({"fingerprint": facts.fingerprint}))


def _tokenizer_texts(preparation: Preparation) -> Iterator[str]:
    """Texts spread evenly over the units; held-out documents are not looked at."""
    job, units = preparation.job, preparation.worklist.units
    step = -(-len(units) // _SAMPLED_UNITS)
    chosen = units[::step]
    max_bytes = -(-job.prepare.tokenizer.sample_bytes // len(chosen))
    quarantine = Quarantine(preparation.worklist, job.prepare.max_broken_share)
    empty, logs = True, []
    for unit in chosen:
        log = UnitLog()
        logs.append(log)
        documents = pass_documents(job, preparation.output, preparation.passes[-1], unit, log)
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


def _words(current: Pass) -> str:
    names = [step.name.replace("_", " ") for step in current.operators]
    if current.barrier is None:
        return ", ".join([*names, "tokenizing"])
    return ", ".join([*names, f"looking at documents for {current.barrier.name.replace('_', ' ')}"])


@dataclass
class _Totals:
    """Adds up the units of a pass as they come in."""

    phase: str
    total: int
    done: int = 0
    documents: int = 0
    tokens: int = 0

    def add(self, result: UnitResult) -> None:
        """Take in one more unit."""
        self.done += 1
        # Every pass ends with a record: of tokenizing, or of its last operator; without one, of what was read.
        records = result.log.records
        self.documents += records[-1].kept if records else result.log.skipped.documents
        self.tokens += result.counts.get("tokens", 0) + result.counts.get("held_out_tokens", 0)

    def progress(self) -> PrepareProgress:
        """How far the pass is."""
        return PrepareProgress(self.phase, self.done, self.total, self.documents, self.tokens)


def _report(
    manifest: DatasetManifest,
    output: StoragePath,
    seconds: float,
    warnings: tuple[str, ...],
    *,
    already_done: bool = False,
    resumed_units: int = 0,
) -> PrepareReport:
    return PrepareReport(
        already_done=already_done,
        manifest=manifest,
        seconds=seconds,
        documents=documents_in(manifest),
        tokens=manifest.train_tokens + manifest.held_out_tokens,
        output=output.url,
        resumed_units=resumed_units,
        skipped=skipped_in(manifest),
        warnings=warnings,
    )
