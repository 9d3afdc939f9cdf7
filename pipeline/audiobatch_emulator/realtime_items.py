"""A session's conversation: its items in order, as clients put them there and as answers need them.

Recordings are heard as soon as they are in the conversation, in the background: the transcription that a
client asked for and the next answer wait for the same hearing.

Source: the Realtime reference (`conversation.item.create`, item objects). November 2026.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audiobatch_emulator.answers import Heard
from audiobatch_emulator.checks import missing, object_, text, wrong_type
from audiobatch_emulator.hearing import Hearing
from audiobatch_emulator.realtime_audio import SocketFormat, as_wav, to_samples, unpacked
from audiobatch_emulator.realtime_events import new_id
from audiobatch_emulator.request_errors import invalid, invalid_value
from audiobatch_emulator.tokens import audio_in_tokens, audio_out_tokens, text_tokens

Hear = Callable[[bytes], asyncio.Task[Hearing]]
_CONTENT = {
    "system": ("input_text",),
    "user": ("input_text", "input_audio"),
    "assistant": ("output_text", "output_audio"),
}


@dataclass(slots=True, kw_only=True)
class Part:
    """One content part. `text` is the text, or the transcript of audio; None: not known."""

    kind: str
    text: str | None = None
    duration_s: float = 0.0
    digest: str = ""
    hearing: asyncio.Task[Hearing] | None = None

    def described(self) -> dict[str, Any]:
        """Returns the part as events show it: never with audio bytes."""
        return {
            "type": self.kind,
            "transcript" if self.kind.endswith("audio") else "text": self.text,
        }


@dataclass(slots=True, kw_only=True)
class Item:
    """One message."""

    role: str
    parts: list[Part]
    id: str = field(default_factory=lambda: new_id("item"))
    status: str = "completed"

    def described(self) -> dict[str, Any]:
        """Returns the item as events show it."""
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": [part.described() for part in self.parts],
        }

    def input_tokens(self) -> tuple[int, int]:
        """Returns the text and audio tokens that it costs as input."""
        written = sum(text_tokens(part.text or "") for part in self.parts if part.kind.endswith("text"))
        per = audio_out_tokens if self.role == "assistant" else audio_in_tokens
        return written, sum(per(part.duration_s) for part in self.parts if part.kind.endswith("audio"))


def recording(samples: NDArray[np.int16], rate_hz: int, hear: Hear) -> Part:
    """Returns a part for a user's audio; its recognition begins now."""
    wav = as_wav(samples, rate_hz)
    return Part(
        kind="input_audio",
        duration_s=len(samples) / rate_hz,
        digest=hashlib.sha256(wav).hexdigest(),
        hearing=hear(wav),
    )


def read_item(value: object, audio_format: SocketFormat, hear: Hear, param: str = "item") -> Item:
    """Reads an item as a client sends it.

    Raises:
        Refusal: what it holds is wrong, or not emulated.
    """
    object_(value, param)
    assert isinstance(value, dict)
    if value.get("type") != "message":
        raise invalid_value(value.get("type"), ("message",), f"{param}.type")
    role = value.get("role")
    if role not in _CONTENT:
        raise invalid_value(role, tuple(_CONTENT), f"{param}.role")
    content = value.get("content")
    if not isinstance(content, list):
        raise wrong_type(f"{param}.content", "an array of objects", content)
    parts = [
        _part(part, str(role), audio_format, hear, f"{param}.content[{index}]")
        for index, part in enumerate(content)
    ]
    item = Item(role=str(role), parts=parts)
    if value.get("id") is not None:
        text(value["id"], f"{param}.id")
        item.id = value["id"]
        if not 0 < len(item.id) <= 32:
            raise invalid(
                f"Invalid '{param}.id': string too long. Expected a string with maximum length 32.",
                f"{param}.id",
                "string_above_max_length",
            )
    return item


def _part(value: object, role: str, audio_format: SocketFormat, hear: Hear, param: str) -> Part:
    object_(value, param)
    assert isinstance(value, dict)
    kind = value.get("type")
    if kind not in _CONTENT[role]:
        raise invalid_value(kind, _CONTENT[role], f"{param}.type")
    if kind == "input_audio":
        if value.get("audio") is None:
            raise missing(f"{param}.audio")
        samples = to_samples(unpacked(value["audio"], f"{param}.audio"), audio_format)
        return recording(samples, audio_format.rate_hz, hear)
    name = "transcript" if kind == "output_audio" else "text"
    if name not in value:
        raise missing(f"{param}.{name}")
    text(value[name], f"{param}.{name}")
    return Part(kind=str(kind), text=value[name])


class Conversation:
    """The items of a session, in order."""

    def __init__(self) -> None:
        self.id = new_id("conv")
        self.items: list[Item] = []

    def add(self, item: Item, after: object = None) -> str | None:
        """Puts an item at the end, or after another (`root`: first); gives the id of the one before it.

        Raises:
            Refusal: there is such an item already, or none to put it after.
        """
        if any(known.id == item.id for known in self.items):
            raise invalid(
                f"Error adding item: the conversation already has an item with id '{item.id}'.",
                "item.id",
                "item_create_duplicate_item_id",
            )
        at = len(self.items)
        if after == "root":
            at = 0
        elif after is not None:
            at = 1 + self.items.index(self.find(after, "previous_item_id"))
        self.items.insert(at, item)
        return self.items[at - 1].id if at else None

    def find(self, identity: object, param: str = "item_id") -> Item:
        """Returns an item by its id.

        Raises:
            Refusal: there is none.
        """
        for item in self.items:
            if item.id == identity:
                return item
        raise invalid(f"Item with item_id not found: {identity}", param, "item_not_found")


async def as_heard(items: list[Item], instructions: str) -> tuple[Heard, ...]:
    """Returns the conversation as the answers read it; messages of one speaker in a row are one turn.

    Raises:
        EngineCrashed: the recognizer failed on a recording.
    """
    turns = [Heard(role="system", text=instructions)]
    for item in items:
        texts = [part.text for part in item.parts if part.text]
        hearings = tuple([await part.hearing for part in item.parts if part.hearing is not None])
        last = turns[-1]
        if last.role == item.role and item.role == "user":
            said = "\n".join(filter(None, (last.text, *texts)))
            turns[-1] = Heard(role="user", text=said, hearings=last.hearings + hearings)
        else:
            turns.append(Heard(role=item.role, text="\n".join(texts), hearings=hearings))
    return tuple(turns)


def as_messages(items: list[Item], instructions: str) -> list[dict[str, Any]]:
    """Returns what a retry would repeat: texts and recordings, without ids. For the journal's `item_hash`."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}]
    for item in items:
        content = [{"text": part.text, "audio": part.digest} for part in item.parts]
        messages.append({"role": item.role, "content": content})
    return messages
