"""A text made into the audio of a reply: spoken, encoded, packed as base64, and remembered.

The cache is by text, voice and format, and bounded in bytes: a load test that asks the same again costs no
speech and no encoding.
"""

import asyncio
import base64
from collections import OrderedDict
from dataclasses import dataclass

from audiobatch_emulator.encode import BYTES_PER_SECOND, encode
from audiobatch_emulator.speech import Speech

CACHE_BYTES = 192 * 1024 * 1024
#: What is spoken, over and over, where every reply is to have a fixed length.
FILLER = "This reply has a fixed length. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Voiced:
    """Audio of a reply: base64, and how long it plays."""

    data: bytes
    duration_s: float


class Voicing:
    """Speaks replies."""

    def __init__(self, speech: Speech, *, reply_audio_s: float | None = None) -> None:
        self._speech = speech
        self._reply_audio_s = reply_audio_s
        self._cache: OrderedDict[tuple[str, str, str], Voiced] = OrderedDict()
        self._cached_bytes = 0

    async def voice(self, text: str, voice: str, audio_format: str) -> Voiced:
        """Speaks the text, in the format asked for.

        Raises:
            EngineCrashed: the speech engine failed on this text.
        """
        if self._reply_audio_s is not None:
            text = FILLER
        key = (text, voice, audio_format)
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        pcm = await self.pcm(text, voice)
        voiced = await pack(pcm, audio_format)
        self._remember(key, voiced)
        return voiced

    async def pcm(self, text: str, voice: str) -> bytes:
        """Speaks the text: mono s16le at 24 kHz, not cached here."""
        pcm = await self._speech.say(text, voice)
        if self._reply_audio_s is None:
            return pcm
        wanted = 2 * round(self._reply_audio_s * BYTES_PER_SECOND / 2)
        return (pcm * (wanted // len(pcm) + 1))[:wanted]

    def _remember(self, key: tuple[str, str, str], voiced: Voiced) -> None:
        if key in self._cache or len(voiced.data) > CACHE_BYTES // 8:
            return
        self._cache[key] = voiced
        self._cached_bytes += len(voiced.data)
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1].data)


async def pack(pcm: bytes, audio_format: str) -> Voiced:
    """Encodes samples; the slow formats in a thread."""
    quick = audio_format in ("wav", "pcm16") and len(pcm) < 4 * 1024 * 1024
    data = _packed(pcm, audio_format) if quick else await asyncio.to_thread(_packed, pcm, audio_format)
    return Voiced(data=data, duration_s=len(pcm) / BYTES_PER_SECOND)


def _packed(pcm: bytes, audio_format: str) -> bytes:
    return base64.b64encode(encode(pcm, audio_format))
