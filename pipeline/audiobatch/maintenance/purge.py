"""Delete personal data from an output folder: audio, transcripts and texts; counts and costs stay.

    texts in the ledger → files → spooled replies → lists of earlier runs → reports

The ledger comes first: after a purge that was killed, `verify` reports files without a result, and the same purge
deletes them. Inputs are the user's own and are not touched.
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
#: Columns with personal data, beside a table's own (`in.…`) and parsed answers (`reply.…`).
_PERSONAL_COLUMNS = frozenset(
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
#: Reports that are written again, or would still have what was purged.
_REPORTS = ("manifest.xlsx", "report.html", "manifest.parquet", "manifest.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What a purge deleted."""

    items: int
    files: int


def parse_age(text: str) -> timedelta:
    """Read `30d`, `12h` or `6w`.

    Raises:
        ConfigError: it is not such a time.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--older-than {text!r}: give hours, days or weeks, as in 12h, 30d, 6w")
    return timedelta(hours=int(match[1]) * _HOURS[match[2]])


def select_items(
    ledger: Ledger, *, item_ids: Collection[str] = (), older_than: timedelta | None = None
) -> frozenset[str]:
    """Return the ids of the items to purge.

    Args:
        ledger: of the folder.
        item_ids: only these items; empty: all.
        older_than: only items all of whose results are older; None: any.

    Raises:
        ConfigError: there is no such item.
    """
    last: dict[str, datetime] = {}
    for outcome in ledger.reader.all_outcomes():
        last[outcome.item_id] = max(last.get(outcome.item_id, outcome.finished_at), outcome.finished_at)
    known = {record.source.item_id for record in ledger.reader.recorded()} | last.keys()
    for item_id in item_ids:
        if item_id not in known:
            raise ConfigError(f"--item {item_id!r}: there is no such item in this folder")
    wanted = set(item_ids) or known
    if older_than is not None:
        before = datetime.now(UTC) - older_than
        wanted = {item_id for item_id in wanted if item_id in last and last[item_id] < before}
    return frozenset(wanted)


def purge(storage: Storage, ledger: Ledger, spool: Spool, spec: JobSpec, item_ids: frozenset[str]) -> Purged:
    """Delete the personal data of these items; the caller must hold the folder's lock.

    Raises:
        StorageError: something could not be deleted; the same purge continues.
    """
    paths = {path for path in _paths_of(ledger, item_ids) if storage.exists(path)}
    ledger.writer.purge_texts(sorted(item_ids))
    paths.update(_unrecorded(storage, ledger, item_ids))
    for path in sorted(paths):
        storage.delete(path)
    for entry in spool.entries():
        if entry.record["outcome"]["item_id"] in item_ids:
            entry.path.unlink()
    ledger.writer.shrink()
    _blank_run_lists(storage, item_ids)
    for name in (*_REPORTS, *storage.walk(PARTS_FOLDER)):
        storage.delete(name)
    # Deleted before it is written again, so that nothing is carried over from it.
    storage.delete(Views.MANIFEST)
    Views(storage, ledger, spec, run_id=None).write_all()
    for top in RESULT_FOLDERS:
        storage.prune(top)
    return Purged(items=len(item_ids), files=len(paths))


def _paths_of(ledger: Ledger, item_ids: frozenset[str]) -> Iterator[str]:
    for outcome in ledger.reader.all_outcomes():
        if outcome.item_id in item_ids:
            yield from files_of(outcome)
            for ending in RAW_ENDINGS:
                yield output_path(outcome.item_id, folder="replies", ending=ending, turn=outcome.turn)
    for outcome in ledger.reader.all_outcomes(earlier=True):
        if outcome.item_id in item_ids:
            yield from (version_path(path, outcome.version) for path in files_of(outcome))


def _unrecorded(storage: Storage, ledger: Ledger, item_ids: frozenset[str]) -> Iterator[str]:
    """Find files of results without a record by their names."""
    everything = item_ids >= {record.source.item_id for record in ledger.reader.recorded()}
    stems = _stems_of(ledger, item_ids)
    for top in RESULT_FOLDERS:
        for relative in storage.walk(top):
            name = relative.removeprefix(UNRECORDED + "/")
            name = re.sub(rf"^{VERSIONS}/v\d+/", "", name).partition("/")[2]
            if everything or _stem_of(name) in stems or name in stems:
                yield relative


def _stems_of(ledger: Ledger, item_ids: frozenset[str]) -> set[str]:
    """Return the names of these items' files without folder and ending, also of their parts and transcriptions."""
    part_counts = ledger.reader.parts_called()
    ids = list(item_ids)
    for item_id in item_ids:
        ids += [part_id(item_id, number) for number in range(1, part_counts.get(item_id, 0) + 1)]
        ids += [transcription_id(item_id, kind) for kind in PartKind]
    stems = {output_path(file_id, folder="audio", ending=".bin").removesuffix(".bin") for file_id in ids}
    stems = {stem.partition("/")[2] for stem in stems}
    return stems | {stem.removesuffix(ending) for stem in stems for ending in OUTPUT_ENDINGS}


def _stem_of(name: str) -> str:
    """Return the stem of a file's name, also of the partial reply that a killed run left: `anna.bin.part`."""
    return re.sub(r"(\.t\d+)?(\.part\d+)?\.[a-z0-9]+$", "", name.removesuffix(".part"))


def _blank_run_lists(storage: Storage, item_ids: frozenset[str]) -> None:
    """Empty the personal columns of these items in the lists of earlier runs."""
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
            if name in _PERSONAL_COLUMNS or name.startswith(("in.", "reply.")):
                frame.loc[mine, name] = ""
        names = [str(name) for name in frame.columns]
        rows = [dict(zip(names, values, strict=True)) for values in frame.itertuples(index=False, name=None)]
        with storage.open_binary_atomic(relative) as out:
            write_csv([rows], out, columns=names)
