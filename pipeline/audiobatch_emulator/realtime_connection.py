"""One open session: what the client sends is read here, in order, and answered by events.

Responses and hearings run beside it, so that a response can be cancelled, and audio appended, while one is
under way. A wrong event is answered by an `error` event; the session stays open.

Source: the Realtime reference (client events); the words of errors as found in public reports.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from audiobatch_emulator.checks import missing, text
from audiobatch_emulator.hearing import Hearing
from audiobatch_emulator.realtime_events import error_event, event
from audiobatch_emulator.realtime_input import InputAudio
from audiobatch_emulator.realtime_items import Conversation, Item, read_item
from audiobatch_emulator.realtime_response import Asked, read_response
from audiobatch_emulator.realtime_session import Session
from audiobatch_emulator.realtime_speaking import Line, Speaking
from audiobatch_emulator.recognition import Recognizer
from audiobatch_emulator.request_errors import invalid, invalid_value
from audiobatch_emulator.service_errors import Refusal

Respond = Callable[[Asked, list[Item]], Coroutine[Any, Any, None]]


class Connection:
    """One session and its conversation. `speaking` is the response under way."""

    def __init__(self, *, line: Line, session: Session, recognizer: Recognizer, respond: Respond) -> None:
        self.session = session
        self.conversation = Conversation()
        self.speaking: Speaking | None = None
        self.cached_tokens = 0
        self._line = line
        self._recognizer = recognizer
        self._respond = respond
        self._tasks: set[asyncio.Task[Any]] = set()
        self._responding: asyncio.Task[None] | None = None
        self._input = InputAudio(
            line=line,
            session=session,
            hear=self._hear,
            beside=self._beside,
            add=self._add_spoken,
            interrupt=self._interrupt,
            respond=self._respond_by_itself,
        )

    async def open(self) -> None:
        """Sends the first event."""
        await self._line.send(event("session.created", session=self.session.described()))

    async def close(self) -> None:
        """Ends what runs beside the session."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def receive(self, frame: str | bytes) -> None:
        """Handles one frame of the client's."""
        try:
            message = orjson.loads(frame)
        except orjson.JSONDecodeError:
            message = None
        if not isinstance(message, dict):
            refusal = invalid(
                "The server could not parse the JSON of your event.",
                None,
                "invalid_json",
            )
            await self._line.send(error_event(refusal, None))
            return
        try:
            await self._handle(message)
        except Refusal as refusal:
            identity = message.get("event_id")
            await self._line.send(error_event(refusal, identity if isinstance(identity, str) else None))

    async def _handle(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind is None:
            raise missing("type")
        handlers = {
            "session.update": self._update,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.delete": self._delete_item,
            "conversation.item.truncate": self._truncate_item,
            "input_audio_buffer.append": self._input.append,
            "input_audio_buffer.commit": self._input.commit,
            "input_audio_buffer.clear": self._input.clear,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
        }
        handler = handlers.get(kind) if isinstance(kind, str) else None
        if handler is None:
            raise invalid_value(kind, tuple(handlers), "type")
        await handler(message)

    async def _update(self, message: dict[str, Any]) -> None:
        self.session.update(message.get("session"))
        self._input.settings_changed()
        await self._line.send(event("session.updated", session=self.session.described()))

    async def _create_item(self, message: dict[str, Any]) -> None:
        item = read_item(message.get("item"), self.session.input_format, self._hear)
        await self._add(item, message.get("previous_item_id"))

    async def _add(self, item: Item, after: object = None) -> None:
        before = self.conversation.add(item, after)
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self._line.send(event(kind, previous_item_id=before, item=item.described()))

    async def _add_spoken(self, item: Item) -> None:
        last = self.conversation.items[-1].id if self.conversation.items else None
        await self._line.send(event("input_audio_buffer.committed", previous_item_id=last, item_id=item.id))
        await self._add(item)

    def _interrupt(self) -> None:
        if self.speaking is not None:
            self.speaking.cancel("turn_detected")

    async def _retrieve_item(self, message: dict[str, Any]) -> None:
        item = self.conversation.find(message.get("item_id"))
        await self._line.send(event("conversation.item.retrieved", item=item.described()))

    async def _delete_item(self, message: dict[str, Any]) -> None:
        item = self.conversation.find(message.get("item_id"))
        self.conversation.items.remove(item)
        await self._line.send(event("conversation.item.deleted", item_id=item.id))

    async def _truncate_item(self, message: dict[str, Any]) -> None:
        item = self.conversation.find(message.get("item_id"))
        end_ms = message.get("audio_end_ms")
        if item.role != "assistant" or not isinstance(end_ms, int) or not item.parts:
            raise invalid(
                "Only audio of an assistant's message can be truncated.",
                "item_id",
                "invalid_value",
            )
        part = item.parts[0]
        if end_ms > part.duration_s * 1000:
            raise invalid(
                f"Audio content of {part.duration_s * 1000:.0f}ms is already shorter than {end_ms}ms",
                "audio_end_ms",
                "invalid_value",
            )
        part.duration_s, part.text = end_ms / 1000, ""
        await self._line.send(
            event(
                "conversation.item.truncated",
                item_id=item.id,
                content_index=0,
                audio_end_ms=end_ms,
            )
        )

    async def _respond_by_itself(self) -> None:
        """Responds at the end of a speech; a cancelled response is let end first."""
        if self._responding is not None and self.speaking is not None and self.speaking.cancelled_for:
            await asyncio.wait([self._responding])
        if self.speaking is None:
            self._start(read_response(None, self.session), self.conversation.items)

    async def _create_response(self, message: dict[str, Any]) -> None:
        given = message.get("response")
        own = given.get("input") if isinstance(given, dict) else None
        items = None if own is None else tuple(self._own_items(own))
        asked = read_response(given, self.session, items)
        if self.speaking is not None:
            raise invalid(
                f"Conversation already has an active response in progress: {self.speaking.id}. Wait until the "
                "response is finished before creating a new one.",
                None,
                "conversation_already_has_active_response",
            )
        self._start(asked, list(self.conversation.items if items is None else items))

    def _own_items(self, given: Any) -> list[Item]:
        if not isinstance(given, list):
            raise invalid_value(given, ("an array of items",), "response.input")
        return [
            self.conversation.find(element.get("id"), "response.input")
            if isinstance(element, dict) and element.get("type") == "item_reference"
            else read_item(element, self.session.input_format, self._hear, f"response.input[{index}]")
            for index, element in enumerate(given)
        ]

    async def _cancel_response(self, message: dict[str, Any]) -> None:
        identity = message.get("response_id")
        if identity is not None:
            text(identity, "response_id")
        if self.speaking is None or identity not in (None, self.speaking.id):
            raise invalid(
                "Cancellation failed: no active response found",
                None,
                "response_cancel_not_active",
            )
        self.speaking.cancel("client_cancelled")

    def _start(self, asked: Asked, items: list[Item]) -> None:
        self._responding = self._beside(self._respond(asked, list(items)))

    def _hear(self, wav: bytes) -> asyncio.Task[Hearing]:
        hearing = self._beside(self._recognizer.hear(wav))
        hearing.add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )  # awaited by whoever needs it
        return hearing

    def _beside(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
