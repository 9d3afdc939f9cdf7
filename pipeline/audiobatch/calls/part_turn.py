"""One part of a long recording's turn: a call like any other, whose end is a file and a row of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from audiobatch.calls.record import keep_in_spool
from audiobatch.calls.turn import TurnCall
from audiobatch.errors import AudioBatchError, StorageError, redacted_bytes
from audiobatch.ledger.rows import PartOutcome
from audiobatch.model import PartKind
from audiobatch.storage.artifacts import make
from audiobatch.storage.names import output_path, part_id

if TYPE_CHECKING:
    from audiobatch.audio.split import Part
    from audiobatch.errors import Unfinished
    from audiobatch.ledger.ledger import Attempt, AttemptEnd
    from audiobatch.model import Item, Outcome, Reply, Request, Turn

#: What the service is asked for, whatever the job's format: parts are joined first and encoded once.
JOINED_FORMAT = "wav"


@dataclass(kw_only=True)  # without slots: `super` needs the class as it is written
class PartCall(TurnCall):
    """One part of a turn on its way.

    Attributes:
        earlier_calls: of this part, in earlier runs.
        kept: the part's outcome, recorded.
    """

    part: Part
    count: int
    earlier_calls: int = 0
    kept: PartOutcome | None = None

    def _request(self) -> Request:
        return replace(
            super()._request(),
            item_id=part_id(self.item.item_id, self.part.number),
            format=JOINED_FORMAT if self.turn.wants_audio else "",
        )

    def _attempt(self, deployment: str) -> Attempt:
        return replace(super()._attempt(deployment), part=self.part.number)

    def _earlier_attempts(self) -> int:
        return self.earlier_calls

    async def _keep(self, reply: Reply, attempt: Attempt) -> Outcome:
        """The part's sound, then its row."""
        context = self.context
        outcome, end, files = await self._made(reply, attempt)
        try:
            await context.on_disk(context.ledger.queue.make_sure, self.item.item_id)
            saved = await context.on_disk(context.storage.write_many, files)
            outcome = replace(outcome, audio=saved[0] if saved else None)
            self.kept = _row(self.part, outcome)
            await context.ledger.record_part(self.kept, end)
        except StorageError as failed:
            await self._spool_part(outcome, end, files, failed)
            raise
        context.sizes.saw(outcome)
        return outcome

    async def _spool(self, reply: Reply, attempt: Attempt, because: StorageError) -> None:
        await self._spool_part(*await self._made(reply, attempt), because)

    async def _spool_part(
        self, outcome: Outcome, end: AttemptEnd, files: list[tuple[str, bytes]], because: StorageError
    ) -> None:
        roles = {"audio": files[0][0] if files else None}
        part = _row(self.part, outcome)
        await keep_in_spool(self.context, outcome, end, files, roles, because=because, part=part)

    async def _made(
        self, reply: Reply, attempt: Attempt
    ) -> tuple[Outcome, AttemptEnd, list[tuple[str, bytes]]]:
        """The part's outcome without its file, its call's end, and that file if it has one."""
        outcome, end = self._succeeded(reply, attempt)
        plain = replace(self.turn, format=JOINED_FORMAT)
        made = await self.context.on_disk(make, self.item, plain, reply)
        outcome = replace(outcome, checks=made.checks, audio_duration_s=made.audio_duration_s)
        place = part_path(self.item, self.turn, self.part.number, f".{JOINED_FORMAT}")
        return outcome, end, [(place, data) for path, data in made.files if path == made.audio_path]

    async def _keep_unfinished(self, failed: Unfinished, end: AttemptEnd) -> Outcome:
        """The part's body and row beside the turn's own row: each part is finished by itself."""
        context = self.context
        failed.message = f"part {self.part.number} of {self.count}: {failed.message}"
        outcome = self._unfinished(failed)
        body = redacted_bytes(failed.raw)
        place = part_path(self.item, self.turn, self.part.number, ".json")
        try:
            await context.on_disk(context.ledger.queue.make_sure, self.item.item_id)
            (saved,) = await context.on_disk(context.storage.write_many, [(place, body)])
            part = _row(self.part, replace(outcome, raw_reply=saved))
            await context.ledger.record_part(part, end, outcome)
        except StorageError as unwritten:
            row = _row(self.part, outcome)
            roles = {"raw_reply": place}
            await keep_in_spool(context, outcome, end, [(place, body)], roles, because=unwritten, part=row)
            raise
        self._stop_for(failed)
        return outcome

    async def _failed(self, failed: AudioBatchError, end: AttemptEnd | None = None) -> Outcome:
        """A part that came to nothing is the turn's failure; what the others brought stays for the next run."""
        failed.message = f"part {self.part.number} of {self.count}: {failed.message}"
        return await super()._failed(failed, end)


def part_path(item: Item, turn: Turn, number: int, ending: str) -> str:
    """Where a part's file lies until the whole is put together."""
    return output_path(
        item.item_id,
        folder="parts",
        ending=ending,
        turn=turn.number,
        filename=item.source.settings.filename,
        part=number,
    )


def stretch(part: Part) -> tuple[float, float]:
    """Where a part lies in the recording, in seconds."""
    return part.timeline.start_s, part.timeline.end_s


def _row(part: Part, outcome: Outcome) -> PartOutcome:
    start_s, end_s = stretch(part)
    return PartOutcome(kind=PartKind.REPLY, part=part.number, start_s=start_s, end_s=end_s, outcome=outcome)
