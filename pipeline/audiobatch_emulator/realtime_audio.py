"""Audio on the socket: its three formats, and the sizes in which a reply is sent.

    audio/pcm    mono s16le at 24 000 Hz
    audio/pcmu   G.711 μ-law at 8 000 Hz
    audio/pcma   G.711 A-law at 8 000 Hz

Source: the Realtime reference (`RealtimeAudioFormats`); ITU-T G.711; the sizes of deltas are those of a run
that Azure's realtime quickstart prints (4800, 7200, 12000 … and a longer last one).
"""

import base64
import binascii
import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from audiobatch_emulator.encode import SAMPLE_RATE_HZ
from audiobatch_emulator.request_errors import invalid

PHONE_RATE_HZ = 8_000
MOST_APPEND_BYTES = 15 * 1024 * 1024
_FIRST_DELTAS_S = (0.1, 0.15)
_DELTA_S = 0.25
_LONGEST_LAST_S = 0.6
_MU_BIAS, _MU_CLIP = 132, 32_635


@dataclass(frozen=True, slots=True)
class SocketFormat:
    """One format. `bytes_a_second` of what goes over the wire, before base64."""

    type: str
    rate_hz: int
    sample_bytes: int

    @property
    def bytes_a_second(self) -> int:
        """Of the format as it is sent."""
        return self.rate_hz * self.sample_bytes

    def described(self) -> dict[str, object]:
        """Returns the format as a session shows it."""
        return {"type": self.type, "rate": self.rate_hz} if self.sample_bytes == 2 else {"type": self.type}


PCM = SocketFormat("audio/pcm", SAMPLE_RATE_HZ, 2)
FORMATS = {
    known.type: known
    for known in (
        PCM,
        SocketFormat("audio/pcmu", PHONE_RATE_HZ, 1),
        SocketFormat("audio/pcma", PHONE_RATE_HZ, 1),
    )
}


def unpacked(value: object, param: str) -> bytes:
    """Returns the bytes of a base64 string.

    Source of the words: github.com/Azure-Samples/aoai-realtime-audio-sdk/issues/95.
    """
    try:
        if not isinstance(value, str):
            raise TypeError
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise invalid(
            f"Invalid '{param}'. Expected base64-encoded audio bytes (mono PCM16 at 24kHz) but got an invalid "
            "value.",
            param,
            "invalid_value",
        ) from None


def to_samples(data: bytes, audio_format: SocketFormat) -> NDArray[np.int16]:
    """Returns what came over the wire as 16-bit samples at the format's own rate; half a sample is dropped."""
    if audio_format.sample_bytes == 2:
        return np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2")
    table = _MU_TABLE if audio_format.type == "audio/pcmu" else _A_TABLE
    return table[np.frombuffer(data, dtype=np.uint8)]


def from_pcm(pcm: bytes, audio_format: SocketFormat) -> bytes:
    """Speech (s16le at 24 kHz) in the format of the socket."""
    if audio_format.sample_bytes == 2:
        return pcm
    samples = np.frombuffer(pcm, dtype="<i2").astype(np.float32) / 32768
    slow = soxr.resample(samples, SAMPLE_RATE_HZ, PHONE_RATE_HZ)
    whole = np.clip(np.rint(slow * 32768), -32768, 32767).astype(np.int32)
    return (_mu_law(whole) if audio_format.type == "audio/pcmu" else _a_law(whole)).tobytes()


def as_wav(samples: NDArray[np.int16], rate_hz: int) -> bytes:
    """Returns a WAV file, for the recognizer."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return out.getvalue()


def delta_pieces(data: bytes, audio_format: SocketFormat) -> Iterator[bytes]:
    """Returns a reply's audio cut as the service cuts it: two short pieces, even ones, a longer last one."""
    at = 0
    lengths = iter(_FIRST_DELTAS_S)
    while len(data) - at > round(_LONGEST_LAST_S * audio_format.bytes_a_second):
        size = round(next(lengths, _DELTA_S) * audio_format.bytes_a_second)
        yield data[at : at + size]
        at += size
    if at < len(data):
        yield data[at:]


def _mu_law(samples: NDArray[np.int32]) -> NDArray[np.uint8]:
    magnitude = np.minimum(np.abs(samples), _MU_CLIP) + _MU_BIAS
    exponent = np.floor(np.log2(magnitude)).astype(np.int32) - 7
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    sign = np.where(samples < 0, 0x80, 0)
    code: NDArray[np.uint8] = (~(sign | (exponent << 4) | mantissa) & 0xFF).astype(np.uint8)
    return code


def _a_law(samples: NDArray[np.int32]) -> NDArray[np.uint8]:
    positive = samples >= 0
    magnitude = np.where(positive, samples, -samples - 1) >> 3
    segment = np.maximum(np.floor(np.log2(np.maximum(magnitude, 1))).astype(np.int32) - 4, 0)
    low = (magnitude >> np.maximum(segment, 1)) & 0x0F
    code: NDArray[np.uint8] = (((segment << 4) | low) ^ np.where(positive, 0xD5, 0x55)).astype(np.uint8)
    return code


def _mu_table() -> NDArray[np.int16]:
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = ((((code & 0x0F) << 3) + _MU_BIAS) << ((code >> 4) & 7)) - _MU_BIAS
    table: NDArray[np.int16] = np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)
    return table


def _a_table() -> NDArray[np.int16]:
    code = np.arange(256, dtype=np.int32) ^ 0x55
    segment = (code >> 4) & 7
    low = ((code & 0x0F) << 4) + np.where(segment > 0, 0x108, 8)
    magnitude = low << np.maximum(segment - 1, 0)
    table: NDArray[np.int16] = np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)
    return table


_MU_TABLE, _A_TABLE = _mu_table(), _a_table()
