"""The samples that a stream or a session brought, in the format that was asked for."""

from __future__ import annotations

from audiobatch.audio.encode import encode_reply
from audiobatch.errors import BadReply


def encoded(pcm: bytes, wanted: str) -> bytes:
    """CPU work; see `encode_reply`.

    Raises:
        BadReply: they are no sound.
    """
    try:
        return encode_reply(pcm, wanted)
    except ValueError as failed:
        raise BadReply(f"the reply's audio cannot be used: {failed}") from failed
