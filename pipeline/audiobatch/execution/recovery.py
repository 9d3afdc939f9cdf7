"""Repairs what a killed run left: by the next run, or by one that takes its items over.

Every call that was in flight gets an end, `unknown`: it was perhaps billed. A result that was about to be replaced
gets its own files back. The repair can be killed and repeated: its result is the same.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from audiobatch.errors import ErrorType
from audiobatch.ledger.rows import TRANSCRIPTION, AttemptEnd
from audiobatch.model import Outcome, Status
from audiobatch.storage.versions import restore

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from audiobatch.ledger.ledger import Ledger
    from audiobatch.storage.local import Storage

log = logging.getLogger(__name__)

#: The error message of such a call in the manifest.
KILLED = "the run ended while this call was in flight; it was perhaps billed"


def recover(
    ledger: Ledger,
    storage: Storage,
    item_ids: Sequence[str] | None = None,
    *,
    except_of: Collection[str] = (),
) -> int:
    """Close the calls that a killed run left open.

    Args:
        ledger: in which no other run works on these items.
        storage: with their results.
        item_ids: None: all items.
        except_of: runs whose calls stay open: their machines may still hold the replies.

    Returns:
        How many calls were open.

    Raises:
        StorageError: the output cannot be written.
    """
    open_calls = [call for call in ledger.reader.open_calls(item_ids) if call["run_id"] not in except_of]
    now = datetime.now(UTC)
    for call in open_calls:
        end = AttemptEnd(
            attempt_id=call["attempt_id"],
            state=Status.UNKNOWN,
            finished_at=now,
            error_type=ErrorType.DISCONNECTED,
        )
        if call["transport"] == TRANSCRIPTION:
            ledger.writer.settle_end(end)
            continue
        known = ledger.reader.outcome(call["item_id"], call["turn"])
        if known is None or known.status is not Status.SUCCEEDED:
            ledger.writer.record_outcome(_unknown(ledger, call, known, more=1), end).wait()
            continue
        if restore(storage, known):
            log.info("%s turn %d: its files were put back", known.item_id, known.turn)
        ledger.writer.settle_end(end)
    for call in ledger.reader.unknown_without_outcome() if item_ids is None else ():
        ledger.writer.record_outcome(_unknown(ledger, call, None, more=0)).wait()
    return len(open_calls)


def _unknown(ledger: Ledger, call: Mapping[Any, Any], known: Outcome | None, *, more: int) -> Outcome:
    return Outcome(
        item_id=call["item_id"],
        turn=call["turn"],
        fingerprint=call["fingerprint"],
        status=Status.UNKNOWN,
        run_id=call["run_id"],
        started_at=datetime.fromisoformat(call["started_at"]),
        finished_at=datetime.now(UTC),
        version=known.version if known else 1,
        prompt=call["prompt"],
        error_type=ErrorType.DISCONNECTED,
        error_message=KILLED,
        voice=call["voice"],
        format=call["format"],
        model=call["model"],
        deployment=call["deployment"],
        provider=call["provider"],
        transport=call["transport"],
        attempts=call["number"],
        perhaps_billed=ledger.reader.unknown_calls(call["item_id"], call["turn"]) + more,
        input_sha256=call["input_sha256"],
        settings_key=call["settings_key"],
    )
