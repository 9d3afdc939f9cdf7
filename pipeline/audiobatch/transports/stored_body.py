"""A reply as a body that is kept for later, whatever brought it: one shape, that of a chat completion.

What a chat completion's body has no place for stands under a key of its own.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson
import pybase64

if TYPE_CHECKING:
    from audiobatch.model import Reply

#: The body's own key for what the service's shape lacks.
OWN_KEY = "audiobatch"


def body_of(reply: Reply) -> bytes:
    """The body that came, or one that holds all of the reply."""
    if reply.raw:
        return reply.raw
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.audio is not None:
        message["audio"] = {
            "id": reply.audio_id,
            "expires_at": reply.audio_expires_at,
            "data": pybase64.b64encode(reply.audio).decode(),
            "transcript": reply.transcript,
        }
    body = {
        "model": reply.model,
        "choices": [{"index": 0, "finish_reason": reply.finish_reason, "message": message}],
        OWN_KEY: {
            "audio_format": reply.audio_format,
            "transcript": reply.transcript,
            "input_transcript": reply.input_transcript,
            "usage": asdict(reply.usage) if reply.usage else None,
            "input_usage": asdict(reply.input_usage) if reply.input_usage else None,
            "repaired": reply.repaired,
            "latency_s": reply.latency_s,
        },
    }
    return orjson.dumps(body)


def note_of(body: bytes) -> dict[str, Any]:
    """What stands under a body's own key."""
    try:
        found = orjson.loads(body)
    except ValueError:
        return {}
    note = found.get(OWN_KEY) if isinstance(found, dict) else None
    return note if isinstance(note, dict) else {}
