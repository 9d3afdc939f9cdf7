"""The end of a call, on disk: files, then the outcome; and in the spool where they cannot be written.

Each of these is run to its end whatever happens to its caller (`CallContext.settle`): what they write is paid for.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from audiobatch.errors import LeaseLost, StorageError, redacted_bytes
from audiobatch.ledger.spool_replay import spool_reply
from audiobatch.storage.artifacts import NotSaved, make, raw_path, save
from audiobatch.storage.versions import clear, set_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from audiobatch.calls.context import CallContext
    from audiobatch.ledger.ledger import AttemptEnd
    from audiobatch.ledger.rows import PartOutcome
    from audiobatch.model import Check, Item, Outcome, Reply, SavedFile, Turn
    from audiobatch.storage.local import Storage


async def record_reply(
    context: CallContext,
    item: Item,
    turn: Turn,
    reply: Reply,
    *,
    outcome: Outcome,
    end: AttemptEnd | None,
    replaced: Outcome | None,
    checks: tuple[Check, ...] | None = None,
) -> Outcome:
    """Write a reply's files and its outcome.

    Args:
        context: whose storage, spool and ledger.
        item: whose reply it is.
        turn: of that item.
        reply: as decoded.
        outcome: all of it but its files and what is measured of them.
        end: of the call that brought it; None where all ends are recorded.
        replaced: the success in whose place it comes.
        checks: those of its parts, where it was put together of several; None: it is checked.

    Returns:
        The outcome as recorded.

    Raises:
        BadReply: the audio is unusable; nothing is recorded.
        LeaseLost: another run has taken the item over; the reply is in the spool, and comes home as a version.
        StorageError: the output cannot be written; the reply is in the spool.
    """
    sure = partial(context.ledger.queue.make_sure, item.item_id)
    try:
        saved = await context.on_disk(
            save, context.storage, item, turn, reply, replaced, context.finish, checks, sure
        )
    except NotSaved as failed:
        made = failed.made
        outcome = replace(outcome, audio_duration_s=made.audio_duration_s, checks=made.checks)
        roles = {"audio": made.audio_path, "transcript_file": made.transcript_path}
        because = failed.__cause__ if isinstance(failed.__cause__, LeaseLost) else failed
        await keep_in_spool(context, outcome, end, made.files, roles, because=because)
        raise because from None
    outcome = replace(
        outcome,
        audio=saved.audio,
        transcript_file=saved.transcript,
        audio_duration_s=saved.made.audio_duration_s,
        checks=saved.made.checks,
    )
    if outcome.parts is None:
        context.sizes.saw(outcome)
    try:
        await context.ledger.record_outcome(outcome, end, superseded=replaced)
    except StorageError as failed:
        # With its files, though they are on disk: a disk with such errors may not give them back.
        roles = {"audio": saved.made.audio_path, "transcript_file": saved.made.transcript_path}
        await keep_in_spool(context, outcome, end, saved.made.files, roles, because=failed)
        raise
    return outcome


async def record_failure(
    context: CallContext, outcome: Outcome, end: AttemptEnd | None, raw: bytes, replaced: Outcome | None
) -> Outcome:
    """Record a turn that came to nothing, with the body that was wrong where there is one.

    Args:
        outcome: all of it but the file of the body.
        end: of the call that decided it, where that is not recorded yet.
        raw: the body; empty where there is none.
        replaced: an earlier success in whose place the failure comes; it is set aside.

    Raises:
        StorageError: the output cannot be written; the body and the outcome are in the spool.
    """
    raw = redacted_bytes(raw)
    path = raw_path(outcome.item_id, outcome.turn, raw) if raw else ""
    try:
        if raw or replaced is not None:
            sure = partial(context.ledger.queue.make_sure, outcome.item_id)
            saved = await context.on_disk(_write, context.storage, path, raw, replaced, sure)
            outcome = replace(outcome, raw_reply=saved)
        await context.ledger.record_outcome(outcome, end, superseded=replaced)
    except StorageError as failed:
        files = [(path, raw)] if raw else []
        await keep_in_spool(context, outcome, end, files, {"raw_reply": path}, because=failed)
        raise
    return outcome


async def keep_reply(
    context: CallContext,
    item: Item,
    turn: Turn,
    reply: Reply,
    *,
    outcome: Outcome,
    end: AttemptEnd,
    because: StorageError,
) -> None:
    """Keep a reply whose outcome was never tried to record: the output could not be written before that.

    Raises:
        BadReply: its audio is unusable.
        StorageError: it cannot be kept in the spool either.
    """
    made = await context.on_disk(make, item, turn, reply, context.finish)
    outcome = replace(outcome, audio_duration_s=made.audio_duration_s, checks=made.checks)
    roles = {"audio": made.audio_path, "transcript_file": made.transcript_path}
    await keep_in_spool(context, outcome, end, made.files, roles, because=because)


async def keep_in_spool(
    context: CallContext,
    outcome: Outcome,
    end: AttemptEnd | None,
    files: list[tuple[str, bytes]],
    roles: Mapping[str, str | None],
    *,
    because: StorageError,
    part: PartOutcome | None = None,
) -> None:
    """Keep what the output does not take; where another run holds the item by now, as what comes late.

    Raises:
        StorageError: it cannot be kept in the spool either.
    """
    keep = partial(spool_reply, part=part, late=isinstance(because, LeaseLost))
    await context.on_disk(keep, context.spool, outcome, end, files, roles)


def _write(
    storage: Storage, path: str, raw: bytes, replaced: Outcome | None, sure: Callable[[], None]
) -> SavedFile | None:
    sure()
    if replaced is not None:
        set_aside(storage, replaced)
    saved = storage.write(path, raw) if path else None
    if replaced is not None:
        clear(storage, replaced, keep=[path])
    return saved
