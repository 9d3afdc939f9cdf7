"""Check that the decoders and encoders of this installation work: a tenth of a second through each format.

Libraries that are present can still be unfit: built without a codec, or a release whose calls have changed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from audiobatch.audio.decode import open_sound
from audiobatch.audio.encode import REPLY_FORMATS, encode_reply
from audiobatch.audio.probe import EXTENSIONS
from audiobatch.audio.wav import pcm_to_wav

_RATE_HZ = 24_000
_DURATION_S = 0.1
#: Codecs work in blocks: FFmpeg's Vorbis decoder drops up to 20 ms at the end, others pad two blocks of 48 ms.
_LEAST_S, _MOST_S = 0.08, 0.2
#: Container of `probe.EXTENSIONS`: (FFmpeg's muxer, encoder, sample kind, rate in Hz).
_WRITERS: dict[str, tuple[str, str, str, int]] = {
    "wav": ("wav", "pcm_s16le", "s16", _RATE_HZ),
    "mp3": ("mp3", "libmp3lame", "s16p", _RATE_HZ),
    "mp4": ("ipod", "aac", "fltp", _RATE_HZ),
    "aac": ("adts", "aac", "fltp", _RATE_HZ),
    "flac": ("flac", "flac", "s16", _RATE_HZ),
    "ogg": ("ogg", "libopus", "s16", 48_000),
    "webm": ("webm", "libopus", "s16", 48_000),
    "mkv": ("matroska", "pcm_s16le", "s16", _RATE_HZ),
    "aiff": ("aiff", "pcm_s16be", "s16", _RATE_HZ),
    "au": ("au", "pcm_s16be", "s16", _RATE_HZ),
    "caf": ("caf", "pcm_s16be", "s16", _RATE_HZ),
    "w64": ("w64", "pcm_s16le", "s16", _RATE_HZ),
    "wma": ("asf", "wmav2", "fltp", 44_100),
}
#: PyAV 19 has no encoder for AMR: five frames of 20 ms of its 12.2 kbit/s mode. Source: RFC 4867, section 5.
_AMR = b"#!AMR\n" + 5 * (b"\x3c" + bytes(31))


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecCheck:
    """What works in this installation.

    Attributes:
        read: containers of recordings that were decoded.
        written: formats of replies that were encoded, and decoded again.
        failed: `reading m4a: why`, `writing mp3: why`; empty where everything works.
    """

    read: tuple[str, ...]
    written: tuple[str, ...]
    failed: tuple[str, ...]


def check_codecs() -> CodecCheck:
    """Decode every container that recordings may have, and encode every format that replies may have."""
    pcm = _tone(_RATE_HZ).tobytes()
    read: list[str] = []
    written: list[str] = []
    failed: list[str] = []
    for container in EXTENSIONS:
        try:
            _decode(_AMR if container == "amr" else _encoded(*_WRITERS[container]))
            read.append(container)
        except Exception as error:  # noqa: BLE001 - any failure is what this check looks for
            failed.append(f"reading {container}: {type(error).__name__}: {error}")
    for form in REPLY_FORMATS:
        try:
            made = encode_reply(pcm, form)
            _decode(pcm_to_wav(made) if form == "pcm16" else made)
            written.append(form)
        except Exception as error:  # noqa: BLE001 - as above
            failed.append(f"writing {form}: {type(error).__name__}: {error}")
    return CodecCheck(read=tuple(read), written=tuple(written), failed=tuple(failed))


def _tone(rate_hz: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    at_s = np.arange(round(_DURATION_S * rate_hz)) / rate_hz
    tone: np.ndarray[tuple[int], np.dtype[np.int16]] = (8_000 * np.sin(2 * np.pi * 440 * at_s)).astype("<i2")
    return tone


def _encoded(muxer: str, codec: str, kind: str, rate_hz: int) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, mode="w", format=muxer) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.format = kind
        if codec == "wmav2":  # has no bit rate of its own
            stream.bit_rate = 96_000
        frame = av.AudioFrame.from_ndarray(_tone(rate_hz).reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), 0
        resampler = av.AudioResampler(format=kind, layout="mono", rate=rate_hz)
        for piece in (frame, None):
            for ready in resampler.resample(piece):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    return out.getvalue()


def _decode(data: bytes) -> None:
    """Decode a clip of `_DURATION_S`.

    Raises:
        ValueError: the clip does not last as long as it should.
    """
    with open_sound(io.BytesIO(data), len(data)) as sound:
        duration_s = sum(len(block) for block in sound.blocks()) / sound.sample_rate_hz
    if not _LEAST_S <= duration_s <= _MOST_S:
        raise ValueError(f"{duration_s:.3f} s came out of {_DURATION_S} s")
