"""Write a reply of any transport as a body to store, in the shape of a chat completion.

Fields that a chat completion does not have are under a key of their own.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson
import pybase64

if TYPE_CHECKING:
    from audiobatch.model import Reply

#: The key of the fields that a chat completion does not have.
OWN_KEY = "audiobatch"


def body_of(reply: Reply) -> bytes:
    """Return the reply's own body, or one that holds all of the reply."""
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


def own_fields(body: bytes) -> dict[str, Any]:
    """Return the fields under `OWN_KEY`; empty where a body has none."""
    try:
        fields = orjson.loads(body)
    except ValueError:
        return {}
    own = fields.get(OWN_KEY) if isinstance(fields, dict) else None
    return own if isinstance(own, dict) else {}
