"""Personal data taken out of a folder: sound, transcripts, texts; what was counted and what it cost stays.

    the words in the ledger → the files → kept replies → the lists of earlier runs → the reports

The ledger comes first: a purge that is killed on the way is found by `verify` as files that belong to nothing, and
the same purge again takes them. Inputs are the user's own and are left alone.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from audiobatch.errors import ConfigError
from audiobatch.model import PartKind
from audiobatch.reports.exports import PARTS_FOLDER
from audiobatch.reports.manifest import read_manifest, write_csv
from audiobatch.reports.views import Views
from audiobatch.storage.names import OUTPUT_ENDINGS, RAW_ENDINGS, output_path, part_id, transcription_id
from audiobatch.storage.versions import RESULT_FOLDERS, UNRECORDED, VERSIONS, files_of, version_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool

_AGE = re.compile(r"(\d+)\s*([hdw])")
_HOURS = {"h": 1, "d": 24, "w": 168}
#: Columns that hold what was said, asked or sent, beside a table's own (`in.…`) and the parsed answers (`reply.…`).
_WORDS = frozenset(
    {
        "prompt",
        "transcript",
        "input_transcript",
        "error_message",
        "review_note",
        "audio_file",
        "transcript_file",
    }
)
#: Reports that are made again, or would keep what was purged.
_REPORTS = ("manifest.xlsx", "report.html", "manifest.parquet", "manifest.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What went."""

    items: int
    files: int
    size_bytes: int
    kept_replies: int


def age(text: str) -> timedelta:
    """`30d`, `12h`, `6w`.

    Raises:
        ConfigError: it is none of these.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--older-than {text!r}: give hours, days or weeks, as in 12h, 30d, 6w")
    return timedelta(hours=int(match[1]) * _HOURS[match[2]])


def chosen(
    ledger: Ledger, *, item_ids: Collection[str] = (), older_than: timedelta | None = None
) -> frozenset[str]:
    """The items that a purge takes: these, or all; and of them those whose results are all as old as that.

    Raises:
        ConfigError: there is no such item.
    """
    last: dict[str, datetime] = {}
    for outcome in ledger.all_outcomes():
        last[outcome.item_id] = max(last.get(outcome.item_id, outcome.finished_at), outcome.finished_at)
    known = {one.source.item_id for one in ledger.recorded()} | last.keys()
    for item_id in item_ids:
        if item_id not in known:
            raise ConfigError(f"--item {item_id!r}: there is no such item in this folder")
    wanted = set(item_ids) or known
    if older_than is not None:
        before = datetime.now(UTC) - older_than
        wanted = {item_id for item_id in wanted if item_id in last and last[item_id] < before}
    return frozenset(wanted)


def purge(storage: Storage, ledger: Ledger, spool: Spool, spec: JobSpec, item_ids: frozenset[str]) -> Purged:
    """Take out all that these items said and were told. Only for the holder of the folder's lock.

    Raises:
        StorageError: something could not be deleted; the same purge again goes on.
    """
    paths = {path for path in _paths_of(ledger, item_ids) if storage.exists(path)}
    ledger.forget_words(sorted(item_ids))
    size_bytes = 0
    paths.update(_unrecorded(storage, ledger, item_ids))
    for path in sorted(paths):
        size_bytes += storage.size(path)
        storage.delete(path)
    kept = [entry for entry in spool.entries() if entry.record["outcome"]["item_id"] in item_ids]
    for entry in kept:
        entry.path.unlink()
    ledger.shrink()
    _blank_run_lists(storage, item_ids)
    for name in (*_REPORTS, *storage.walk(PARTS_FOLDER)):
        storage.delete(name)
    # From nothing: what a manifest held before is not carried over.
    storage.delete(Views.MANIFEST)
    Views(storage, ledger, spec, run_id=None).write_all()
    for top in RESULT_FOLDERS:
        storage.prune(top)
    return Purged(items=len(item_ids), files=len(paths), size_bytes=size_bytes, kept_replies=len(kept))


def _paths_of(ledger: Ledger, item_ids: frozenset[str]) -> Iterator[str]:
    for outcome in ledger.all_outcomes():
        if outcome.item_id in item_ids:
            yield from files_of(outcome)
            for ending in RAW_ENDINGS:
                yield output_path(outcome.item_id, folder="replies", ending=ending, turn=outcome.turn)
    for outcome in ledger.all_outcomes(earlier=True):
        if outcome.item_id in item_ids:
            yield from (version_path(path, outcome.version) for path in files_of(outcome))


def _unrecorded(storage: Storage, ledger: Ledger, item_ids: frozenset[str]) -> Iterator[str]:
    """Files of results that were never recorded, or whose record an earlier purge has taken: by their names."""
    everything = item_ids >= {one.source.item_id for one in ledger.recorded()}
    stems = _stems_of(ledger, item_ids)
    for top in RESULT_FOLDERS:
        for relative in storage.walk(top):
            own = relative.removeprefix(UNRECORDED + "/")
            own = re.sub(rf"^{VERSIONS}/v\d+/", "", own).partition("/")[2]
            if everything or _stem_of(own) in stems or own in stems:
                yield relative


def _stems_of(ledger: Ledger, item_ids: frozenset[str]) -> set[str]:
    """What these items' files are called, without folder and ending; parts and transcriptions have their own."""
    called = ledger.parts_called()
    ids = [*item_ids, *(part_id(one, n) for one in item_ids for n in range(1, called.get(one, 0) + 1))]
    ids += [transcription_id(item_id, kind) for item_id in item_ids for kind in PartKind]
    stems = {output_path(one, folder="audio", ending=".bin").removesuffix(".bin") for one in ids}
    stems = {stem.partition("/")[2] for stem in stems}
    return stems | {stem.removesuffix(ending) for stem in stems for ending in OUTPUT_ENDINGS}


def _stem_of(name: str) -> str:
    """Of a file's name, also where a kill left it as the copy of a reply that was coming: `anna.bin.part`."""
    return re.sub(r"(\.t\d+)?(\.part\d+)?\.[a-z0-9]+$", "", name.removesuffix(".part"))


def _blank_run_lists(storage: Storage, item_ids: frozenset[str]) -> None:
    """What each run did stays; what was said in it goes."""
    for relative in list(storage.walk("runs")):
        if not relative.endswith(".csv"):
            continue
        with tempfile.TemporaryDirectory(prefix="audiobatch-") as scratch:
            path = Path(scratch, "run.csv")
            path.write_bytes(storage.read(relative))
            frame = read_manifest(path)
        mine = frame["item_id"].isin(sorted(item_ids))
        if not mine.any():
            continue
        for name in frame.columns:
            if name in _WORDS or name.startswith(("in.", "reply.")):
                frame.loc[mine, name] = ""
        names = [str(name) for name in frame.columns]
        rows = [dict(zip(names, values, strict=True)) for values in frame.itertuples(index=False, name=None)]
        with storage.open_binary_atomic(relative) as out:
            write_csv([rows], out, columns=names)
