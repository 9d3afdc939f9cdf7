"""A response on its way: its events in the service's order, and what the faults do to them.

    response.created, rate_limits.updated, response.output_item.added, conversation.item.added,
    response.content_part.added, transcript and audio deltas in turns (the transcript runs ahead),
    response.output_audio.done, response.output_audio_transcript.done, response.content_part.done,
    conversation.item.done, response.output_item.done, response.done

`response.done` always comes, whatever became of the response, unless a fault keeps it back.

Source: the Realtime reference (server events). The places of `conversation.item.*` and `rate_limits.updated`
among the others are not stated anywhere.
"""

import asyncio
import base64
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from audiobatch_emulator.corruption import HTML
from audiobatch_emulator.faults import Do
from audiobatch_emulator.realtime_audio import delta_pieces, from_pcm
from audiobatch_emulator.realtime_events import (
    content_event,
    event,
    limits_of,
    new_id,
    token_pieces,
)
from audiobatch_emulator.realtime_items import Conversation, Item, Part
from audiobatch_emulator.realtime_response import Asked, Said, details_of, usage
from audiobatch_emulator.surface import RateState

#: Transcript deltas before each delta of audio: speech is slower than its text.
WORDS_AHEAD = 3


class Line(Protocol):
    """The way to the client."""

    async def send(self, event: dict[str, Any]) -> None:
        """Sends one event."""
        ...

    async def send_raw(self, frame: str) -> None:
        """Sends one text frame, whatever is in it."""
        ...

    async def end(self, do: Do) -> None:
        """Ends the connection in the way that a fault asks for."""
        ...


class Ended(Exception):
    """A fault ended the connection."""


@dataclass(eq=False, kw_only=True)
class Speaking:
    """One response. `cancelled_for` is set from outside, and ends it at the next delta."""

    line: Line
    conversation: Conversation
    asked: Asked
    do: Do
    rate: RateState | None
    cached: int
    id: str = field(default_factory=lambda: new_id("resp"))
    cancelled_for: str | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _position: str | None = None

    def __post_init__(self) -> None:
        ends = self.do.close_code is not None or self.do.corrupt == "close"
        self._position = self.do.reset or ("in" if ends else None)

    def cancel(self, reason: str) -> None:
        """Ends it: `client_cancelled` or `turn_detected`."""
        self.cancelled_for = self.cancelled_for or reason
        self._wake.set()

    async def pause(self, seconds: float) -> None:
        """Waits, unless it is cancelled meanwhile."""
        if seconds > 0 and not self.cancelled_for:
            await asyncio.wait([asyncio.ensure_future(self._wake.wait())], timeout=seconds)

    async def begin(self) -> None:
        """Sends the events before there is anything to say.

        Raises:
            Ended: by a fault.
        """
        await self._end_if("before")
        await self.line.send(event("response.created", response=self._described("in_progress", [])))
        await self.line.send(event("rate_limits.updated", rate_limits=limits_of(self.rate)))

    async def fail(self, error: dict[str, Any]) -> None:
        """Sends a response that came to nothing."""
        details = {"type": "failed", "error": error}
        await self._done(self._described("failed", [], details=details))

    async def deliver(self, said: Said) -> None:
        """Sends everything from the item to `response.done`.

        Raises:
            Ended: by a fault.
        """
        if not said.words and said.status != "completed":
            await self._done(self._described(said.status, [], details=details_of(said), said=said))
            return
        kind = "output_audio" if said.spoken else "output_text"
        part = Part(kind=kind, text="", duration_s=0.0)
        item = Item(role="assistant", parts=[], status="in_progress")
        place = {"response_id": self.id, "output_index": 0}
        await self.line.send(event("response.output_item.added", **place, item=item.described()))
        if self.asked.in_conversation:
            before = self.conversation.add(item)
            await self.line.send(
                event(
                    "conversation.item.added",
                    previous_item_id=before,
                    item=item.described(),
                )
            )
        item.parts = [part]
        shown = {"type": "audio", "transcript": ""} if said.spoken else {"type": "text", "text": ""}
        await self._content("response.content_part.added", item, part=shown)
        words = await self._speak(said, item) if said.spoken else await self._write(said, item)
        part.text = words
        item.status = "completed" if said.status == "completed" and not self.cancelled_for else "incomplete"
        if said.spoken:
            await self._content("response.output_audio.done", item)
            await self._content("response.output_audio_transcript.done", item, transcript=words)
        else:
            await self._content("response.output_text.done", item, text=words)
        shown |= {"transcript" if said.spoken else "text": words}
        await self._content("response.content_part.done", item, part=shown)
        if self.asked.in_conversation:
            await self.line.send(event("conversation.item.done", item=item.described()))
        await self.line.send(event("response.output_item.done", **place, item=item.described()))
        status, details = said.status, details_of(said)
        if self.cancelled_for:
            status, details = (
                "cancelled",
                {"type": "cancelled", "reason": self.cancelled_for},
            )
        await self._done(self._described(status, [item.described()], details=details, said=said))
        await self._end_if("after")

    async def _speak(self, said: Said, item: Item) -> str:
        """Sends transcript and audio; returns the transcript that was sent before it ended."""
        audio_format = self.asked.audio_format
        pieces = list(delta_pieces(from_pcm(said.pcm, audio_format), audio_format))
        if self.do.corrupt == "no_audio":
            pieces = []
        words = token_pieces(said.words)
        sent_words = sent_bytes = 0
        for index in range(max(len(pieces), -(-len(words) // WORDS_AHEAD))):
            await asyncio.sleep(0)
            if self.cancelled_for:
                break
            if index == max(1, len(pieces) // 2):
                await self._middle(item)
            for word in words[sent_words : sent_words + WORDS_AHEAD]:
                await self._content("response.output_audio_transcript.delta", item, delta=word)
            sent_words = min(sent_words + WORDS_AHEAD, len(words))
            if index < len(pieces):
                data = base64.b64encode(pieces[index]).decode()
                if self.do.corrupt == "base64" and index == len(pieces) // 2:
                    data = data[:-3]
                await self._content("response.output_audio.delta", item, delta=data)
                sent_bytes += len(pieces[index])
        if len(pieces) <= 1:
            await self._middle(item)
        item.parts[0].duration_s = sent_bytes / audio_format.bytes_a_second
        return "".join(words[:sent_words])

    async def _write(self, said: Said, item: Item) -> str:
        words = token_pieces(said.words)
        for index, word in enumerate(words):
            await asyncio.sleep(0)
            if self.cancelled_for:
                return "".join(words[:index])
            if index == len(words) // 2:
                await self._middle(item)
            await self._content("response.output_text.delta", item, delta=word)
        return said.words

    async def _middle(self, item: Item) -> None:
        """Does what a fault asks for in the middle of a response."""
        if self.do.corrupt == "html":
            await self.line.send_raw(HTML.decode())
        if self.do.corrupt == "json":
            whole = orjson.dumps(content_event("response.output_audio.delta", self.id, item.id, delta="AAAA"))
            await self.line.send_raw(whole[: len(whole) // 2].decode())
        await self.pause(self.do.stall_s)
        await self._end_if("in")

    async def _end_if(self, position: str) -> None:
        if self._position == position:
            await self.line.end(self.do)
            raise Ended

    async def _content(self, kind: str, item: Item, **fields: Any) -> None:
        await self.line.send(content_event(kind, self.id, item.id, **fields))

    async def _done(self, response: dict[str, Any]) -> None:
        replaced = self.do.body if isinstance(self.do.body, dict) else {}
        if self.do.corrupt != "no_done":
            await self.line.send(event("response.done", response=response | replaced))

    def _described(
        self,
        status: str,
        output: list[dict[str, Any]],
        *,
        details: dict[str, Any] | None = None,
        said: Said | None = None,
    ) -> dict[str, Any]:
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details,
            "output": output,
            "conversation_id": self.conversation.id if self.asked.in_conversation else None,
            **self.asked.described(),
            "usage": usage(said.counts, cached=self.cached) if said is not None else None,
        }
