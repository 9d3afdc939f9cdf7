"""Replies that an earlier run paid for and could not write are brought home before anything is sent."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline.model import Status
from pipeline.store.artifacts import set_aside
from pipeline.store.ledger import AttemptEnd
from pipeline.store.ledger_rows import outcome_from_row

if TYPE_CHECKING:
    from pipeline.model import SavedFile
    from pipeline.store.ledger import Ledger
    from pipeline.store.spool import Spool, SpoolEntry
    from pipeline.store.storage import Storage

log = logging.getLogger(__name__)


def bring_home(spool: Spool, storage: Storage, ledger: Ledger) -> int:
    """Write kept replies to the output and the ledger; the kept copy goes only after both are on disk.

    A result in whose place one comes is set aside first, as the run would have done.

    Returns:
        How many there were.

    Raises:
        StorageError: the output still cannot be written.
    """

    def record(entry: SpoolEntry, saved: list[SavedFile]) -> None:
        files = {file.path: file for file in saved}
        kept = entry.record
        outcome = outcome_from_row(kept["outcome"])
        if files:
            outcome = replace(
                outcome,
                audio=files.get(kept["audio"] or ""),
                transcript_file=files.get(kept["transcript"] or ""),
            )
        end = AttemptEnd(
            attempt_id=kept["attempt_id"],
            state=Status.SUCCEEDED,
            finished_at=datetime.now(UTC),
            request_id=outcome.request_id,
            cost_usd=outcome.cost_usd,
        )
        ledger.record_outcome_now(outcome, end)
        log.info("%s turn %d: brought home", outcome.item_id, outcome.turn)

    for entry in spool.entries():
        coming = outcome_from_row(entry.record["outcome"])
        known = ledger.outcome(coming.item_id, coming.turn)
        if known is not None and known.status is Status.SUCCEEDED and known.version < coming.version:
            ledger.supersede_now(known)
            set_aside(storage, known)
    return len(spool.bring_home(storage, record))
