"""Speech as the service packs it: 24 kHz mono in each output format.

The WAV header is the streamed one, both sizes 0xFFFFFFFF: the service writes it before it knows how long
the reply will be. PyAV encodes the rest; FFmpeg's "bit-exact" flags keep its version, and Ogg's random
stream number, out of the files: the same speech gives the same bytes.

Source: github.com/pollinations/pollinations/issues/11951 (the WAV header); the Chat Completions reference
(formats).
"""

import io
import struct
from fractions import Fraction
from typing import Any

import av
import numpy as np

SAMPLE_RATE_HZ = 24_000
BYTES_PER_SECOND = 2 * SAMPLE_RATE_HZ
FORMATS = ("wav", "aac", "mp3", "flac", "opus", "pcm16")

#: format: container, codec, sample format, bits a second.
_ENCODERS = {
    "mp3": ("mp3", "libmp3lame", "s16p", 64_000),
    "flac": ("flac", "flac", "s16", None),
    "opus": ("ogg", "libopus", "s16", 32_000),
    "aac": ("adts", "aac", "fltp", 64_000),
}


def wav_header(*, riff_size: int = 0xFFFFFFFF, data_size: int = 0xFFFFFFFF) -> bytes:
    """Returns the 44 bytes before the samples: PCM, 24 kHz, mono, 16 bits."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", riff_size, b"WAVE"),
        *(b"fmt ", 16, 1, 1, SAMPLE_RATE_HZ, BYTES_PER_SECOND, 2, 16),
        *(b"data", data_size),
    )


def encode(pcm: bytes, audio_format: str) -> bytes:
    """Encodes `pcm` (mono s16le at 24 kHz) in one of `FORMATS`. CPU work for all but wav and pcm16."""
    if audio_format == "pcm16":
        return pcm
    if audio_format == "wav":
        return wav_header() + pcm
    return _encode(pcm or bytes(2), audio_format)  # the codecs take no empty frame


def _encode(pcm: bytes, audio_format: str) -> bytes:
    container_name, codec, sample_format, bit_rate = _ENCODERS[audio_format]
    out = io.BytesIO()
    with av.open(out, "w", format=container_name, options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(codec, rate=SAMPLE_RATE_HZ)  # an AudioStream, by its codec
        stream.layout = "mono"
        stream.format = sample_format
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        samples = np.frombuffer(pcm, dtype="<i2").reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        frame.time_base = Fraction(1, SAMPLE_RATE_HZ)
        frame.pts = 0
        resampler = av.AudioResampler(
            format=stream.format, layout="mono", rate=SAMPLE_RATE_HZ, frame_size=stream.frame_size or 4096
        )
        for piece in (frame, None):
            for ready in resampler.resample(piece):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    return out.getvalue()
