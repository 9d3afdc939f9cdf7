"""A request's body that holds megabytes of sound: encoded piece by piece as it goes out, never whole.

A recording of 20 MB is 27 MB of base64, 27 more as JSON, and stays so for as long as its call lasts. Here the JSON
is made with a mark in each sound's place, and cut there: what is kept for a call is the recording itself.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import orjson
import pybase64

from audiobatch.transports.chat_request import body_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from audiobatch.model import Request

#: With less sound than this a body is made whole.
PIECEWISE_BYTES = 1 << 20
#: Bytes of sound encoded at a time: whole groups of three, so that the pieces' base64 joins up.
_PIECE_BYTES = 3 << 16


class PiecewiseBody:
    """JSON text and sounds in turn. May be sent again: each time it begins anew."""

    def __init__(self, parts: list[bytes], sounds: list[bytes]) -> None:
        """Args: parts: of the JSON, one more than sounds: these go between them, in base64."""
        self._parts = parts
        self._sounds = sounds
        encoded = sum(-(-len(sound) // 3) * 4 for sound in sounds)
        self.size_bytes = encoded + sum(len(part) for part in parts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part, sound in zip(self._parts, self._sounds, strict=False):
            yield part
            view = memoryview(sound)
            for start in range(0, len(view), _PIECE_BYTES):
                yield pybase64.b64encode(view[start : start + _PIECE_BYTES])
        yield self._parts[-1]


def encoded_body(
    request: Request, deployment: str, now_s: float, *, as_stream: Any = None
) -> bytes | PiecewiseBody:
    """A request as it goes out.

    Args:
        request: what to ask.
        deployment: goes as `model`.
        now_s: epoch seconds.
        as_stream: changes the body into one that asks for a stream.
    """
    sounds = [part.data for part in (request.audio, *(one.audio for one in request.history)) if part]
    change = as_stream or (lambda body: body)
    if sum(len(sound) for sound in sounds) < PIECEWISE_BYTES:
        return orjson.dumps(change(body_of(request, deployment, now_s)))
    mark = secrets.token_hex(16)
    taken: list[bytes] = []

    def put_aside(sound: bytes) -> str:
        taken.append(sound)
        return mark

    text = orjson.dumps(change(body_of(request, deployment, now_s, encode=put_aside)))
    return PiecewiseBody(text.split(mark.encode()), taken)
