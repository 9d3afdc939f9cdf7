"""Replies that were paid for and could not be written: kept in the spool, brought home by the next run.

A kept reply is its files and a record: the outcome as it is to stand in the ledger, the end of its call, and which
of the files are which. Whoever brings it home does what the run would have done, in the same order.
"""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pipeline.errors import ErrorType
from pipeline.model import Outcome, Status
from pipeline.store.ledger import AttemptEnd
from pipeline.store.ledger_parts import PartKind, PartOutcome
from pipeline.store.ledger_rows import outcome_from_row, outcome_to_row
from pipeline.store.versions import clear, set_aside

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.model import SavedFile
    from pipeline.store.ledger import Ledger
    from pipeline.store.spool import Spool, SpoolEntry
    from pipeline.store.storage import Storage

log = logging.getLogger(__name__)

#: The outcome's fields that name a file.
ROLES = ("audio", "transcript_file", "raw_reply")


def keep_elsewhere(
    spool: Spool,
    outcome: Outcome,
    end: AttemptEnd | None,
    files: list[tuple[str, bytes]],
    roles: Mapping[str, str | None],
    *,
    part: PartOutcome | None = None,
) -> Path:
    """Keep what could not be written to the output.

    Args:
        spool: the kept place.
        outcome: as it would stand in the ledger; its files are those that are on disk already.
        end: of the call that decided it, where that is not in the ledger yet.
        files: those that are not on disk, as (path, bytes).
        roles: which path is `audio`, `transcript_file` or `raw_reply`.
        part: whose outcome it is, where it is that of a part of a long recording.

    Raises:
        StorageError: it could not be kept here either.
    """
    record = {
        "outcome": outcome_to_row(outcome),
        "end": None if end is None else _end_to_json(end),
        "roles": {role: path for role, path in roles.items() if path},
        "part": None if part is None else [part.part, part.start_s, part.end_s],
    }
    place = spool.keep(outcome.item_id, files, record)
    log.warning("%s: kept at %s; the next run brings it home", outcome.item_id, place)
    return place


def bring_home(spool: Spool, storage: Storage, ledger: Ledger) -> int:
    """Write kept replies to the output and the ledger; the kept copy goes only after both are on disk.

    Returns:
        How many there were.

    Raises:
        StorageError: the output still cannot be written.
    """

    def make_room(entry: SpoolEntry) -> None:
        if entry.record.get("part"):
            return
        coming, _ = _read(entry)
        if (known := _in_its_place(ledger, coming)) is not None:
            set_aside(storage, known)

    def record(entry: SpoolEntry, saved: list[SavedFile]) -> None:
        coming, end = _read(entry)
        place = entry.record.get("part")
        known = None if place else _in_its_place(ledger, coming)
        files = {file.path: file for file in saved}
        roles: Mapping[str, str] = entry.record["roles"]
        written: dict[str, Any] = {role: files[path] for role, path in roles.items() if path in files}
        coming = replace(coming, **written)
        if place:
            number, start_s, end_s = place
            part = PartOutcome(kind=PartKind.REPLY, part=number, start_s=start_s, end_s=end_s, outcome=coming)
            ledger.record_part_now(part, end)
            return
        if known is not None:
            coming = replace(coming, version=max(coming.version, known.version + 1))
            clear(storage, known, keep=[file.path for role in ROLES if (file := getattr(coming, role))])
        ledger.record_outcome_now(coming, end, superseded=known)
        log.info("%s turn %d: brought home", coming.item_id, coming.turn)

    return len(spool.bring_home(storage, record, first=make_room))


def _in_its_place(ledger: Ledger, coming: Outcome) -> Outcome | None:
    """Another success in the place of the one that comes; None also where that one is home already."""
    known = ledger.outcome(coming.item_id, coming.turn)
    if known is None or known.status is not Status.SUCCEEDED:
        return None
    itself = (known.run_id, known.request_id, known.started_at) == (
        coming.run_id,
        coming.request_id,
        coming.started_at,
    )
    return None if itself else known


def _read(entry: SpoolEntry) -> tuple[Outcome, AttemptEnd | None]:
    """The record, also one that an earlier version kept: a column that it did not know has its default."""
    row: dict[str, Any] = entry.record["outcome"]
    known = {field.name for field in fields(Outcome)} | {"kept_as"}
    return outcome_from_row(_DEFAULTS | {name: row[name] for name in row if name in known}), _end_from_json(
        entry.record["end"]
    )


_DEFAULTS = outcome_to_row(
    Outcome(
        item_id="",
        turn=1,
        fingerprint="",
        status=Status.UNKNOWN,
        run_id="",
        started_at=datetime.fromtimestamp(0, UTC),
        finished_at=datetime.fromtimestamp(0, UTC),
    )
)


def _end_to_json(end: AttemptEnd) -> dict[str, Any]:
    return {
        "attempt_id": end.attempt_id,
        "state": end.state.value,
        "finished_at": end.finished_at.isoformat(),
        "error_type": end.error_type.value if end.error_type else None,
        "request_id": end.request_id,
        "cost_usd": None if end.cost_usd is None else str(end.cost_usd),
    }


def _end_from_json(kept: Mapping[str, Any] | None) -> AttemptEnd | None:
    if kept is None:
        return None
    return AttemptEnd(
        attempt_id=kept["attempt_id"],
        state=Status(kept["state"]),
        finished_at=datetime.fromisoformat(kept["finished_at"]),
        error_type=ErrorType(kept["error_type"]) if kept["error_type"] else None,
        request_id=kept["request_id"],
        cost_usd=None if kept["cost_usd"] is None else Decimal(kept["cost_usd"]),
    )
