"""Spools replies that were paid for and could not be written; the next run replays them.

A spooled reply is its files and a record: the outcome for the ledger, the end of its call, and which file has which
role. The replay does what the run would have done, in the same order.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from audiobatch.errors import ErrorType
from audiobatch.ledger.rows import (
    AttemptEnd,
    PartOutcome,
    cues_from_json,
    cues_to_json,
    outcome_from_row,
    outcome_to_row,
)
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
    """Spool a reply that could not be written to the output.

    Args:
        spool: of the output.
        outcome: as it would be recorded; its files are those that are on disk already.
        end: of the call that decided it, where that is not in the ledger yet.
        files: those that are not on disk, as (path, bytes).
        roles: which path is `audio`, `transcript_file` or `raw_reply`.
        part: that the outcome belongs to, for a part of a long recording.
        late: another run has claimed the item: what that one records stays, and this becomes an earlier version.

    Returns:
        The entry's file.

    Raises:
        StorageError: it could not be spooled either.
    """
    record = {
        "outcome": outcome_to_row(outcome),
        "end": None if end is None else _end_to_json(end),
        "roles": {role: path for role, path in roles.items() if path},
        "part": None if part is None else _part_to_json(part),
        "late": late,
    }
    path = spool.add(outcome.item_id, files, record)
    log.warning("%s: the reply is spooled in %s; the next run records it", outcome.item_id, path)
    return path


def replay(
    spool: Spool,
    storage: Storage,
    ledger: Ledger,
    *,
    only: Collection[str] | None = None,
) -> int:
    """Write spooled replies to the output and the ledger; an entry is deleted only after both are on disk.

    On a shared ledger each item is held meanwhile. What another run holds is left for later.

    Args:
        spool: of this machine.
        storage: the output.
        ledger: that of the output.
        only: only replies of these items; None: all.

    Returns:
        How many were replayed.

    Raises:
        StorageError: the output still cannot be written.
    """
    work = _Replay(storage=storage, ledger=ledger, only=only)
    return len(spool.replay(storage, work.record, prepare=work.set_earlier_aside, hold=work.hold))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replay:
    """Writes the entries of a spool, one at a time."""

    storage: Storage
    ledger: Ledger
    only: Collection[str] | None

    def set_earlier_aside(self, entry: SpoolEntry) -> SpoolEntry:
        """Move an earlier result away before the reply's files are written, or the files to another path."""
        if entry.record.get("part"):
            return entry
        spooled, _ = _read(entry)
        known = _success_to_replace(self.ledger, spooled)
        if entry.record.get("late") or _is_obsolete(spooled, known):
            return _among_versions(entry, spooled, known)
        if known is None:
            return entry
        set_aside(self.storage, known)
        return entry

    def record(self, entry: SpoolEntry, saved: list[SavedFile]) -> None:
        """Record an entry whose files are written."""
        spooled, end = _read(entry)
        part = entry.record.get("part")
        known = None if part else _success_to_replace(self.ledger, spooled)
        late = entry.record.get("late") and (known is not None or spooled.status is not Status.SUCCEEDED)
        if late or _is_obsolete(spooled, known):
            here = [replace(file, path=_current_path(file.path)) for file in saved]
            _record_late(self.ledger, _written(entry, spooled, here), end, known)
            return
        spooled = _written(entry, spooled, saved)
        if part:
            self.ledger.writer.record_part(_part_from_json(part, spooled), end).wait()
            return
        if known is not None:
            spooled = replace(spooled, version=max(spooled.version, known.version + 1))
            clear(self.storage, known, keep=[file.path for role in ROLES if (file := getattr(spooled, role))])
        self.ledger.writer.record_outcome(spooled, end, superseded=known).wait()
        log.info("%s turn %d: replayed from the spool", spooled.item_id, spooled.turn)

    def hold(self, entry: SpoolEntry) -> AbstractContextManager[bool]:
        """Claim the entry's item while it is written; False: it is left for later."""
        if self.only is not None and entry.name not in self.only:
            return nullcontext(False)
        return self.ledger.queue.hold(entry.name, owner=entry.record["outcome"]["run_id"])


def _among_versions(entry: SpoolEntry, spooled: Outcome, known: Outcome | None) -> SpoolEntry:
    """Move a late reply's files to paths that do not touch what another run has recorded meanwhile."""
    if spooled.status is not Status.SUCCEEDED:
        return replace(entry, files=())
    if known is None:
        return entry
    files = tuple((version_path(path, known.version), data) for path, data in entry.files)
    return replace(entry, files=files)


def _is_obsolete(spooled: Outcome, known: Outcome | None) -> bool:
    """Return whether this failure's turn has succeeded since; a failed redo came after what it was to replace."""
    return known is not None and spooled.status is not Status.SUCCEEDED and spooled.version <= known.version


def _record_late(ledger: Ledger, spooled: Outcome, end: AttemptEnd | None, known: Outcome | None) -> None:
    """Record only a late failure's end; give a late reply the version before the current one."""
    if known is None or spooled.status is not Status.SUCCEEDED:
        if end is not None:
            ledger.writer.settle_end(end)
        return
    earlier = ledger.reader.earlier_outcomes(spooled.item_id, spooled.turn)
    if any(_is_same_call(outcome, spooled) for outcome in earlier):
        return  # a kill came between this and the deletion of the entry
    ledger.writer.record_outcome(
        replace(known, version=known.version + 1), end, superseded=replace(spooled, version=known.version)
    ).wait()
    log.info("%s turn %d: a late reply is stored as version %d", spooled.item_id, spooled.turn, known.version)


def _written(entry: SpoolEntry, spooled: Outcome, saved: list[SavedFile]) -> Outcome:
    """Return the outcome with its files, as they are named in the output."""
    files = {file.path: file for file in saved}
    roles: Mapping[str, str] = entry.record["roles"]
    written: dict[str, Any] = {role: files[path] for role, path in roles.items() if path in files}
    return replace(spooled, **written)


def _current_path(path: str) -> str:
    """Return `audio/anna.wav` for `versions/v1/audio/anna.wav`: outcomes name a file so, whatever their version."""
    parts = path.split("/", 2)
    return parts[2] if parts[0] == VERSIONS and len(parts) == 3 else path


def _success_to_replace(ledger: Ledger, spooled: Outcome) -> Outcome | None:
    """Return another success of the same turn; None if there is none, or if it is this very reply."""
    known = ledger.reader.outcome(spooled.item_id, spooled.turn)
    if known is None or known.status is not Status.SUCCEEDED:
        return None
    return None if _is_same_call(known, spooled) else known


def _part_to_json(part: PartOutcome) -> list[Any]:
    return [part.part, part.start_s, part.end_s, part.kind.value, cues_to_json(part.cues)]


def _part_from_json(values: Sequence[Any], outcome: Outcome) -> PartOutcome:
    """Read a part, also one that an earlier version spooled: the first named no kind, the next no cues."""
    number, start_s, end_s, *more = values
    return PartOutcome(
        kind=PartKind(more[0] if more else PartKind.REPLY),
        part=number,
        start_s=start_s,
        end_s=end_s,
        outcome=outcome,
        cues=cues_from_json(more[1]) if more[1:] else (),
    )


def _is_same_call(outcome: Outcome, other: Outcome) -> bool:
    """Return whether one call made both."""
    return (outcome.run_id, outcome.request_id, outcome.started_at) == (
        other.run_id,
        other.request_id,
        other.started_at,
    )


def _read(entry: SpoolEntry) -> tuple[Outcome, AttemptEnd | None]:
    """Read a record, also one that an earlier version spooled: a column that it did not know has its default."""
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


def _end_from_json(values: Mapping[str, Any] | None) -> AttemptEnd | None:
    if values is None:
        return None
    return AttemptEnd(
        attempt_id=values["attempt_id"],
        state=Status(values["state"]),
        finished_at=datetime.fromisoformat(values["finished_at"]),
        error_type=ErrorType(values["error_type"]) if values["error_type"] else None,
        request_id=values["request_id"],
        cost_usd=None if values["cost_usd"] is None else Decimal(values["cost_usd"]),
    )
