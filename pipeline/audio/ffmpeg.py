"""Recordings that FFmpeg reads (through PyAV): every format but plain WAV.

Only recordings are let in: a playlist or a concat script named `.mp3` would make FFmpeg open other files and
addresses.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from pipeline.audio.ogg import ogg_end
from pipeline.audio.sound import BLOCK_FRAMES, NotAudio, Sound, describe_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import av
    import av.container
    from numpy.typing import NDArray

#: FFmpeg's readers that may be used; none of them opens a second file.
READERS = (
    "aac,adts,aiff,amr,amrnb,amrwb,asf,au,caf,flac,latm,loas,matroska,webm,matroska,webm,"
    "mov,mp4,m4a,3gp,3g2,mj2,mp3,ogg,w64,wav"
)
#: PyAV (to 19) takes a planar frame of 8 channels for one of 9 planes and reads past its end: such frames are
#: interleaved by FFmpeg first.
_MOST_PLANES = 7
_CONTAINERS = {
    "mov,mp4,m4a,3gp,3g2,mj2": "mp4",
    "matroska,webm": "webm",
    "adts": "aac",
    "latm": "aac",
    "loas": "aac",
    "amrnb": "amr",
    "amrwb": "amr",
    "asf": "wma",
}


@contextlib.contextmanager
def open_ffmpeg(file: BinaryIO, head: bytes, size_bytes: int) -> Iterator[Sound]:
    import av

    ending = ogg_end(file, size_bytes) if head.startswith(b"OggS") else "whole"
    file.seek(0)
    try:
        container = av.open(file, mode="r", options={"format_whitelist": READERS}, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise NotAudio(describe_bytes(head, size_bytes)) from error
    with container:
        if not container.streams.audio:
            raise NotAudio("it holds no sound" + (", only pictures" if container.streams.video else ""))
        yield _Decoded(container, head, ending)


class _Decoded:
    """A recording as FFmpeg decodes it: its first sound stream."""

    def __init__(
        self,
        container: av.container.InputContainer,
        head: bytes,
        ending: Literal["whole", "unmarked", "cut"],
    ) -> None:
        stream = container.streams.audio[0]
        name = container.format.name
        self.container = _CONTAINERS.get(name, name)
        if self.container == "webm" and b"webm" not in head:
            self.container = "mkv"
        context = stream.codec_context
        self.codec = context.name.removesuffix("float")
        if not context.sample_rate or not context.channels:
            raise NotAudio("its header is damaged: no sample rate")
        self.sample_rate_hz = int(context.sample_rate)
        self.channels = int(context.channels)
        self.damaged = 0
        self.ending = ending
        self.sizes_true = True
        self.promised_s = _promised_s(container, stream)
        self._container = container
        self._stream = stream

    def blocks(self, first_frame: int = 0) -> Iterator[NDArray[np.float32]]:
        held: list[NDArray[np.float32]] = []
        count = at = 0
        for frame in self._frames():
            if frame.sample_rate != self.sample_rate_hz:
                raise NotAudio(
                    f"its sample rate changes from {self.sample_rate_hz} to {frame.sample_rate} Hz"
                )
            at += frame.samples
            if at <= first_frame:
                continue
            samples = as_float(frame)[max(0, first_frame - at + frame.samples) :]
            if samples.shape[1] != self.channels:  # joined broadcasts: keep one shape, lose no sound
                samples = np.repeat(samples.mean(axis=1, keepdims=True), self.channels, axis=1)
            held.append(samples)
            count += len(samples)
            if count >= BLOCK_FRAMES:
                yield np.concatenate(held)
                held, count = [], 0
        if count:
            yield np.concatenate(held)

    def _frames(self) -> Iterator[av.AudioFrame]:
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:
                self.damaged += 1
                return
            try:
                yield from packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.damaged += 1


def _promised_s(container: av.container.InputContainer, stream: av.AudioStream) -> float | None:
    """Duration by the header, where the container has one that is not itself guessed from the file's size."""
    if container.format.name in ("aac", "adts", "latm", "loas", "amr", "amrnb", "amrwb", "ogg"):
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else None


def as_float(frame: av.AudioFrame) -> NDArray[np.float32]:
    """A decoded frame's samples, whatever their kind: frames x channels of float32, full scale ±1."""
    if frame.format.is_planar and frame.layout.nb_channels > _MOST_PLANES:
        frame = _interleaved(frame)
    raw = frame.to_ndarray()
    samples: NDArray[Any] = raw.T if frame.format.is_planar else raw.reshape(-1, frame.layout.nb_channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(1 << (8 * samples.dtype.itemsize - 1))
    return samples.astype(np.float32, copy=False)


def _interleaved(frame: av.AudioFrame) -> av.AudioFrame:
    import av

    resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
    frame.pts = None
    (whole,) = resampler.resample(frame)
    return whole
