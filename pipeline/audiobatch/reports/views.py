"""Write the reports that people read from the ledger. They can be written again at any time.

manifest.csv comes first, and its rows are counted on the way; then the reports that the job asks for beside it:
workbook, page, JSON Lines, Parquet. A reviewer's additions to a manifest are carried over. A report that is open in
another program is not a failure: the new one is written beside it.

Nothing is read or written again unless it changed, since reading or writing a workbook of 100 000 rows takes a
minute. The ledger has the size and time of each report as it was written, and the hash of the manifest whose rows
it shows.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, ClassVar

import orjson

from audiobatch.answer_schema import answer_fields
from audiobatch.errors import StorageError
from audiobatch.ledger.job_file import job_id
from audiobatch.planning.items import digest
from audiobatch.reports.carry_over import Additions, AdditionsReader, drop_settled_marks, merge_additions
from audiobatch.reports.columns import choose_columns
from audiobatch.reports.exports import need_pyarrow, write_jsonl, write_parquet, write_parts
from audiobatch.reports.manifest import cell_text, write_csv
from audiobatch.reports.page import write_page
from audiobatch.reports.rows import manifest_rows, own_columns
from audiobatch.reports.staging import WrittenFile, draft_beside, replace_with, staging_for
from audiobatch.reports.totals import Totals
from audiobatch.reports.waveforms import WaveformDrawer
from audiobatch.reports.workbook import write_workbook

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.reports.review import RowKey
    from audiobatch.storage.local import Storage

#: Columns of the short table that `table_rows` returns, and the longest text of its cells.
_TABLE_COLUMNS = (
    "item_id",
    "turn",
    "status",
    "transcript",
    "audio_file",
    "checks",
    "cost_usd",
    "error_message",
)
_TABLE_CELL_CHARACTERS = 200
#: Columns that the workbook has whatever columns were chosen: a review needs them.
_REVIEW_COLUMNS = ("item_id", "turn", "review", "review_note", "version")


class Views:
    """Writes a folder's reports. Every method may be called from any thread."""

    MANIFEST: ClassVar = "manifest.csv"
    WORKBOOK: ClassVar = "manifest.xlsx"
    PAGE: ClassVar = "report.html"
    #: Seconds between two refreshes of the manifest during a run, at least.
    REFRESH_EVERY_S: ClassVar = 30.0
    #: Seconds that drawing waveforms may take at the end of a run.
    DRAWING_S: ClassVar = 20.0

    def __init__(self, storage: Storage, ledger: Ledger, spec: JobSpec, run_id: str | None) -> None:
        """Write to this output; for a run with a `run_id`, write `runs/<run_id>.csv` too."""
        self._storage = storage
        self._staging = staging_for(storage)
        self._folder = self._staging.folder
        self._ledger = ledger
        self._spec = spec
        self._run_id = run_id
        self._state = ReportState.load(ledger, self._staging.stamp)
        self._additions_reader = AdditionsReader([self._folder / self.MANIFEST, self._folder / self.WORKBOOK])
        if not self._state.has_additions:
            for name in (self.MANIFEST, self.WORKBOOK):
                if self._state.is_unchanged(name):
                    self._staging.mark_current(name)
                    self._additions_reader.mark_written(self._folder / name)
        self._lock = threading.Lock()
        self._settled: set[RowKey] = set()
        self._substitute: Path | None = None  # written beside a manifest that another program holds open
        self.manifest = self._folder / self.MANIFEST

    def settle(self, rows: Collection[RowKey]) -> None:
        """Ignore what older files say about these rows: a reviewer's file that has them was applied."""
        self._settled.update(rows)

    def check(self) -> None:
        """Check that the reports that the job asks for can be written.

        Raises:
            ConfigError: there is no such column, or pyarrow is not installed.
        """
        if self._spec.manifest_columns:
            with self._lock:
                self._columns([*self._extra_columns(), *self._additions().columns])
        if "manifest.parquet" in self._names():
            need_pyarrow()

    def write_all(self, *, again: bool = False, drawing_s: float | None = None) -> tuple[str, ...]:
        """Write every report that the ledger's present state changes.

        Args:
            again: write also those that would not change.
            drawing_s: seconds that drawing new waveforms may take; None: no limit.

        Returns:
            What to tell the user, one sentence each.

        Raises:
            StorageError: a file cannot be written, or the ledger cannot be read.
        """
        with self._lock, _as_storage_error():
            return self._write_all(again=again, drawing_s=drawing_s)

    def _write_all(self, *, again: bool, drawing_s: float | None) -> tuple[str, ...]:
        if self._run_id is not None:
            self._write_run_list(self._run_id)
        names = self._names()
        settings = digest(self._spec.model_dump(mode="json"))
        if (
            not again
            and self._ledger.reader.reports_shown() == settings
            and self._are_unchanged([self.MANIFEST, *names])
        ):
            return ()
        totals = Totals()
        written, manifest_hash = self._write_csv(totals)
        notes = [*self._additions().notes, *written.notes]
        is_complete = not notes
        content = digest([manifest_hash, settings])
        if again or written.path.name != self.MANIFEST or not self._state.shows(content, names):
            notes += self._write_others(totals, drawing_s)
            additions = self._additions()
            has_additions = bool(additions.columns or additions.marks or additions.notes)
            self._state.update(content, [self.manifest.name, *names], has_additions=has_additions)
            self._state.save(self._ledger)
        if is_complete:
            self._ledger.writer.mark_reports_current(settings)
        return tuple(dict.fromkeys(notes))

    def _are_unchanged(self, names: Sequence[str]) -> bool:
        return all(map(self._state.is_unchanged, names))

    def write_manifest(self) -> tuple[str, ...]:
        """Write manifest.csv alone; return what to tell the user, one sentence each."""
        with self._lock, _as_storage_error():
            return self._write_csv(Totals())[0].notes

    def write_parts(self, rows: int, *, parquet: bool) -> list[str]:
        """Write the manifest as files of at most `rows` rows each; return their names relative to the output.

        Raises:
            ConfigError: pyarrow is not installed.
        """
        if parquet:
            need_pyarrow()
        with self._lock, _as_storage_error():
            additions = self._additions()
            extra = [*self._extra_columns(), *additions.columns]
            names: list[str] = []
            for ending, write in (("csv", write_csv), *((("parquet", write_parquet),) if parquet else ())):
                names += write_parts(
                    self._rows(additions),
                    self._storage,
                    ending,
                    write,
                    rows=rows,
                    extra_columns=extra,
                    columns=self._columns(extra),
                )
        return names

    def paths(self) -> list[Path]:
        """Return the paths of manifest.csv and of the reports beside it."""
        return [self.manifest, *(self._folder / name for name in self._names())]

    def _names(self) -> list[str]:
        """Return the reports beside manifest.csv: those that the job asks for, and exports that exist already."""
        names = {
            "xlsx": self.WORKBOOK,
            "html": self.PAGE,
            "jsonl": "manifest.jsonl",
            "parquet": "manifest.parquet",
        }
        existing = [kind for kind in ("jsonl", "parquet") if self._staging.exists(names[kind])]
        return [names[kind] for kind in dict.fromkeys((*self._spec.reports, *existing))]

    def _write_csv(self, totals: Totals) -> tuple[WrittenFile, str]:
        additions = self._additions()
        extra = [*self._extra_columns(), *additions.columns]
        target = self._folder / self.MANIFEST
        with draft_beside(target) as draft:
            with draft.open("wb") as file:
                out = HashingWriter(file)
                rows = totals.count(self._rows(additions))
                write_csv(rows, out, extra_columns=extra, columns=self._columns(extra))  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            written = replace_with(draft, target)
        if self._substitute is not None and self._substitute != written.path:
            self._substitute.unlink(missing_ok=True)
        self._substitute = written.path if written.path != target else None
        self.manifest = written.path
        self._additions_reader.mark_written(written.path)
        self._staging.publish(written.path)
        return written, out.hexdigest()

    def _write_run_list(self, run_id: str) -> None:
        extra = self._extra_columns()
        rows = manifest_rows(self._ledger.reader.recorded(touched_by=run_id), self._spec, run_id=run_id)
        with self._storage.open_binary_atomic(f"runs/{run_id}.csv") as out:
            write_csv(rows, out, extra_columns=extra)

    def _write_others(self, totals: Totals, drawing_s: float | None) -> list[str]:
        notes: list[str] = []
        for name in self._names():
            additions = self._additions()
            extra = [*self._extra_columns(), *additions.columns]
            columns = self._columns(extra)
            path = self._folder / name
            match path.suffix:
                case ".xlsx":
                    book = write_workbook(
                        self._rows(additions),
                        path,
                        extra_columns=extra,
                        columns=columns and list(dict.fromkeys((*columns, *_REVIEW_COLUMNS))),
                        settings=self._settings(),
                    )
                    self._additions_reader.mark_written(book.path)
                    self._staging.publish(book.path)
                    notes += book.notes
                case ".html":
                    self._staging.fetch_pages()
                    drawer = WaveformDrawer(drawing_s, self._staging.local_copy)
                    page = write_page(
                        self._rows(additions),
                        self._folder,
                        totals,
                        job_key=job_id(self._storage),
                        draw=drawer,
                    )
                    self._staging.publish_pages()
                    notes += [*page.notes, *drawer.notes(self._storage.root)]
                case _:
                    write = write_jsonl if path.suffix == ".jsonl" else write_parquet
                    with draft_beside(path) as draft:
                        with draft.open("wb") as out:
                            write(self._rows(additions), out, extra_columns=extra, columns=columns)
                        written = replace_with(draft, path)
                    self._staging.publish(written.path)
                    notes += written.notes
        return notes

    def _rows(self, additions: Additions) -> Iterator[Sequence[dict[str, Any]]]:
        rows = manifest_rows(self._ledger.reader.recorded(), self._spec, output=self._storage.root)
        return merge_additions(rows, additions)  # type: ignore[return-value]

    def _additions(self) -> Additions:
        self._staging.fetch(self.MANIFEST, self.WORKBOOK)
        additions = self._additions_reader.read()
        if not additions.marks:
            return additions
        return drop_settled_marks(additions, self._ledger.reader.past_marks(), self._settled)

    def _extra_columns(self) -> list[str]:
        fields = answer_fields(self._spec.fields)
        return [*own_columns(self._ledger.reader.row_texts()), *(fields.columns if fields else ())]

    def _columns(self, extra: Sequence[str]) -> tuple[str, ...] | None:
        wanted = self._spec.manifest_columns
        return choose_columns(wanted, extra) if wanted else None

    def _settings(self) -> dict[str, object]:
        spec = self._spec.model_dump(mode="json")
        return {name: value for name, value in spec.items() if value not in (None, "", [], False)}

    def table_rows(self, limit: int) -> list[dict[str, str]]:
        """Return this run's first rows as a short table: few columns, long cells cut."""
        rows: list[dict[str, str]] = []
        records = self._ledger.reader.recorded(touched_by=self._run_id)
        for chunk in manifest_rows(records, self._spec, run_id=self._run_id):
            for row in chunk:
                if len(rows) >= limit:
                    return rows
                rows.append(
                    {name: cell_text(row.get(name))[:_TABLE_CELL_CHARACTERS] for name in _TABLE_COLUMNS}
                )
        return rows


@contextmanager
def _as_storage_error() -> Iterator[None]:
    """Raise a StorageError for an OSError of the block."""
    try:
        yield
    except OSError as failed:
        raise StorageError(f"the reports could not be written: {failed}") from failed


_NOTE = "reports"


@dataclass(slots=True, kw_only=True)
class ReportState:
    """The reports as they were last written.

    Attributes:
        content: hash of the manifest and of the settings that the reports show.
        has_additions: whether they contain anything that a reviewer added.
        stamps: size and time of each, by name; in a store, size and version.
        stamp_of: returns the present stamp of a report; None where there is no such report.
    """

    content: str = ""
    has_additions: bool = True
    stamps: dict[str, list[int]] = field(default_factory=dict)
    stamp_of: Callable[[str], list[int] | None]

    @classmethod
    def load(cls, ledger: Ledger, stamp_of: Callable[[str], list[int] | None]) -> ReportState:
        """Read the state from the ledger's notes."""
        text = ledger.reader.note(_NOTE)
        if not text:
            return cls(stamp_of=stamp_of)
        note = orjson.loads(text)
        return cls(
            content=note["rows"], has_additions=note["added"], stamps=note["stamps"], stamp_of=stamp_of
        )

    def save(self, ledger: Ledger) -> None:
        """Write the state to the ledger's notes."""
        note = {"rows": self.content, "added": self.has_additions, "stamps": self.stamps}
        ledger.writer.put_note(_NOTE, orjson.dumps(note).decode())

    def is_unchanged(self, name: str) -> bool:
        """Whether the report exists as it was last written."""
        stamp = self.stamp_of(name)
        return stamp is not None and stamp == self.stamps.get(name)

    def shows(self, content: str, names: Iterable[str]) -> bool:
        """Whether all these reports are unchanged and show this content."""
        return content == self.content and all(map(self.is_unchanged, names))

    def update(self, content: str, names: Iterable[str], *, has_additions: bool) -> None:
        """Record what was written just now."""
        self.content, self.has_additions = content, has_additions
        stamps = {name: self.stamp_of(name) for name in names}
        self.stamps = {name: stamp for name, stamp in stamps.items() if stamp is not None}


class HashingWriter:
    """A binary file that hashes what is written to it."""

    def __init__(self, out: IO[bytes]) -> None:
        """Write to this file."""
        self._out = out
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write and hash some bytes."""
        self._hash.update(data)
        return self._out.write(data)

    def hexdigest(self) -> str:
        """Return the SHA-256 of all bytes so far."""
        return self._hash.hexdigest()
