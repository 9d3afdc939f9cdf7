"""A turn that goes out in one request, once more where its reply has a flaw that the job rejects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.calls.record import record_failure, record_reply, spool_turn
from audiobatch.calls.turn import TurnCall, attempts_in, redo_flawed, success_in
from audiobatch.limits.retry import Tries

if TYPE_CHECKING:
    from audiobatch.calls.context import CallContext
    from audiobatch.errors import AudioBatchError, StorageError
    from audiobatch.inputs.prepared_recording import PreparedRecording
    from audiobatch.ledger.rows import AttemptEnd
    from audiobatch.model import Exchange, Item, Outcome, Reply, Request, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeTurnPolicy:
    """Records a turn with its own files and its own row (a `TurnPolicy`).

    Attributes:
        before: what the ledger says of the turn so far; a success is set aside as an earlier version.
    """

    context: CallContext
    item: Item
    turn: Turn
    before: Outcome | None

    @property
    def part(self) -> None:
        """Return None: it is the whole turn."""

    def build_request(self, request: Request) -> Request:
        """Return the request as it is."""
        return request

    def error_message(self, error: AudioBatchError) -> str:
        """Return the error's own message."""
        return error.message

    async def record(self, reply: Reply, outcome: Outcome, end: AttemptEnd) -> Outcome:
        """Write the reply's files, then the outcome with the end of its call."""
        replaced = success_in(self.before)
        return await record_reply(
            self.context, self.item, self.turn, reply, outcome=outcome, end=end, replaced=replaced
        )

    async def spool(self, reply: Reply, outcome: Outcome, end: AttemptEnd, cause: StorageError) -> None:
        """Put a reply into the spool that was not recorded."""
        await spool_turn(self.context, self.item, self.turn, reply, outcome=outcome, end=end, cause=cause)

    async def record_failure(self, outcome: Outcome, end: AttemptEnd | None, raw: bytes) -> Outcome:
        """Record the failure, with the body that was wrong."""
        return await record_failure(self.context, outcome, end, raw, success_in(self.before))

    async def record_unfinished(self, outcome: Outcome, end: AttemptEnd, raw: bytes) -> Outcome:
        """Store the body, for the next run to finish."""
        return await self.record_failure(outcome, end, raw)


@dataclass(slots=True, kw_only=True)
class TurnRunner:
    """A turn that is to be sent.

    Attributes:
        history: the turns before it, with their replies.
        sound: the recording, in the first turn of a recording.
        only_deployment: the one that can serve it; None: any.
        before: what the ledger says of it so far.
        calls: how many were made for it in this run.
    """

    context: CallContext
    item: Item
    turn: Turn
    history: tuple[Exchange, ...]
    sound: PreparedRecording | None
    only_deployment: str | None
    before: Outcome | None
    tries: Tries
    calls: int = 0

    async def run(self) -> Outcome:
        """Send the turn until it has an outcome, which is recorded.

        Raises:
            Stopping, NoDeployment, Deferred: there is none yet.
            StorageError: it could not be recorded.
        """
        return await redo_flawed(self.context.spec, self._call, await self._call(None))

    async def _call(self, standing: Outcome | None) -> Outcome:
        """Send it; `standing` is recorded, and stays unless a reply comes."""
        tries = self.tries
        if standing is not None:  # its tries are over, and are counted all the same
            retry_unknown = self.context.spec.on_unknown == "retry"
            tries = Tries(retry_unknown=retry_unknown, unknown_before=standing.perhaps_billed)
        before = standing or self.before
        call = TurnCall(
            context=self.context,
            policy=WholeTurnPolicy(context=self.context, item=self.item, turn=self.turn, before=before),
            item=self.item,
            turn=self.turn,
            history=self.history,
            sound=self.sound.read() if self.sound else None,
            only_deployment=self.only_deployment,
            before=before,
            tries=tries,
            earlier_attempts=attempts_in(before, self.turn),
            calls=standing.attempts if standing else self.calls,
            standing=standing,
            trimmed_s=self.sound.trimmed_s if self.sound else None,
        )
        try:
            return await call.run()
        finally:
            self.calls = call.calls
