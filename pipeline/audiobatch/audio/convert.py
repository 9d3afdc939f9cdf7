"""Prepare recordings for the service: unchanged where possible, else the cheapest faithful form.

The service is billed by time, not by bytes, so that "cheapest" is about the upload: one channel, 16 bits, and
no more samples a second than the recording has or the models hear (24 kHz).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from audiobatch.audio.channels import pick_channel
from audiobatch.audio.decode import NotAudio, open_recording, open_sound
from audiobatch.audio.encode import encode, to_int16
from audiobatch.audio.probe import LARGEST_SENT_BYTES, sendable_as_is
from audiobatch.audio.wav import pcm_to_wav
from audiobatch.errors import InputError, working_on_input
from audiobatch.model import AudioPart

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from audiobatch.audio.channels import Channels
    from audiobatch.audio.trim import Timeline
    from audiobatch.model import Media

#: The audio models work at 24 kHz; recordings up to 16 kHz gain nothing from more.
#: Source: Azure's realtime audio quickstart (`audio/pcm` at 24 000 Hz both ways), checked 2026-11-20. That chat
#: completions hear at 24 kHz too is inferred.
HIGH_RATE_HZ = 24_000
LOW_RATE_HZ = 16_000
#: Of bare samples, 16 bits, one channel, at 24 kHz.
BYTES_A_SECOND = 2 * HIGH_RATE_HZ

#: mp3 for what is too long as a WAV: speech at 64 kbit/s mono; 41 minutes fit into the service's 20 MB.
MP3_BITS_PER_S = 64_000

_WAV_HEADER_BYTES = 44


def prepare(
    path: Path, media: Media, *, channels: Channels = "mix", timeline: Timeline | None = None
) -> AudioPart:
    """Read a recording, or some of it, in the form in which it is sent.

    That is the file itself where the service takes it (`sendable_as_is`) and all of it is wanted. Else it is one
    channel of 16 bits: a WAV at 24 kHz, at 16 kHz where the recording has no more or 24 would be too big, else mp3.

    Args:
        media: as probed.
        channels: which side; a recording with more than two channels has only `mix`. Where the mean of all would
            cancel them, `mix` is the channel that `media` names.
        timeline: the stretches to send, joined without gaps; None for all of it.

    Raises:
        InputError: the file cannot be read any more, has no such side, or is too long for one request.
    """
    if channels != "mix" and media.channels > 2:
        raise InputError(f"it has {media.channels} channels: 'left' and 'right' mean nothing, use 'mix'")
    with working_on_input(path.name):
        return _prepared(path, media, channels, timeline)


def _prepared(path: Path, media: Media, channels: Channels, timeline: Timeline | None) -> AudioPart:
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            as_is = sendable_as_is(media, size_bytes)
            if as_is and timeline is None and (channels == "mix" or media.channels == 1):
                file.seek(0)
                return AudioPart(data=file.read(), format=as_is, duration_s=media.duration_s)
            return _convert(file, size_bytes, media, channels, timeline)
    except NotAudio as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror or error}") from error


def fits_one_request(media: Media, size_bytes: int, duration_s: float | None = None) -> bool:
    """Whether a recording, or `duration_s` of it, can be sent at once, in whatever form."""
    if duration_s is None and sendable_as_is(media, size_bytes):
        return True
    try:
        _form(media.sample_rate_hz, media.duration_s if duration_s is None else duration_s)
    except InputError:
        return False
    return True


def unpack(path: Path, media: Media, out: Path, *, channels: Channels = "mix") -> None:
    """Write a recording as a plain WAV: one channel, 16 bits, at the rate at which it will be sent.

    For long compressed recordings that go out in parts: decoded once instead of once a part. Times stay as they
    are; `probe` measures the result. 115 MB an hour at 16 kHz, 173 MB at 24 kHz; memory flat.

    Raises:
        InputError: the recording cannot be read.
        OSError: `out` cannot be written.
    """
    import soundfile

    rate = LOW_RATE_HZ if media.sample_rate_hz <= LOW_RATE_HZ else HIGH_RATE_HZ
    with (
        open_recording(path) as sound,
        soundfile.SoundFile(out, "w", samplerate=rate, channels=1, format="RF64", subtype="PCM_16") as writer,
    ):
        side = _side(media, channels)
        picked = (pick_channel(block, side) for block in sound.blocks())
        for block in resampled(picked, sound.sample_rate_hz, rate):
            writer.write(to_int16(block))


def _convert(
    file: BinaryIO, size_bytes: int, media: Media, channels: Channels, timeline: Timeline | None
) -> AudioPart:
    duration_s = timeline.duration_s if timeline else media.duration_s
    rate, form = _form(media.sample_rate_hz, duration_s)
    side = _side(media, channels)
    with open_sound(file, size_bytes) as sound:
        first = timeline.first_frame_at(sound.sample_rate_hz) if timeline else 0
        picked: Iterable[NDArray[np.float32]] = (pick_channel(block, side) for block in sound.blocks(first))
        if timeline is not None:
            picked = timeline.cut(picked, sound.sample_rate_hz, first_frame=first)
        ready = (to_int16(block) for block in resampled(picked, sound.sample_rate_hz, rate))
        if form == "mp3":
            counted = _FrameCounter(ready)
            data = encode(counted, rate, 1, "mp3", bits_per_s=MP3_BITS_PER_S)
            frames = counted.frames
        else:
            pcm = b"".join(block.tobytes() for block in ready)
            data = pcm_to_wav(pcm, sample_rate_hz=rate)
            frames = len(pcm) // 2
    if not frames:
        raise InputError("nothing is left of it to send (0 samples)")
    if len(data) > LARGEST_SENT_BYTES:
        raise InputError(_too_long(duration_s))
    return AudioPart(data=data, format=form, duration_s=frames / rate)


def _side(media: Media, channels: Channels) -> Channels | int:
    return media.mix_channel if channels == "mix" and media.mix_channel is not None else channels


def _form(sample_rate_hz: int, duration_s: float) -> tuple[int, Literal["wav", "mp3"]]:
    """Return sample rate in hertz and format of the smallest form that keeps what can be heard.

    Raises:
        InputError: not even mp3 fits.
    """
    best = LOW_RATE_HZ if sample_rate_hz <= LOW_RATE_HZ else HIGH_RATE_HZ
    for rate in (best, LOW_RATE_HZ):
        if _WAV_HEADER_BYTES + 2 * rate * (duration_s + 0.1) <= LARGEST_SENT_BYTES:
            return rate, "wav"
    if MP3_BITS_PER_S / 8 * (duration_s + 1) <= LARGEST_SENT_BYTES:
        return best, "mp3"
    raise InputError(_too_long(duration_s))


def _too_long(duration_s: float) -> str:
    return (
        f"too long for one request: {duration_s / 60:.0f} minutes, and the service takes "
        f"{LARGEST_SENT_BYTES // 1_000_000} MB; set --max-part"
    )


def resampled(
    blocks: Iterable[NDArray[np.float32]], from_hz: int, to_hz: int
) -> Iterator[NDArray[np.float32]]:
    """Resample a stream of one channel, frames x 1, without aliasing (soxr, high quality)."""
    if from_hz == to_hz:
        yield from blocks
        return
    import soxr

    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")
    for block in blocks:
        out = stream.resample_chunk(np.ascontiguousarray(block))
        if len(out):
            yield out.reshape(-1, 1)
    rest = stream.resample_chunk(np.empty((0, 1), np.float32), last=True)
    if len(rest):
        yield rest.reshape(-1, 1)


class _FrameCounter:
    """Count the frames of blocks while an encoder reads them."""

    def __init__(self, blocks: Iterable[NDArray[np.int16]]) -> None:
        self._blocks = blocks
        self.frames = 0

    def __iter__(self) -> Iterator[NDArray[np.int16]]:
        for block in self._blocks:
            self.frames += len(block)
            yield block


def pcm_of(recording: bytes) -> bytes:
    """Decode a whole recording to the bare samples that sockets take: 16 bits little-endian, one channel, 24 kHz.

    CPU work for a thread.

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
    """Return so many seconds of digital silence, as `pcm_of` returns samples."""
    return bytes(2 * round(seconds * HIGH_RATE_HZ))
