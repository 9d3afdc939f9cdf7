"""Writes the end of a call to disk: files, then the outcome; and to the spool where the output cannot be written.

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
    from audiobatch.ledger.rows import AttemptEnd, PartOutcome
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
        context: of the run, for its storage, spool and ledger.
        item: whose reply it is.
        turn: of that item.
        reply: as decoded.
        outcome: complete, but for its files and what is measured of them.
        end: of the call that brought it; None where all ends are recorded.
        replaced: the success that it replaces.
        checks: those of its parts, where it was joined of several; None: it is checked now.

    Returns:
        The outcome as recorded.

    Raises:
        BadReply: the audio is unusable; nothing is recorded.
        LeaseLost: another run has taken the item over; the reply is in the spool, for a replay as a version.
        StorageError: the output cannot be written; the reply is in the spool.
    """
    check_lease = partial(context.ledger.queue.check_lease, item.item_id)
    try:
        saved = await context.on_disk(
            save, context.storage, item, turn, reply, replaced, context.finish, checks, check_lease
        )
    except NotSaved as failed:
        made = failed.made
        outcome = replace(outcome, audio_duration_s=made.audio_duration_s, checks=made.checks)
        roles = {"audio": made.audio_path, "transcript_file": made.transcript_path}
        cause = failed.__cause__ if isinstance(failed.__cause__, LeaseLost) else failed
        await spool_files(context, outcome, end, made.files, roles, cause=cause)
        raise cause from None
    outcome = replace(
        outcome,
        audio=saved.audio,
        transcript_file=saved.transcript,
        audio_duration_s=saved.made.audio_duration_s,
        checks=saved.made.checks,
    )
    if outcome.parts is None:
        context.sizes.add(outcome)
    try:
        await context.ledger.writer.record_outcome(outcome, end, superseded=replaced)
    except StorageError as failed:
        # With its files, though they are on disk: a disk with such errors may not give them back.
        roles = {"audio": saved.made.audio_path, "transcript_file": saved.made.transcript_path}
        await spool_files(context, outcome, end, saved.made.files, roles, cause=failed)
        raise
    return outcome


async def record_failure(
    context: CallContext, outcome: Outcome, end: AttemptEnd | None, raw: bytes, replaced: Outcome | None
) -> Outcome:
    """Record a turn that failed, with the body that was wrong where there is one.

    Args:
        context: of the run, for its storage, spool and ledger.
        outcome: complete, but for the file of the body.
        end: of the call that decided it, where that is not recorded yet.
        raw: the body; empty where there is none.
        replaced: an earlier success that the failure replaces; it is set aside.

    Returns:
        The outcome as recorded.

    Raises:
        StorageError: the output cannot be written; the body and the outcome are in the spool.
    """
    raw = redacted_bytes(raw)
    path = raw_path(outcome.item_id, outcome.turn, raw) if raw else ""
    try:
        if raw or replaced is not None:
            check_lease = partial(context.ledger.queue.check_lease, outcome.item_id)
            saved = await context.on_disk(_write, context.storage, path, raw, replaced, check_lease)
            outcome = replace(outcome, raw_reply=saved)
        await context.ledger.writer.record_outcome(outcome, end, superseded=replaced)
    except StorageError as failed:
        files = [(path, raw)] if raw else []
        await spool_files(context, outcome, end, files, {"raw_reply": path}, cause=failed)
        raise
    return outcome


async def spool_turn(
    context: CallContext,
    item: Item,
    turn: Turn,
    reply: Reply,
    *,
    outcome: Outcome,
    end: AttemptEnd,
    cause: StorageError,
) -> None:
    """Put a whole turn's reply into the spool that was not recorded: the output could not be written before that.

    Raises:
        BadReply: its audio is unusable.
        StorageError: it cannot be put into the spool either.
    """
    made = await context.on_disk(make, item, turn, reply, context.finish)
    outcome = replace(outcome, audio_duration_s=made.audio_duration_s, checks=made.checks)
    roles = {"audio": made.audio_path, "transcript_file": made.transcript_path}
    await spool_files(context, outcome, end, made.files, roles, cause=cause)


async def spool_files(
    context: CallContext,
    outcome: Outcome,
    end: AttemptEnd | None,
    files: list[tuple[str, bytes]],
    roles: Mapping[str, str | None],
    *,
    cause: StorageError,
    part: PartOutcome | None = None,
) -> None:
    """Put files and rows into the spool that the output did not take.

    Args:
        context: of the run, for its spool.
        outcome: complete, but for its files.
        end: of the call that brought it; None where it is recorded.
        files: path in the output, and content.
        roles: which of the outcome's fields names which of these paths.
        cause: why; after `LeaseLost` another run has the item by now, and the replay adds a version.
        part: the row of a part that goes with it.

    Raises:
        StorageError: it cannot be put into the spool either.
    """
    spool = partial(spool_reply, part=part, late=isinstance(cause, LeaseLost))
    await context.on_disk(spool, context.spool, outcome, end, files, roles)


def _write(
    storage: Storage, path: str, raw: bytes, replaced: Outcome | None, check_lease: Callable[[], None]
) -> SavedFile | None:
    check_lease()
    if replaced is not None:
        set_aside(storage, replaced)
    saved = storage.write(path, raw) if path else None
    if replaced is not None:
        clear(storage, replaced, keep=[path])
    return saved
