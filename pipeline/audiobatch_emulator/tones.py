"""A voice without an engine: quiet tones in place of speech, for load tests and installations without
`local`.

The text is read off in steps of three characters, a syllable each, five syllables a second, which is the
pace of speech: fifteen characters a second. A syllable's pitch follows its letters within the voice's
range; punctuation is a pause. So the length, the voice and (coarsely) the text can all be told from the
sound, and a reply that was handed to the wrong request is noticed. Every syllable starts and ends at
silence, so they are joined without clicks, and a reply is nothing but a join of ready-made pieces:
thousands a second.
"""

import functools
import math

import numpy as np

from audiobatch_emulator.voices import Voice, voice_named

SAMPLE_RATE_HZ = 24_000
SYLLABLE_S = 0.2
CHARACTERS_PER_SYLLABLE = 3
PITCH_STEPS = 8
PEAK = 0.12  # of full scale, about -18 dBFS: quiet beside speech

_PAUSES = frozenset(".,;:!?\n")


class ToneSpeech:
    """`Speech` by tones. It needs no process, no lock and no cache of replies."""

    async def say(self, text: str, voice: str) -> bytes:
        """Returns mono s16le PCM at 24 000 Hz, a whole number of syllables, at least one."""
        return tone_speech(text, voice_named(voice))

    async def aclose(self) -> None:
        """Does nothing: nothing is open."""


def tone_speech(text: str, voice: Voice) -> bytes:
    """Returns the tones for a text, mono s16le at 24 000 Hz; 0.2 s for every three characters."""
    syllables, pause = _syllables(voice)
    pieces = [
        text[start : start + CHARACTERS_PER_SYLLABLE]
        for start in range(0, len(text), CHARACTERS_PER_SYLLABLE)
    ]
    return b"".join(
        pause if not _PAUSES.isdisjoint(piece) else syllables[sum(map(ord, piece)) % PITCH_STEPS]
        for piece in pieces or ["…"]
    )


@functools.lru_cache(maxsize=64)
def _syllables(voice: Voice) -> tuple[tuple[bytes, ...], bytes]:
    """Returns the voice's syllables, lowest pitch first, and a pause of the same length; s16le, 9600 bytes each."""
    count = round(SYLLABLE_S * SAMPLE_RATE_HZ)
    time_s = np.arange(count) / SAMPLE_RATE_HZ
    envelope = np.sin(math.pi * np.arange(count) / count) ** 2
    syllables = []
    for step in range(PITCH_STEPS):
        pitch_hz = voice.low_pitch_hz + (voice.high_pitch_hz - voice.low_pitch_hz) * step / (PITCH_STEPS - 1)
        # A few harmonics, so that the pitch can be measured as a voice's is.
        wave = sum(np.sin(2 * math.pi * pitch_hz * harmonic * time_s) / harmonic for harmonic in (1, 2, 3))
        samples = PEAK * envelope * wave / np.max(np.abs(wave))
        syllables.append(np.round(samples * 32767).astype("<i2").tobytes())
    return tuple(syllables), bytes(2 * count)
