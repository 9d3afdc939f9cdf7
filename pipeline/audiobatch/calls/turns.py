"""One turn of an item, whichever way it has to go: at once or in parts, and once more for a flaw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.calls.check_redo import asked_again
from audiobatch.calls.long_recording import MultipartTurn
from audiobatch.calls.turn import TurnCall
from audiobatch.limits.retry import Tries

if TYPE_CHECKING:
    from audiobatch.calls.context import CallContext
    from audiobatch.inputs.recording import SoundInput
    from audiobatch.model import Exchange, Item, Outcome, Turn


@dataclass(slots=True, kw_only=True)
class TurnRunner:
    """A turn to be asked.

    Attributes:
        history: the turns before it, with their replies.
        sound: the recording, in the first turn of a recording.
        bound: the one deployment that can serve it.
        before: what the ledger says of it so far.
        calls: how many were made for it in this run.
    """

    context: CallContext
    item: Item
    turn: Turn
    history: tuple[Exchange, ...]
    sound: SoundInput | None
    bound: str | None
    before: Outcome | None
    tries: Tries
    calls: int = 0

    async def run(self) -> Outcome:
        """The turn's outcome, recorded.

        Raises:
            Stopping, NoDeployment, Deferred: there is none yet.
            StorageError: it could not be recorded.
        """
        if self.sound is not None and self.sound.parts:
            return await MultipartTurn(
                context=self.context,
                item=self.item,
                turn=self.turn,
                history=self.history,
                sound=self.sound,
                bound=self.bound,
                before=self.before,
            ).run()
        return await asked_again(self.context.spec, self._ask, await self._ask(None))

    async def _ask(self, standing: Outcome | None) -> Outcome:
        """Ask at once; `standing` is recorded and stays unless a reply comes."""
        tries = self.tries
        if standing is not None:  # what it went through is over, and is counted all the same
            retry_unknown = self.context.spec.on_unknown == "retry"
            tries = Tries(retry_unknown=retry_unknown, unknown_before=standing.perhaps_billed)
        one = TurnCall(
            context=self.context,
            item=self.item,
            turn=self.turn,
            history=self.history,
            sound=self.sound.whole() if self.sound else None,
            bound=self.bound,
            before=standing or self.before,
            tries=tries,
            calls=standing.attempts if standing else self.calls,
            keeps=standing,
            trimmed_s=self.sound.trimmed_s if self.sound else None,
        )
        try:
            return await one.run()
        finally:
            self.calls = one.calls
