"""Encode samples: mp3 for sending, and the formats of replies that the service does not make."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np

from audiobatch.audio.decode import open_sound
from audiobatch.audio.wav import is_wav, pcm_to_wav, repair_header

if TYPE_CHECKING:
    from collections.abc import Iterable

    import av
    from numpy.typing import NDArray

ReplyFormat = Literal["wav", "pcm16", "mp3", "flac", "opus", "aac", "m4a", "ogg"]

#: Formats that `encode_reply` makes.
REPLY_FORMATS: tuple[ReplyFormat, ...] = ("wav", "pcm16", "mp3", "flac", "opus", "aac", "m4a", "ogg")

#: (FFmpeg's container, its encoder, sample kind, bits a second a channel); speech at these rates is
#: transparent to most listeners. `ogg` is Vorbis, by libsndfile: FFmpeg's own Vorbis encoder is experimental.
_ENCODERS: dict[str, tuple[str, str, str, int | None]] = {
    "mp3": ("mp3", "libmp3lame", "s16p", 96_000),
    "flac": ("flac", "flac", "s16", None),
    "opus": ("ogg", "libopus", "s16", 48_000),
    "aac": ("adts", "aac", "fltp", 80_000),
    "m4a": ("ipod", "aac", "fltp", 80_000),
}
#: Rates that the encoders take; others are resampled to the nearest above.
_RATES_HZ: dict[str, tuple[int, ...]] = {
    "mp3": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    "opus": (8_000, 12_000, 16_000, 24_000, 48_000),
    "aac": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    "m4a": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
}
_VORBIS_BLOCK_FRAMES = 4_096
_FRAMES_A_PUSH = 32_768


def encode_reply(pcm_or_wav: bytes, format: str) -> bytes:  # noqa: A002 - the service's own word for it
    """Encode a reply in a format that the service does not make, or that a socket does not send.

    Args:
        pcm_or_wav: a WAV (its sizes may be wrong), or 16-bit samples at 24 kHz, one channel.
        format: one of `REPLY_FORMATS`.

    Raises:
        ValueError: an unknown format, or no samples to encode.
    """
    if format not in REPLY_FORMATS:
        raise ValueError(f"cannot encode {format!r}; known: {', '.join(REPLY_FORMATS)}")
    wav = repair_header(pcm_or_wav) if is_wav(pcm_or_wav[:12]) else pcm_to_wav(pcm_or_wav)
    if format == "wav":
        return wav
    with open_sound(io.BytesIO(wav), len(wav)) as sound:
        blocks = [to_int16(block) for block in sound.blocks()]
        if not blocks:
            raise ValueError("there are no samples to encode")
        if format == "pcm16":
            return b"".join(block.tobytes() for block in blocks)
        return encode(blocks, sound.sample_rate_hz, sound.channels, format)


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Round float samples at full scale ±1 to 16 bits; exact for what was 16 bits."""
    scaled = np.rint(samples * np.float32(32768))
    whole: NDArray[np.int16] = np.clip(scaled, -32768, 32767).astype(np.int16)
    return whole


def encode(
    blocks: Iterable[NDArray[np.int16]],
    sample_rate_hz: int,
    channels: int,
    format: str,  # noqa: A002
    *,
    bits_per_s: int | None = None,
) -> bytes:
    """Encode a stream of samples; only the encoded bytes are held.

    Args:
        blocks: frames x channels of int16.
        bits_per_s: bit rate of the whole stream; None: the format's own.

    Raises:
        ValueError: a format without an encoder, or more than two channels.
    """
    if channels not in (1, 2):
        raise ValueError(f"encodes one or two channels, not {channels}")
    if format == "ogg":
        return _vorbis(blocks, sample_rate_hz, channels)
    if format not in _ENCODERS:
        raise ValueError(f"no encoder for {format!r}")
    import av

    muxer, codec, kind, bit_rate = _ENCODERS[format]
    rates = _RATES_HZ.get(format, (sample_rate_hz,))
    rate = next((known for known in rates if known >= sample_rate_hz), rates[-1])
    layout = "mono" if channels == 1 else "stereo"
    out = io.BytesIO()
    with av.open(out, mode="w", format=muxer) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.format = kind
        if bits_per_s or bit_rate:
            stream.bit_rate = bits_per_s or (bit_rate or 0) * channels
        resampler = av.AudioResampler(format=kind, layout=layout, rate=rate)
        for frame in _frames(blocks, sample_rate_hz, layout):
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        for ready in resampler.resample(None):
            container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    return out.getvalue()


def _frames(blocks: Iterable[NDArray[np.int16]], sample_rate_hz: int, layout: str) -> Iterable[av.AudioFrame]:
    """Yield the samples as FFmpeg's frames, numbered from the first one."""
    import av

    at = 0
    for block in blocks:
        for start in range(0, len(block), _FRAMES_A_PUSH):
            part = np.ascontiguousarray(block[start : start + _FRAMES_A_PUSH])
            frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate = sample_rate_hz
            frame.time_base = Fraction(1, sample_rate_hz)
            frame.pts = at
            at += len(part)
            yield frame


def _vorbis(blocks: Iterable[NDArray[np.int16]], sample_rate_hz: int, channels: int) -> bytes:
    """Encode Ogg Vorbis with libsndfile, in small blocks: its encoder keeps a whole block on the stack."""
    import soundfile

    out = io.BytesIO()
    with soundfile.SoundFile(
        out, "w", samplerate=sample_rate_hz, channels=channels, format="OGG", subtype="VORBIS"
    ) as writer:
        for block in blocks:
            for start in range(0, len(block), _VORBIS_BLOCK_FRAMES):
                writer.write(block[start : start + _VORBIS_BLOCK_FRAMES])
    return out.getvalue()
