"""Sessions of the official Python client, and what the tests say and hear in them."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection

from audiobatch_emulator.process import EmulatorProcess

MODEL = "gpt-realtime"
WAIT_S = 20.0
#: The session of Azure's quickstart.
QUICKSTART: dict[str, Any] = {
    "type": "realtime",
    "instructions": "You are a helpful assistant. You respond by voice and text.",
    "output_modalities": ["audio"],
    "audio": {
        "input": {
            "transcription": {"model": "whisper-1"},
            "format": {"type": "audio/pcm", "rate": 24000},
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.5,
                "prefix_padding_ms": 300,
                "silence_duration_ms": 200,
                "create_response": True,
            },
        },
        "output": {"voice": "alloy", "format": {"type": "audio/pcm", "rate": 24000}},
    },
}


@asynccontextmanager
async def session(
    server: EmulatorProcess, path: str = "/openai/v1", *, key: Any = None, model: str = MODEL, **settings: Any
) -> AsyncIterator[AsyncRealtimeConnection]:
    """An open session; `session.created` is not read yet."""
    async with (
        asyncio.timeout(WAIT_S),
        AsyncOpenAI(base_url=server.base_url + path, api_key=key or server.api_key) as client,
        client.realtime.connect(model=model, **settings) as connection,
    ):
        yield connection


async def until(
    connection: AsyncRealtimeConnection, last: str, *, also: Callable[[Any], bool] | None = None
) -> list[dict[str, Any]]:
    """All events up to the first of this kind."""
    events: list[dict[str, Any]] = []
    while True:
        event = await connection.recv()
        events.append(event.to_dict())
        if event.type == last and (also is None or also(event)):
            return events


async def say(connection: AsyncRealtimeConnection, text: str) -> None:
    """Add a user's message to the conversation."""
    content: Any = [{"type": "input_text", "text": text}]
    await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})


async def update(connection: AsyncRealtimeConnection, **changes: Any) -> dict[str, Any]:
    """Changes the session; gives it as the service shows it then."""
    update: Any = {"type": "session.update", "session": {"type": "realtime"} | changes}
    await connection.send(update)
    found: dict[str, Any] = (await until(connection, "session.updated"))[-1]["session"]
    return found


def no_vad(**more: Any) -> dict[str, Any]:
    """Return a session's settings without turn detection."""
    return {"audio": {"input": {"turn_detection": None, **more}}}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The kinds of the events, each run of one kind once."""
    found = [event["type"] for event in events]
    return [kind for index, kind in enumerate(found) if index == 0 or found[index - 1] != kind]


def audio_of(events: list[dict[str, Any]]) -> list[bytes]:
    """The audio deltas, decoded."""
    return [
        base64.b64decode(event["delta"], validate=True)
        for event in events
        if event["type"] == "response.output_audio.delta"
    ]


def words_of(events: list[dict[str, Any]]) -> str:
    """Return the transcript of a response's audio."""
    return "".join(e["delta"] for e in events if e["type"] == "response.output_audio_transcript.delta")


def tone(duration_s: float, rate_hz: int = 24_000, level: float = 0.25) -> bytes:
    """A 220 Hz tone as bare samples."""
    times = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (32767 * level * np.sin(2 * np.pi * 220 * times)).astype("<i2").tobytes()


def packed(pcm: bytes) -> str:
    """Encode audio as an event carries it."""
    return base64.b64encode(pcm).decode()
