"""The files that people read, made from the ledger: views, never the truth; they can be made again at any time.

manifest.csv first, whose rows are counted as they pass; then what the job wants beside it: workbook, page, JSON
Lines, Parquet. What a reviewer added to a manifest is carried over, and a file that is open in another program
is never a failure: the new one is written beside it.

Nothing is read or written again that nobody has changed. A workbook of 100 000 rows takes a minute to read or to
write. Whether it has to be is told by its size and time, and by the hash of the manifest whose rows it shows; both
are kept in the ledger.
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
from audiobatch.reports.carry_over import Keeper, Kept, merge_kept, without_applied
from audiobatch.reports.columns import choose_columns
from audiobatch.reports.exports import need_pyarrow, write_jsonl, write_parquet, write_parts
from audiobatch.reports.manifest import cell_text, write_csv
from audiobatch.reports.page import write_page
from audiobatch.reports.rows import manifest_rows, own_columns
from audiobatch.reports.staging import Placed, desk_of, draft_beside, place
from audiobatch.reports.totals import Totals
from audiobatch.reports.waveforms import Drawing
from audiobatch.reports.workbook import write_workbook

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.reports.review import RowKey
    from audiobatch.storage.local import Storage

#: What `table_rows` gives of a row.
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
#: What the workbook shows whatever columns were chosen: without them it could not be reviewed.
_FOR_REVIEW = ("item_id", "turn", "review", "review_note", "version")


class Views:
    """Writes a folder's reports. Every method may be called from any thread."""

    MANIFEST: ClassVar = "manifest.csv"
    WORKBOOK: ClassVar = "manifest.xlsx"
    PAGE: ClassVar = "report.html"
    #: During a run the manifest is refreshed no more often than this.
    FRESH_EVERY_S: ClassVar = 30.0
    #: At a run's end, drawing waveforms takes no longer than this.
    DRAWING_S: ClassVar = 20.0

    def __init__(self, storage: Storage, ledger: Ledger, spec: JobSpec, run_id: str | None) -> None:
        """`run_id`: the run whose own list is written too; None outside a run."""
        self._storage = storage
        self._desk = desk_of(storage)
        self._folder = self._desk.folder
        self._ledger = ledger
        self._spec = spec
        self._run_id = run_id
        self._written = Written.recall(ledger, self._desk.stamp)
        self._keeper = Keeper([self._folder / self.MANIFEST, self._folder / self.WORKBOOK])
        if not self._written.added:
            for name in (self.MANIFEST, self.WORKBOOK):
                if self._written.is_untouched(name):
                    self._desk.leave(name)
                    self._keeper.wrote(self._folder / name)
        self._writing = threading.Lock()
        self._settled: set[RowKey] = set()
        self._aside: Path | None = None
        self.manifest = self._folder / self.MANIFEST

    def settle(self, rows: Collection[RowKey]) -> None:
        """A reviewer's file was applied that speaks for these rows: what older files say of them is void."""
        self._settled.update(rows)

    def check(self) -> None:
        """Raises: ConfigError: the job asks for a column or a kind of report that there cannot be."""
        if self._spec.manifest_columns:
            with self._writing:
                self._columns([*self._extra(), *self._kept().columns])
        if "manifest.parquet" in self._names():
            need_pyarrow()

    def write_all(self, *, again: bool = False, drawing_s: float | None = None) -> tuple[str, ...]:
        """Every report, as the ledger stands now.

        Args:
            again: also those that would come out as they are.
            drawing_s: how long new waveforms may take; None: as long as it takes.

        Returns:
            What a person should be told, one sentence each.

        Raises:
            StorageError: the system refuses a file, or the ledger cannot be read.
        """
        with self._writing, _as_storage_error():
            return self._write_all(again=again, drawing_s=drawing_s)

    def _write_all(self, *, again: bool, drawing_s: float | None) -> tuple[str, ...]:
        if self._run_id is not None:
            self._write_own_list(self._run_id)
        names = self._names()
        looks = digest(self._spec.model_dump(mode="json"))
        if not again and self._ledger.shown() == looks and self._are_untouched([self.MANIFEST, *names]):
            return ()
        totals = Totals()
        placed, hashed = self._write_csv(totals)
        notes = [*self._kept().notes, *placed.notes]
        is_whole = not notes
        shown = digest([hashed, looks])
        if again or placed.path.name != self.MANIFEST or not self._written.shows(shown, names):
            notes += self._write_others(totals, drawing_s)
            kept = self._kept()
            self._written.now(
                shown, [self.manifest.name, *names], added=bool(kept.columns or kept.marks or kept.notes)
            )
            self._written.remember(self._ledger)
        if is_whole:
            self._ledger.mark_shown(looks)
        return tuple(dict.fromkeys(notes))

    def _are_untouched(self, names: Sequence[str]) -> bool:
        return all(map(self._written.is_untouched, names))

    def write_manifest(self) -> tuple[str, ...]:
        """The CSV alone; what a person should be told of it."""
        with self._writing, _as_storage_error():
            return self._write_csv(Totals())[0].notes

    def write_parts(self, rows: int, *, parquet: bool) -> list[str]:
        """The manifest in files of so many rows (`exports.py`); their names.

        Raises:
            ConfigError: pyarrow is not installed.
        """
        if parquet:
            need_pyarrow()
        with self._writing, _as_storage_error():
            kept = self._kept()
            extra = [*self._extra(), *kept.columns]
            names: list[str] = []
            for ending, write in (("csv", write_csv), *((("parquet", write_parquet),) if parquet else ())):
                names += write_parts(
                    self._rows(kept),
                    self._storage,
                    ending,
                    write,
                    rows=rows,
                    extra_columns=extra,
                    columns=self._columns(extra),
                )
        return names

    def paths(self) -> list[Path]:
        """The CSV and what is written beside it."""
        return [self.manifest, *(self._folder / name for name in self._names())]

    def _names(self) -> list[str]:
        """What the job wants beside the CSV, as file names; and what was once asked for is kept up to date."""
        names = {
            "xlsx": self.WORKBOOK,
            "html": self.PAGE,
            "jsonl": "manifest.jsonl",
            "parquet": "manifest.parquet",
        }
        once = [one for one in ("jsonl", "parquet") if self._desk.exists(names[one])]
        return [names[one] for one in dict.fromkeys((*self._spec.reports, *once))]

    def _write_csv(self, totals: Totals) -> tuple[Placed, str]:
        kept = self._kept()
        extra = [*self._extra(), *kept.columns]
        target = self._folder / self.MANIFEST
        with draft_beside(target) as draft:
            with draft.open("wb") as file:
                out = Hashing(file)
                rows = totals.watching(self._rows(kept))
                write_csv(rows, out, extra_columns=extra, columns=self._columns(extra))  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            placed = place(draft, target)
        if self._aside is not None and self._aside != placed.path:
            self._aside.unlink(missing_ok=True)
        self._aside = placed.path if placed.path != target else None
        self.manifest = placed.path
        self._keeper.wrote(placed.path)
        self._desk.hand_in(placed.path)
        return placed, out.hexdigest()

    def _write_own_list(self, run_id: str) -> None:
        extra = self._extra()
        rows = manifest_rows(self._ledger.recorded(touched_by=run_id), self._spec, run_id=run_id)
        with self._storage.open_binary_atomic(f"runs/{run_id}.csv") as out:
            write_csv(rows, out, extra_columns=extra)

    def _write_others(self, totals: Totals, drawing_s: float | None) -> list[str]:
        notes: list[str] = []
        for name in self._names():
            kept = self._kept()
            extra = [*self._extra(), *kept.columns]
            columns = self._columns(extra)
            path = self._folder / name
            match path.suffix:
                case ".xlsx":
                    book = write_workbook(
                        self._rows(kept),
                        path,
                        extra_columns=extra,
                        columns=columns and list(dict.fromkeys((*columns, *_FOR_REVIEW))),
                        settings=self._settings(),
                    )
                    self._keeper.wrote(book.path)
                    self._desk.hand_in(book.path)
                    notes += book.notes
                case ".html":
                    self._desk.bring_pages()
                    drawing = Drawing(drawing_s, self._desk.borrowed)
                    page = write_page(
                        self._rows(kept), self._folder, totals, job_key=job_id(self._storage), draw=drawing
                    )
                    self._desk.hand_in_pages()
                    notes += [*page.notes, *drawing.notes(self._storage.root)]
                case _:
                    write = write_jsonl if path.suffix == ".jsonl" else write_parquet
                    with draft_beside(path) as draft:
                        with draft.open("wb") as out:
                            write(self._rows(kept), out, extra_columns=extra, columns=columns)
                        placed = place(draft, path)
                    self._desk.hand_in(placed.path)
                    notes += placed.notes
        return notes

    def _rows(self, kept: Kept) -> Iterator[Sequence[dict[str, Any]]]:
        rows = manifest_rows(self._ledger.recorded(), self._spec, output=self._storage.root)
        return merge_kept(rows, kept)  # type: ignore[return-value]

    def _kept(self) -> Kept:
        self._desk.bring(self.MANIFEST, self.WORKBOOK)
        kept = self._keeper.now()
        return without_applied(kept, self._ledger.past_marks(), self._settled) if kept.marks else kept

    def _extra(self) -> list[str]:
        fields = answer_fields(self._spec.fields)
        return [*own_columns(self._ledger.row_texts()), *(fields.columns if fields else ())]

    def _columns(self, extra: Sequence[str]) -> tuple[str, ...] | None:
        wanted = self._spec.manifest_columns
        return choose_columns(wanted, extra) if wanted else None

    def _settings(self) -> dict[str, object]:
        spec = self._spec.model_dump(mode="json")
        return {name: value for name, value in spec.items() if value not in (None, "", [], False)}

    def table_rows(self, limit: int) -> list[dict[str, str]]:
        """This run's first rows with few columns, cells cut short."""
        found: list[dict[str, str]] = []
        records = self._ledger.recorded(touched_by=self._run_id)
        for chunk in manifest_rows(records, self._spec, run_id=self._run_id):
            for row in chunk:
                if len(found) >= limit:
                    return found
                found.append(
                    {name: cell_text(row.get(name))[:_TABLE_CELL_CHARACTERS] for name in _TABLE_COLUMNS}
                )
        return found


@contextmanager
def _as_storage_error() -> Iterator[None]:
    """Raises: StorageError: in place of what the system said."""
    try:
        yield
    except OSError as failed:
        raise StorageError(f"the reports could not be written: {failed}") from failed


_KEY = "reports"


@dataclass(slots=True, kw_only=True)
class Written:
    """The reports as we left them.

    Attributes:
        rows: hash of the manifest's bytes and of what else the reports show.
        added: whether they hold anything that a reviewer added.
        stamps: size and time of each, by name; in a store, size and version.
        stamp_of: the same of a report as it is now.
    """

    rows: str = ""
    added: bool = True
    stamps: dict[str, list[int]] = field(default_factory=dict)
    stamp_of: Callable[[str], list[int] | None]

    @classmethod
    def recall(cls, ledger: Ledger, stamp_of: Callable[[str], list[int] | None]) -> Written:
        """As noted in the ledger; `stamp_of` tells the state that a report of the output is in now."""
        text = ledger.noted(_KEY)
        return cls(**(orjson.loads(text) if text else {}), stamp_of=stamp_of)

    def remember(self, ledger: Ledger) -> None:
        record = {"rows": self.rows, "added": self.added, "stamps": self.stamps}
        ledger.note(_KEY, orjson.dumps(record).decode())

    def is_untouched(self, name: str) -> bool:
        """Whether the report is there and as we left it."""
        stamp = self.stamp_of(name)
        return stamp is not None and stamp == self.stamps.get(name)

    def shows(self, rows: str, names: Iterable[str]) -> bool:
        """Whether all these reports are as we left them, and show just these rows."""
        return rows == self.rows and all(map(self.is_untouched, names))

    def now(self, rows: str, names: Iterable[str], *, added: bool) -> None:
        """Take down what was written just now."""
        self.rows, self.added = rows, added
        stamps = {name: self.stamp_of(name) for name in names}
        self.stamps = {name: stamp for name, stamp in stamps.items() if stamp is not None}


class Hashing:
    """A binary file that knows the hash of what was written to it."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._out.write(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
