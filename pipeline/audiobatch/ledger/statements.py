"""What is written to the ledger: each statement once, so that a batch runs it over the rows of all entries."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, select, update

# SQLite takes this form too; its own is not taken by PostgreSQL.
from sqlalchemy.dialects.postgresql import insert as upsert

from audiobatch.ledger.schema import (
    attempts,
    items,
    marks,
    meta,
    outcomes,
    parts,
    runs,
    settings,
    versions,
)

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Executable, Table

    from audiobatch.ledger.rows import Attempt, AttemptEnd


def _upsert(table: Table) -> Executable:
    """Insert, or replace every column but the key."""
    statement = upsert(table)
    keys = [column.name for column in table.primary_key]
    changed = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=changed)


#: A commit whose answer was lost is made again; the row is there then.
ADD_INTENT = upsert(attempts).on_conflict_do_nothing()
END_ATTEMPT = (
    update(attempts)
    .where(attempts.c.attempt_id == bindparam("which"))
    .values(
        {name: bindparam(name) for name in ("state", "finished_at", "error_type", "request_id", "cost_usd")}
    )
)
#: Of a call whose run was silent so long that another has given it an end already, that one stands.
END_OPEN = END_ATTEMPT.where(attempts.c.state == "open")
PUT_OUTCOME = _upsert(outcomes)
KEEP_VERSION = _upsert(versions)
PUT_PART = _upsert(parts)
PUT_ITEM = _upsert(items)
KEEP_AS = (
    update(outcomes)
    .where(outcomes.c.item_id == bindparam("which"), outcomes.c.turn == bindparam("which_turn"))
    .values(kept_as=bindparam("kept_as"))
)
PUT_MARK = _upsert(marks)
DROP_MARK = delete(marks).where(
    *(marks.c[name] == bindparam(f"which_{name}") for name in ("item_id", "turn", "version", "replied"))
)
PUT_NOTE = _upsert(meta)
#: That the reports show all there is; taken back by the first change after it (`LedgerWriter`).
MARK_SHOWN = _upsert(meta)
SHOWN_KEY = "reports shown"
FORGET_SHOWN = delete(meta).where(meta.c.key == SHOWN_KEY)
PUT_RUN = _upsert(runs)
END_RUN = (
    update(runs)
    .where(runs.c.run_id == bindparam("which"))
    .values(finished_at=bindparam("finished_at"), summary=bindparam("summary"))
)
PUT_SETTINGS = upsert(settings).on_conflict_do_nothing()

_has_outcome = select(outcomes.c.item_id).where(outcomes.c.item_id == items.c.item_id).exists()
FORGET_MISSING = delete(items).where(items.c.seen_run != bindparam("run"), ~_has_outcome)
SEE = update(items).where(items.c.item_id == bindparam("which")).values(seen_run=bindparam("run"))
SEE_ALL = update(items).values(seen_run=bindparam("run"))
#: What a person said or was said to: blanked by a purge. Counts, costs, hashes and times stay.
_BLANK_OUTCOME: dict[str, Any] = dict.fromkeys(
    ("prompt", "transcript", "input_transcript", "error_message", "audio", "transcript_file", "raw_reply"), ""
)
PURGE = (
    *(
        update(table).where(table.c.item_id == bindparam("which")).values(_BLANK_OUTCOME | {"audio_id": None})
        for table in (outcomes, versions, parts)
    ),
    update(parts).where(parts.c.item_id == bindparam("which")).values(cues=""),
    update(items).where(items.c.item_id == bindparam("which")).values(text="", row=""),
    update(attempts).where(attempts.c.item_id == bindparam("which")).values(prompt=""),
    update(marks).where(marks.c.item_id == bindparam("which")).values(note=""),
)


#: What changes a report. Calls, runs, the queue and when an input was last seen are in none.
CHANGES_REPORTS = frozenset(
    map(id, (PUT_OUTCOME, PUT_PART, PUT_ITEM, PUT_MARK, DROP_MARK, FORGET_MISSING, KEEP_VERSION, *PURGE))
)


def intent_row(attempt: Attempt) -> dict[str, Any]:
    """Return the row of a call that is about to leave."""
    row = {field.name: getattr(attempt, field.name) for field in fields(attempt)}
    worst = None if attempt.worst_usd is None else str(attempt.worst_usd)
    return row | {"started_at": time_text(attempt.started_at), "state": "open", "worst_usd": worst}


def time_text(time: datetime) -> str:
    """Return a time as the ledger stores it: UTC, ISO 8601, milliseconds."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def end_row(end: AttemptEnd) -> dict[str, Any]:
    """Return the parameters that record the end of a call."""
    return {
        "which": end.attempt_id,
        "state": end.state.value,
        "finished_at": time_text(end.finished_at),
        "error_type": end.error_type.value if end.error_type else "",
        "request_id": end.request_id,
        "cost_usd": None if end.cost_usd is None else str(end.cost_usd),
    }
