"""`raylm prepare`: raw text becomes a data set of tokenized shards, and a killed attempt goes on where it stopped.

Comes in: a `Job`. Leaves: shards, a tokenizer folder, card.md, left_out.json and, last of all, manifest.json. Before
that the output folder holds _work/ with the plan, the tokenizer's marker and a marker a finished unit; it goes when the
manifest stands.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from raylm.config.schema import Job, TextSource
from raylm.errors import ConfigError, DataError, StorageError
from raylm.prep.card import data_card
from raylm.prep.documents import atoms, read_piece
from raylm.prep.left_out import LeftOut, joined, refuse_too_many
from raylm.prep.pack import WORK_FOLDER, UnitResult, finished, is_held_out, marker, unit_documents
from raylm.prep.plan import (
    Piece,
    Plan,
    Unit,
    capped,
    listed,
    pieces_of,
    refuse_other_settings,
    shaping_settings,
    units_of,
)
from raylm.prep.pydocs import documents as python_docs
from raylm.prep.tasks import UnitRunner, run_on_ray
from raylm.prep.tokenizer import copy_loaded, sample, write_trained
from raylm.prep.tokenizer import load as load_tokenizer
from raylm.prep.tokenizer import train as train_tokenizer
from raylm.shards import (
    MANIFEST_NAME,
    TOKENIZER_FOLDER,
    Manifest,
    check_shards,
    make_manifest,
    read_manifest,
    write_manifest,
)
from raylm.storage import NotFound, Place, Reach

CARD_NAME = "card.md"
LEFT_OUT_NAME = "left_out.json"
_PLAN = "plan.json"
_TOKENIZER_MARKER = "tokenizer-done.json"
_SAMPLED_UNITS = 64  # a tokenizer is trained on parts of this many units, evenly spread
_SHARD_BYTES_PER_RAW_BYTE = 0.3  # 0.22 was measured on English; with some room


@dataclass(frozen=True)
class PrepareProgress:
    """How far a preparation is: its stage in words, and units, documents and tokens so far."""

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
    manifest: Manifest
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
    run_units: UnitRunner = run_on_ray,
    clock: Callable[[], float] = time.monotonic,
) -> PrepareReport:
    """Prepare the job's data, or go on with it; a finished job is left as it is.

    Every document of the sources is in the result exactly once, and the bytes of the result do not depend on how
    often the job was killed, nor on how many tasks ran at once.
    """
    began = clock()
    tell = progress or (lambda _: None)
    reach = job.object_store.reach()
    output = Place(job.shards_url, reach)
    done = _finished_manifest(job, output)
    if done is not None:
        (output / WORK_FOLDER).remove()
        return _report(done, output, clock() - began, already_done=True)
    plan = _planned(job, output, tell)
    _make_tokenizer(job, output, plan, tell)
    results, resumed = _run(job, output, plan, tell, run_units)
    tell(PrepareProgress("writing the manifest", len(plan.units), len(plan.units)))
    manifest = _manifest(job, output, results)
    _write_record(job, output, manifest, results)
    _check_shared(output, manifest)
    write_manifest(output, manifest)
    (output / WORK_FOLDER).remove()
    return _report(manifest, output, clock() - began, resumed_units=resumed)


def _finished_manifest(job: Job, output: Place) -> Manifest | None:
    if not (Place(output.url, output.reach.quick) / MANIFEST_NAME).exists():  # the first contact: fail soon
        return None
    manifest = read_manifest(output)
    refuse_other_settings(manifest.settings, shaping_settings(job), output)
    return manifest


def _planned(job: Job, output: Place, tell: ProgressCallback) -> Plan:
    """The plan of the attempt before, or a new one, written down."""
    settings = shaping_settings(job)
    place = output / WORK_FOLDER / _PLAN
    try:
        plan = Plan.from_json(place.read_text())
    except NotFound:
        pass
    else:
        refuse_other_settings(plan.settings, settings, output)
        return plan
    taken = {"train", "held_out", TOKENIZER_FOLDER} & {child.name for child in output.list()}
    if taken:
        raise ConfigError(
            f"{output.url} already holds {', '.join(sorted(taken))}, but no plan and no manifest of raylm",
            hint="choose another prepare.output, or empty that folder",
        )
    tell(PrepareProgress("listing the sources"))
    output.check_writable()
    units = units_of(_all_pieces(job, output), job.prepare.unit_bytes)
    if not units:
        raise DataError("the sources hold no document", hint="check prepare.sources: every file is empty")
    raw_bytes = sum((piece.stop or piece.size) - piece.start for unit in units for piece in unit.pieces)
    output.check_writable(int(raw_bytes * _SHARD_BYTES_PER_RAW_BYTE))
    plan = Plan(settings, units)
    place.write_text(plan.to_json())
    return plan


def _all_pieces(job: Job, output: Place) -> Iterator[tuple[str, Piece, int]]:
    reach = job.object_store.reach()
    for source in job.prepare.sources:
        if source.kind == "python-docs":
            yield from _spooled(source, output, job.prepare.unit_bytes)
            continue
        pieces = pieces_of(source, listed(source, reach), job.prepare.unit_bytes, atoms)
        if source.max_documents is None:
            yield from pieces
        else:
            yield from capped(pieces, source.max_documents, _counter(source, reach))


def _counter(source: TextSource, reach: Reach) -> Callable[[Piece, int], int]:
    def count(piece: Piece, most: int) -> int:
        return sum(1 for _ in itertools.islice(read_piece(source, piece, reach, LeftOut()), most))

    return count


def _spooled(source: TextSource, output: Place, unit_bytes: int) -> Iterator[tuple[str, Piece, int]]:
    """Write this machine's documentation as JSON lines: other nodes, or a later attempt, may have other packages."""
    lines = (
        json.dumps({"id": name, "text": text}).encode() + b"\n"
        for name, text in itertools.islice(python_docs(), source.max_documents)
    )
    for number, part in enumerate(_parts(lines, unit_bytes)):
        place = output / WORK_FOLDER / f"{source.name}-{number:06d}.jsonl"
        written = place.write_parts(part)
        yield source.name, Piece(place.url, written), written


def _parts(lines: Iterator[bytes], most_bytes: int) -> Iterator[Iterator[bytes]]:
    """Runs of lines of about `most_bytes` each; one has to be used up before the next is asked for."""

    def run(first: bytes) -> Iterator[bytes]:
        held = len(first)
        yield first
        while held < most_bytes and (line := next(lines, None)) is not None:
            held += len(line)
            yield line

    while (line := next(lines, None)) is not None:
        yield run(line)


def _make_tokenizer(job: Job, output: Place, plan: Plan, tell: ProgressCallback) -> None:
    settings = job.prepare.tokenizer
    done = output / WORK_FOLDER / _TOKENIZER_MARKER
    folder = output / TOKENIZER_FOLDER
    if done.exists():
        return
    if settings.path:
        tell(PrepareProgress("copying the tokenizer"))
        copy_loaded(Place(settings.path, job.object_store.reach()), folder)
    else:
        tell(PrepareProgress("training the tokenizer"))
        texts = _tokenizer_texts(job, plan, settings.sample_bytes)
        write_trained(folder, train_tokenizer(texts, settings.vocab_size))
    _, facts = load_tokenizer(folder)
    done.write_text(json.dumps({"fingerprint": facts.fingerprint}))


def _tokenizer_texts(job: Job, plan: Plan, most_bytes: int) -> Iterator[str]:
    """Texts spread evenly over the units; held-out documents are not looked at."""
    step = -(-len(plan.units) // _SAMPLED_UNITS)
    chosen = plan.units[::step]
    sources = {source.name: source for source in job.prepare.sources}
    empty = True
    seen = {source.name: LeftOut() for source in job.prepare.sources}
    for unit in chosen:
        left_out = seen[unit.source]
        documents = unit_documents(sources[unit.source], unit, job.object_store.reach(), left_out)
        texts = (document.text for document in documents if not is_held_out(document.text, job.prepare.held_out))
        for text in sample(texts, -(-most_bytes // len(chosen))):
            empty = False
            yield text
        # Rather now than after the tokenizer: what is broken here is among what the units will find.
        files = {piece.url for other in plan.units if other.source == unit.source for piece in other.pieces}
        refuse_too_many(unit.source, left_out, files=len(files), most=job.prepare.quarantine, ended=False)
    if empty and step == 1:
        for source, left_out in seen.items():
            refuse_too_many(source, left_out, files=1, most=job.prepare.quarantine, ended=True)
        raise _no_documents()


def _run(
    job: Job, output: Place, plan: Plan, tell: ProgressCallback, run_units: UnitRunner
) -> tuple[list[UnitResult], int]:
    """Every unit's result in the plan's order, and how many were there before."""
    done: dict[int, UnitResult] = {}
    stored = {child.name for child in (output / WORK_FOLDER / "units").list()}
    for unit in plan.units:
        if f"{unit.number:06d}.json" in stored and (result := finished(output, unit.number)) is not None:
            done[unit.number] = result
    resumed = len(done)
    left: list[Unit] = [unit for unit in plan.units if unit.number not in done]
    _tell_units(tell, done.values(), len(plan.units))
    if left:
        for result in run_units(job, output, left):
            done[result.number] = result
            _tell_units(tell, done.values(), len(plan.units))
            if result.left_out.get("files"):
                _refuse_too_many(job, output, plan, done, result.source)
    for source in job.prepare.sources:
        _refuse_too_many(job, output, plan, done, source.name)
    return [done[unit.number] for unit in plan.units], resumed


def _refuse_too_many(job: Job, output: Place, plan: Plan, done: dict[int, UnitResult], source: str) -> None:
    """Stop when too much of a source is broken. Its damaged units will be done again: files may be mended by then."""
    units = [unit for unit in plan.units if unit.source == source]
    results = [done[unit.number] for unit in units if unit.number in done]
    left_out = _left_out(results)
    files = len({piece.url for unit in units for piece in unit.pieces})
    most = job.prepare.quarantine
    try:
        refuse_too_many(source, left_out, files=files, most=most, ended=len(results) == len(units))
    except DataError:
        for result in results:
            if result.left_out.get("files") or "skipped_broken_record" in result.counts:
                marker(output, result.number).remove()
        raise


def _left_out(results: Iterable[UnitResult]) -> LeftOut:
    return joined(LeftOut.from_dict(result.left_out) for result in results if result.left_out)


def _write_record(job: Job, output: Place, manifest: Manifest, results: list[UnitResult]) -> None:
    """Say for a person what the data set is and what was left out of each source, with examples."""
    left_out = {
        source: _left_out(result for result in results if result.source == source)
        for source in dict.fromkeys(result.source for result in results)
    }
    told = {
        source: {
            "reasons": {
                reason: {"count": count, "examples": one.examples.get(reason, [])}
                for reason, count in sorted(one.reasons.items())
            },
            "broken_files": sorted(set(one.files)),
        }
        for source, one in left_out.items()
    }
    (output / LEFT_OUT_NAME).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    (output / CARD_NAME).write_text(data_card(job.name, job.prepare, manifest, left_out))


def _tell_units(tell: ProgressCallback, results: Iterable[UnitResult], total: int) -> None:
    counts = [result.counts for result in results]
    documents = sum(count["documents"] + count["held_out_documents"] for count in counts)
    tokens = sum(count["tokens"] + count["held_out_tokens"] for count in counts)
    tell(PrepareProgress("tokenizing", len(counts), total, documents, tokens))


def _manifest(job: Job, output: Place, results: list[UnitResult]) -> Manifest:
    train = [result.train for result in results if result.train is not None]
    held_out = [result.held_out for result in results if result.held_out is not None]
    if not train and not held_out:
        raise _no_documents()
    if not train:
        raise DataError(
            f"all documents fell to the held-out side (held_out={job.prepare.held_out})",
            hint="lower prepare.held_out, or give more documents: the split is by whole document",
        )
    sources: dict[str, dict[str, int]] = {}
    for result in results:
        counts = sources.setdefault(result.source, {})
        for key, value in result.counts.items():
            counts[key] = counts.get(key, 0) + value
    _, facts = load_tokenizer(output / TOKENIZER_FOLDER)
    return make_manifest(
        sequence_length=job.prepare.sequence_length,
        vocab_size=facts.vocab_size,
        tokenizer=facts.fingerprint,
        eos_id=facts.eos_id,
        train=train,
        held_out=held_out,
        train_tokens=sum(counts["tokens"] for counts in sources.values()),
        held_out_tokens=sum(counts["held_out_tokens"] for counts in sources.values()),
        held_out_bytes=sum(counts["held_out_bytes"] for counts in sources.values()),
        sources=sources,
        settings=shaping_settings(job),
    )


def _check_shared(output: Place, manifest: Manifest) -> None:
    """Tasks on other nodes may have written to disks of their own."""
    try:
        check_shards(output, manifest)
    except DataError as error:
        raise StorageError(
            f"{output.url} is not the same folder on every node: {error}",
            hint="set prepare.output (or storage) to a bucket or a folder that all nodes share",
        ) from error


def _no_documents() -> DataError:
    return DataError(
        "the sources hold no document: every file is empty, or every document was left out",
        hint="check prepare.sources (glob, column, document)",
    )


def _report(
    manifest: Manifest, output: Place, seconds: float, *, already_done: bool = False, resumed_units: int = 0
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
