"""The files that people read, made from the ledger: views, never the truth; they can be made again at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pipeline.reports.manifest import cell_text, write_csv
from pipeline.reports.rows import manifest_rows, own_columns

if TYPE_CHECKING:
    from pipeline.jobspec import JobSpec
    from pipeline.store.ledger import Ledger
    from pipeline.store.storage import Storage

#: What a table in Prefect's pages shows of a row.
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


class Views:
    """Writes a folder's reports. Every method may be called from any thread."""

    MANIFEST: ClassVar = "manifest.csv"
    #: During a run the manifest is refreshed no more often than this.
    FRESH_EVERY_S: ClassVar = 30.0

    def __init__(self, storage: Storage, ledger: Ledger, spec: JobSpec, run_id: str | None) -> None:
        """`run_id`: the run whose own list is written too; None outside a run."""
        self._storage = storage
        self._ledger = ledger
        self._spec = spec
        self._run_id = run_id

    def write_all(self) -> None:
        """Every report, as the ledger stands now."""
        self.write_manifest()
        if self._run_id is not None:
            self._write(f"runs/{self._run_id}.csv", run_id=self._run_id)

    def write_manifest(self) -> None:
        self._write(self.MANIFEST)

    def _write(self, path: str, run_id: str | None = None) -> None:
        extra = own_columns(self._ledger.recorded())
        rows = manifest_rows(self._ledger.recorded(), self._spec, run_id=run_id)
        with self._storage.open_binary_atomic(path) as out:
            write_csv(rows, out, extra_columns=extra)

    def table_rows(self, limit: int) -> list[dict[str, str]]:
        """This run's first rows with few columns, cells cut short."""
        found: list[dict[str, str]] = []
        for chunk in manifest_rows(self._ledger.recorded(), self._spec, run_id=self._run_id):
            for row in chunk:
                if len(found) >= limit:
                    return found
                found.append(
                    {name: cell_text(row.get(name))[:_TABLE_CELL_CHARACTERS] for name in _TABLE_COLUMNS}
                )
        return found
