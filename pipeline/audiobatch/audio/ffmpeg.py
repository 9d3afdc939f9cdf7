"""Recordings that FFmpeg reads (through PyAV): every format but plain WAV.

Only recordings are let in: a playlist or a concat script named `.mp3` would make FFmpeg open other files and
addresses.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from audiobatch.audio.containers import WHOLE_FILE, promised_s
from audiobatch.audio.ogg import ogg_end
from audiobatch.audio.sound import BLOCK_FRAMES, NotAudio, Sound, describe_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import av
    import av.container
    from numpy.typing import NDArray

#: FFmpeg's readers that may be used; none of them opens a second file.
READERS = (
    "aac,adts,aiff,amr,amrnb,amrwb,asf,au,caf,flac,latm,loas,matroska,webm,"
    "mov,mp4,m4a,3gp,3g2,mj2,mp3,ogg,w64,wav"
)
#: PyAV (to 19) takes a planar frame of 8 channels for one of 9 planes and reads past its end: such frames are
#: interleaved by FFmpeg first.
_MOST_PLANES = 7
#: FFmpeg (to 8) gives the last packet of some Ogg files a duration below 0, read as unsigned.
_WRAPPED_TICKS = 1 << 31
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
        container = _open(file)
    except (av.error.FFmpegError, ValueError) as error:
        raise NotAudio(describe_bytes(head, size_bytes)) from error
    with container:
        if not container.streams.audio:
            raise NotAudio("it holds no sound" + (", only pictures" if container.streams.video else ""))
        yield _Decoded(container, file, head, ending)


def _open(file: BinaryIO) -> av.container.InputContainer:
    """FFmpeg's view of a recording; tags that are not UTF-8 do no harm.

    PyAV 18 raises for such a tag unless `metadata_errors` says otherwise; PyAV 19 has no such argument and keeps
    the bytes. Source: av/container/core.py of both releases, checked 2026-11-30.
    """
    import av

    tolerant: dict[str, Any] = {}
    if int(av.__version__.partition(".")[0]) < 19:
        tolerant = {"metadata_errors": "replace"}
    container: av.container.InputContainer = av.open(
        file, mode="r", options={"format_whitelist": READERS}, **tolerant
    )
    return container


class _Decoded:
    """A recording as FFmpeg decodes it: its first sound stream."""

    def __init__(
        self,
        container: av.container.InputContainer,
        file: BinaryIO,
        head: bytes,
        ending: Literal["whole", "unmarked", "cut"],
    ) -> None:
        stream = container.streams.audio[0]
        name = container.format.name
        self.container = _CONTAINERS.get(name, name)
        if self.container == "webm" and b"webm" not in head:
            self.container = "mkv"
        context = stream.codec_context
        if context is None:
            raise NotAudio("its sound is in a codec that is not known here")
        self.codec = context.name.removesuffix("float")
        if not context.sample_rate or not context.channels:
            raise NotAudio("its header is damaged: no sample rate")
        self.sample_rate_hz = int(context.sample_rate)
        self.channels = int(context.channels)
        self.damaged = 0
        self.ending = ending
        self.sizes_true = True
        self.promised_s = promised_s(file, container, stream)
        self._container = container
        self._stream = stream
        self._extents: dict[int, tuple[int, int]] = {}

    @property
    def span_s(self) -> float:
        first, end = self._extents.get(self._stream.index, (0, 0))
        return _seconds(end - first, self._stream)

    @property
    def reached_s(self) -> float:
        if self._container.format.name not in WHOLE_FILE:
            return self.span_s
        streams = self._container.streams
        return max((_seconds(end, streams[index]) for index, (_, end) in self._extents.items()), default=0.0)

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

        packets = self._container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:
                self.damaged += 1
                return
            self._note_time(packet)
            if packet.stream.index != self._stream.index:
                continue
            try:
                yield from self._stream.decode(packet)
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.damaged += 1

    def _note_time(self, packet: av.Packet[av.stream.Stream]) -> None:
        if packet.pts is None:
            return
        lasts = packet.duration or 0
        index, end = packet.stream.index, packet.pts + (lasts if lasts < _WRAPPED_TICKS else 0)
        first, last = self._extents.get(index, (packet.pts, end))
        self._extents[index] = (min(first, packet.pts), max(last, end))


def _seconds(ticks: int, stream: av.stream.Stream) -> float:
    return float(ticks * stream.time_base) if stream.time_base is not None else 0.0


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
