"""From `response.create` to `response.done`: journal, faults, quota, answer, and the events of it."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from audiobatch_emulator.faults import Rule
from audiobatch_emulator.journal import item_hash
from audiobatch_emulator.realtime_events import error_event
from audiobatch_emulator.realtime_items import Item, as_messages
from audiobatch_emulator.realtime_line import SocketLine
from audiobatch_emulator.realtime_response import Asked, input_counts, say
from audiobatch_emulator.realtime_speaking import Ended, Speaking
from audiobatch_emulator.service import Call, Service
from audiobatch_emulator.service_errors import Refusal, engine_failed
from audiobatch_emulator.surface import Surface

if TYPE_CHECKING:
    from audiobatch_emulator.realtime_connection import Connection

logger = logging.getLogger(__name__)

OPERATION = "Realtime"
#: Of a failed response's statuses: those that an `error` event tells, since the request itself was wrong.
_ERROR_EVENTS = range(400, 429)


def refuses_upgrades(rule: Rule) -> bool:
    """Returns whether a fault rule is about upgrades rather than responses."""
    when, do = rule.when, rule.do
    statuses = do.status is not None and do.status >= 400 and when.text is None and when.attempt_below is None
    return statuses or do.expire_tokens


class Responder:
    """Makes a session's responses; `connection` is the session's, and is set before the first."""

    connection: "Connection"

    def __init__(self, service: Service, surface: Surface, deployment: str, line: SocketLine) -> None:
        self._service = service
        self._surface = surface
        self._deployment = deployment
        self._line = line

    async def respond(self, asked: Asked, items: list[Item]) -> None:
        """Sends one response, from its journal record to its last event."""
        service = self._service
        call = service.begin(self._surface, transport="realtime")
        call.model = self.connection.session.model
        delivered = False
        try:
            refusal = self._refusal(call, asked, items)
            if refusal is not None and refusal.status in _ERROR_EVENTS:
                service.journal.answer(call.record, status=refusal.status, billed=False)
                await self._line.send(error_event(refusal, None))
            else:
                await self._speak(call, asked, items, refusal)
            delivered = call.fault.do.corrupt != "no_done" and await self._line.drained()
        except Ended:
            delivered = call.fault.do.reset == "after"
        except ConnectionError:
            pass
        finally:
            self.connection.speaking = None
            service.journal.close(call.record, delivered=delivered)

    def _refusal(self, call: Call, asked: Asked, items: list[Item]) -> Refusal | None:
        """Returns whether a fault or a quota refuses this response."""
        messages = as_messages(items, asked.instructions)
        texts = "\n".join(
            [
                asked.instructions,
                *(part.text or "" for item in items for part in item.parts),
            ]
        )
        into = input_counts(items, asked.instructions)
        out = (
            asked.max_tokens
            if isinstance(asked.max_tokens, int)
            else self._service.config.unstated_max_tokens
        )
        try:
            self._service.identify(
                call,
                {},
                deployment=self._deployment,
                hashed=item_hash(messages),
                text=texts,
                applies=lambda rule: not refuses_upgrades(rule),
            )
            self._service.meter(
                call,
                self._deployment,
                estimated_tokens=into.input_text + into.input_audio + out,
                operation=OPERATION,
            )
        except Refusal as refusal:
            # Status 200 with a body is no refusal: the body is put over `response.done`.
            return _told(refusal) if refusal.status >= 400 else None
        return None

    async def _speak(self, call: Call, asked: Asked, items: list[Item], refusal: Refusal | None) -> None:
        service, connection = self._service, self.connection
        speaking = Speaking(
            line=self._line,
            conversation=connection.conversation,
            asked=asked,
            do=call.fault.do,
            rate=call.rate,
            cached=connection.cached_tokens,
        )
        connection.speaking = speaking
        await speaking.begin()
        if refusal is not None:
            service.journal.answer(call.record, status=refusal.status, billed=False)
            await speaking.fail(_error_of(refusal))
            return
        try:
            said = await say(service, call, asked, items)
        except asyncio.CancelledError:
            raise
        except Exception:
            # An engine that crashed, or a defect of ours: one failed response, not a dead session.
            logger.exception("response %d failed", call.record.n)
            service.journal.answer(call.record, status=500, billed=False)
            await speaking.fail(_error_of(engine_failed()))
            return
        service.count(call, said.counts)
        audio_s = len(said.pcm) / 48_000
        wait_s = service.config.latency_s + call.fault.do.wait_s(draw=call.fault.draw, audio_s=audio_s)
        await speaking.pause(wait_s - call.elapsed_s)
        service.journal.answer(call.record, status=200, billed=said.status != "failed")
        connection.cached_tokens = said.counts.input_text + said.counts.input_audio
        connection.session.has_spoken = connection.session.has_spoken or said.spoken
        await speaking.deliver(said)


def _told(refusal: Refusal) -> Refusal:
    """Returns a refusal in the text that the fault rule's body gives, where it gives any."""
    error = refusal.raw.get("error") if isinstance(refusal.raw, dict) else None
    if not isinstance(error, dict):
        return refusal
    return Refusal(
        status=refusal.status,
        message=str(error.get("message", "")),
        type=error.get("type"),
        param=error.get("param"),
        code=error.get("code"),
    )


def _error_of(refusal: Refusal) -> dict[str, Any]:
    """Returns a refusal as `status_details.error`. Source: the shape is the reference's; the text is chat's."""
    code = "rate_limit_exceeded" if refusal.status == 429 and refusal.gateway else refusal.code
    kind = "server_error" if refusal.status >= 500 else refusal.type or "invalid_request_error"
    return {"type": kind, "code": code, "message": refusal.message}
