"""Any recording as bare samples: what sockets take, 16 bits little-endian, one channel, 24 kHz."""

from __future__ import annotations

import io

from audiobatch.audio.channels import pick_channel
from audiobatch.audio.convert import HIGH_RATE_HZ, resampled
from audiobatch.audio.decode import NotAudio, open_sound
from audiobatch.audio.encode import to_int16
from audiobatch.errors import InputError, working_on_input

__all__ = ["BYTES_A_SECOND", "pcm_of", "silence"]

BYTES_A_SECOND = 2 * HIGH_RATE_HZ


def pcm_of(recording: bytes) -> bytes:
    """A whole file's samples; CPU work for a thread.

    Raises:
        InputError: the bytes are no recording.
    """
    with working_on_input("a recording"):
        try:
            with open_sound(io.BytesIO(recording), len(recording)) as sound:
                one_channel = (pick_channel(block, "mix") for block in sound.blocks())
                blocks = resampled(one_channel, sound.sample_rate_hz, HIGH_RATE_HZ)
                return b"".join(to_int16(block).astype("<i2").tobytes() for block in blocks)
        except NotAudio as error:
            raise InputError(str(error)) from error


def silence(seconds: float) -> bytes:
    """Digital silence of this length."""
    return bytes(2 * round(seconds * HIGH_RATE_HZ))
