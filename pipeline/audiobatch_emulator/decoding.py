"""Audio in any container, decoded to mono float blocks at 16 kHz: what the recognizer listens to.

The container is recognized by its first bytes and given to FFmpeg by name. FFmpeg is never left to guess:
among its guesses are playlists, which open other files, and subtitle formats, which plain text passes for.
"""

import io
import logging
import re
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import soxr
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

RECOGNIZER_RATE_HZ = 16_000
BLOCK_SAMPLES = RECOGNIZER_RATE_HZ  # a second

# PyAV 18 raises for a tag that is not UTF-8 unless this says otherwise; PyAV 19 has no such argument, and does not.
_TOLERANT: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
)

# Matched against the first bytes, in this order; the name is FFmpeg's demuxer. Source: the registries of
# each format; for MP3 and ADTS the eleven sync bits and the layer (ISO 11172-3, 13818-7).
_CONTAINERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"(RIFF|RF64|RIFX|BW64)....WAVE", re.DOTALL), "wav"),
    (re.compile(rb"riff\x2e\x91\xcf\x11"), "w64"),
    (re.compile(rb"fLaC"), "flac"),
    (re.compile(rb"OggS"), "ogg"),
    (re.compile(rb"FORM....AIF[FC]", re.DOTALL), "aiff"),
    (re.compile(rb"....ftyp", re.DOTALL), "mov"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "matroska"),
    (re.compile(rb"\.snd"), "au"),
    (re.compile(rb"ID3"), "mp3"),
    (re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), "aac"),
    (re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]"), "mp3"),
)


class Undecodable(Exception):
    """The bytes are not audio that can be decoded; the message says in what way."""


def decode(audio: bytes) -> Iterator[NDArray[np.float32]]:
    """Yields the recording, channels averaged, in blocks of one second at 16 kHz (the last is shorter).

    Memory does not grow with the length. Sizes in headers are not believed: a WAV that states 0, too much,
    or 0xFFFFFFFF is read to its end. A file that breaks off, or goes bad half-way, gives what came before.

    Raises:
        Undecodable: no known container, no audio stream in it, or not one sample.
    """
    container = container_of(audio)
    if container is None:
        raise Undecodable("no known audio container" if audio else "no bytes at all")
    pending: list[NDArray[np.float32]] = []
    pending_samples = 0
    any_sample = False
    for piece in _resampled(audio, container):
        any_sample = any_sample or len(piece) > 0
        pending.append(piece)
        pending_samples += len(piece)
        if pending_samples >= BLOCK_SAMPLES:
            joined = np.concatenate(pending)
            whole = pending_samples - pending_samples % BLOCK_SAMPLES
            for start in range(0, whole, BLOCK_SAMPLES):
                yield joined[start : start + BLOCK_SAMPLES]
            pending, pending_samples = [joined[whole:]], pending_samples - whole
    if not any_sample:
        raise Undecodable(f"a {container} header without any audio after it")
    if pending_samples:
        yield np.concatenate(pending)


def container_of(audio: bytes) -> str | None:
    """Returns FFmpeg's name for the container that the first bytes announce; None if they announce none."""
    return next((name for pattern, name in _CONTAINERS if pattern.match(audio)), None)


def _resampled(audio: bytes, container: str) -> Iterator[NDArray[np.float32]]:
    resampler: soxr.ResampleStream | None = None
    rate_hz = 0
    for rate_hz_now, samples in _frames(audio, container):
        if resampler is None:
            rate_hz = rate_hz_now
            resampler = soxr.ResampleStream(rate_hz, RECOGNIZER_RATE_HZ, 1, dtype="float32")
        if rate_hz_now != rate_hz:
            break  # a stream that changes its rate half-way is a broken one
        yield resampler.resample_chunk(samples)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _frames(audio: bytes, container: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yields each decoded frame: its rate in Hz and its samples, mono, full scale 1.0."""
    started = False
    try:
        with av.open(io.BytesIO(audio), "r", format=container, **_TOLERANT) as opened:
            if not opened.streams.audio:
                raise Undecodable(f"no audio stream in the {container} container")
            # Packed, one plane for all channels: PyAV 18.1 reads past its planes when there are eight and more.
            to_float = av.AudioResampler(format="flt")
            for frame in opened.decode(audio=0):
                for converted in to_float.resample(frame):
                    started = True
                    channels = converted.to_ndarray().reshape(-1, converted.layout.nb_channels)
                    yield converted.sample_rate, np.nan_to_num(channels.mean(axis=1, dtype=np.float32))
    except Undecodable:
        raise
    except Exception as error:  # a file can make a decoder raise anything
        logger.info("decoding %s ended: %r", container, error)
        if not started:
            raise Undecodable(f"the {container} data cannot be read ({error})") from error
