"""Replies that were paid for and could not be written: kept in the spool, brought home by the next run.

A kept reply is its files and a record: the outcome as it is to stand in the ledger, the end of its call, and which
of the files are which. Whoever brings it home does what the run would have done, in the same order.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from audiobatch.errors import ErrorType
from audiobatch.ledger.ledger import AttemptEnd
from audiobatch.ledger.rows import PartOutcome, cues_from_json, cues_to_json, outcome_from_row, outcome_to_row
from audiobatch.model import Outcome, PartKind, Status
from audiobatch.storage.versions import VERSIONS, clear, set_aside, version_path

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from audiobatch.ledger.ledger import Ledger
    from audiobatch.model import SavedFile
    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool, SpoolEntry

log = logging.getLogger(__name__)

#: The outcome's fields that name a file.
ROLES = ("audio", "transcript_file", "raw_reply")


def spool_reply(
    spool: Spool,
    outcome: Outcome,
    end: AttemptEnd | None,
    files: list[tuple[str, bytes]],
    roles: Mapping[str, str | None],
    *,
    part: PartOutcome | None = None,
    late: bool = False,
) -> Path:
    """Keep what could not be written to the output.

    Args:
        spool: the kept place.
        outcome: as it would stand in the ledger; its files are those that are on disk already.
        end: of the call that decided it, where that is not in the ledger yet.
        files: those that are not on disk, as (path, bytes).
        roles: which path is `audio`, `transcript_file` or `raw_reply`.
        part: whose outcome it is, where it is that of a part of a long recording.
        late: another run holds the item: what that one records stays, and this comes among the versions.

    Raises:
        StorageError: it could not be kept here either.
    """
    record = {
        "outcome": outcome_to_row(outcome),
        "end": None if end is None else _end_to_json(end),
        "roles": {role: path for role, path in roles.items() if path},
        "part": None if part is None else _place_of(part),
        "late": late,
    }
    place = spool.keep(outcome.item_id, files, record)
    log.warning("%s: kept at %s; the next run brings it home", outcome.item_id, place)
    return place


def replay(
    spool: Spool,
    storage: Storage,
    ledger: Ledger,
    *,
    only: Collection[str] | None = None,
) -> int:
    """Write kept replies to the output and the ledger; the kept copy goes only after both are on disk.

    On a shared ledger each item is held meanwhile. What another run holds is left to it, and comes home later.

    Args:
        spool: of this machine.
        storage: the output.
        ledger: that of the output.
        only: those of these items; None: all.

    Returns:
        How many there were.

    Raises:
        StorageError: the output still cannot be written.
    """

    def make_room(entry: SpoolEntry) -> SpoolEntry:
        if entry.record.get("part"):
            return entry
        coming, _ = _read(entry)
        known = _in_its_place(ledger, coming)
        if entry.record.get("late") or _is_over(coming, known):
            return _among_versions(entry, coming, known)
        if known is None:
            return entry
        set_aside(storage, known)
        return entry

    def record(entry: SpoolEntry, saved: list[SavedFile]) -> None:
        coming, end = _read(entry)
        place = entry.record.get("part")
        known = None if place else _in_its_place(ledger, coming)
        late = entry.record.get("late") and (known is not None or coming.status is not Status.SUCCEEDED)
        if late or _is_over(coming, known):
            here = [replace(file, path=_own_path(file.path)) for file in saved]
            _record_late(ledger, _written(entry, coming, here), end, known)
            return
        coming = _written(entry, coming, saved)
        if place:
            ledger.record_part_now(_part_in(place, coming), end)
            return
        if known is not None:
            coming = replace(coming, version=max(coming.version, known.version + 1))
            clear(storage, known, keep=[file.path for role in ROLES if (file := getattr(coming, role))])
        ledger.record_outcome_now(coming, end, superseded=known)
        log.info("%s turn %d: brought home", coming.item_id, coming.turn)

    def hold(entry: SpoolEntry) -> AbstractContextManager[bool]:
        if only is not None and entry.name not in only:
            return nullcontext(False)
        return ledger.queue.taken(entry.name, owner=entry.record["outcome"]["run_id"])

    return len(spool.replay(storage, record, first=make_room, hold=hold))


def _among_versions(entry: SpoolEntry, coming: Outcome, known: Outcome | None) -> SpoolEntry:
    """A late reply's files, where they do not touch what another run has recorded meanwhile."""
    if coming.status is not Status.SUCCEEDED:
        return replace(entry, files=())
    if known is None:
        return entry
    files = tuple((version_path(path, known.version), data) for path, data in entry.files)
    return replace(entry, files=files)


def _is_over(coming: Outcome, known: Outcome | None) -> bool:
    """Whether this is a failure whose turn has succeeded since; one of a redo came after what it was to replace."""
    return known is not None and coming.status is not Status.SUCCEEDED and coming.version <= known.version


def _record_late(ledger: Ledger, coming: Outcome, end: AttemptEnd | None, known: Outcome | None) -> None:
    """A late failure is only the end of its call; a late reply takes the version before the one that stands."""
    if known is None or coming.status is not Status.SUCCEEDED:
        if end is not None:
            ledger.record_end_now(end)
        return
    earlier = ledger.earlier_outcomes(coming.item_id, coming.turn)
    if any(_is_the_same(one, coming) for one in earlier):
        return  # a kill came between this and the deletion of the kept copy
    ledger.record_outcome_now(
        replace(known, version=known.version + 1), end, superseded=replace(coming, version=known.version)
    )
    log.info("%s turn %d: a late reply is kept as version %d", coming.item_id, coming.turn, known.version)


def _written(entry: SpoolEntry, coming: Outcome, saved: list[SavedFile]) -> Outcome:
    """The outcome with its files, as they are named in the output."""
    files = {file.path: file for file in saved}
    roles: Mapping[str, str] = entry.record["roles"]
    written: dict[str, Any] = {role: files[path] for role, path in roles.items() if path in files}
    return replace(coming, **written)


def _own_path(path: str) -> str:
    """`versions/v1/audio/anna.wav` → `audio/anna.wav`: what an outcome says of a file, wherever it is kept."""
    parts = path.split("/", 2)
    return parts[2] if parts[0] == VERSIONS and len(parts) == 3 else path


def _in_its_place(ledger: Ledger, coming: Outcome) -> Outcome | None:
    """A different success recorded for the same turn; None if there is none, or if it is this very reply."""
    known = ledger.outcome(coming.item_id, coming.turn)
    if known is None or known.status is not Status.SUCCEEDED:
        return None
    return None if _is_the_same(known, coming) else known


def _place_of(part: PartOutcome) -> list[Any]:
    return [part.part, part.start_s, part.end_s, part.kind.value, cues_to_json(part.cues)]


def _part_in(place: Sequence[Any], outcome: Outcome) -> PartOutcome:
    """Also of an entry that an earlier version kept: the first named no kind, the next no cues."""
    number, start_s, end_s, *more = place
    return PartOutcome(
        kind=PartKind(more[0] if more else PartKind.REPLY),
        part=number,
        start_s=start_s,
        end_s=end_s,
        outcome=outcome,
        cues=cues_from_json(more[1]) if more[1:] else (),
    )


def _is_the_same(one: Outcome, other: Outcome) -> bool:
    """Made by the same call."""
    return (one.run_id, one.request_id, one.started_at) == (other.run_id, other.request_id, other.started_at)


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
