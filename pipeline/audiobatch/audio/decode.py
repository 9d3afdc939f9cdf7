"""Decode any recording as a stream of samples: plain WAV with libsndfile, every other format with FFmpeg (PyAV).

libsndfile is fastest. It reads a WAV's samples where `wav.read_layout` found them, so that wrong sizes do no harm.

FFmpeg may use readers of recordings only: a playlist or a concat script named `.mp3` would make it open other
files and addresses.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol

import numpy as np

from audiobatch.audio.containers import FILE_DURATION_READERS, declared_duration_s, ogg_end
from audiobatch.audio.wav import NotWav, WavLayout, is_wav, read_layout
from audiobatch.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import av
    import av.container
    from numpy.typing import NDArray

#: libsndfile takes a sample rate as a C int.
_MOST_HZ = 2**31 - 1
_SUBTYPES = {
    "pcm_u8": "PCM_U8",
    "pcm_s16le": "PCM_16",
    "pcm_s24le": "PCM_24",
    "pcm_s32le": "PCM_32",
    "pcm_f32le": "FLOAT",
    "pcm_f64le": "DOUBLE",
    "pcm_alaw": "ALAW",
    "pcm_mulaw": "ULAW",
}
#: Frames a block: about a second, so that the work on a block outweighs the call.
BLOCK_FRAMES = 32_768
#: FFmpeg's readers that may be used; none of them opens a second file.
READERS = (
    "aac,adts,aiff,amr,amrnb,amrwb,asf,au,caf,flac,latm,loas,matroska,webm,"
    "mov,mp4,m4a,3gp,3g2,mj2,mp3,ogg,w64,wav"
)
#: PyAV (to 19) reads a planar frame of 8 channels as one of 9 planes, past its end: FFmpeg interleaves such frames
#: first.
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


class NotAudio(ValueError):
    """No reader takes the bytes; the message says what they seem to be."""


class Sound(Protocol):
    """An opened recording.

    Attributes:
        declared_duration_s: the duration in the header, None where it has none.
        reached_s: how far into the declared duration the bytes go, by their time stamps, updated while `blocks`
            runs; 0 where they have none.
        span_s: from the first moment of the sound to its last, by its time stamps, updated while `blocks` runs;
            longer than its samples where some are missing between.
        ending: whether the container shows its end: `unmarked` may be cut short, `cut` is.
        damaged_packets: packets that could not be decoded, counted while `blocks` runs.
        has_true_sizes: False for a WAV whose header needs repair.
    """

    container: str
    codec: str
    sample_rate_hz: int
    channels: int
    declared_duration_s: float | None
    ending: Literal["whole", "unmarked", "cut"]
    damaged_packets: int
    has_true_sizes: bool

    @property
    def reached_s(self) -> float:
        """See the attributes."""

    @property
    def span_s(self) -> float:
        """See the attributes."""

    def blocks(self, first_frame: int = 0) -> Iterator[NDArray[np.float32]]:
        """Yield the samples in order, once: frames x channels of float32, full scale ±1, never an empty block.

        Args:
            first_frame: where to begin. Plain WAVs are read from there; other formats are decoded from their
                beginning, because after a seek a decoder's count of frames is not certain.
        """


@contextlib.contextmanager
def open_sound(file: BinaryIO, size_bytes: int) -> Iterator[Sound]:
    """Open a recording by its content.

    Args:
        file: opened for reading bytes, seekable.
        size_bytes: the file's true size.

    Raises:
        NotAudio: no reader takes it, or it holds no sound.
    """
    file.seek(0)
    head = file.read(512)
    layout = _layout(file, size_bytes) if is_wav(head) else None
    if layout is not None and layout.is_linear:
        yield _PlainWav(file, layout)
        return
    with open_ffmpeg(file, head, size_bytes) as sound:
        if layout is not None:
            sound.has_true_sizes = layout.has_true_sizes
            if not layout.is_cut_short:  # whole by its sizes, or without any: FFmpeg's duration is a guess
                sound.declared_duration_s = None
        yield sound


def _layout(file: BinaryIO, size_bytes: int) -> WavLayout:
    try:
        return read_layout(file, size_bytes)
    except NotWav as error:
        raise NotAudio(str(error)) from error


@contextlib.contextmanager
def open_recording(path: Path) -> Iterator[Sound]:
    """Open a recording on disk.

    Raises:
        InputError: it cannot be read, or holds no sound; also for errors while its blocks are read.
    """
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, io.SEEK_END)
            with open_sound(file, size_bytes) as sound:
                yield sound
    except NotAudio as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror or error}") from error


class _PlainWav:
    """A WAV whose samples follow one another."""

    def __init__(self, file: BinaryIO, layout: WavLayout) -> None:
        if layout.sample_rate_hz > _MOST_HZ:
            raise NotAudio(f"its header is damaged: a sample rate of {layout.sample_rate_hz} Hz")
        self.container = "wav"
        self.codec = layout.codec
        self.sample_rate_hz = layout.sample_rate_hz
        self.channels = layout.channels
        self.damaged_packets = 0
        self.ending: Literal["whole", "unmarked", "cut"] = "whole"
        self.has_true_sizes = layout.has_true_sizes
        self.span_s = self.reached_s = 0.0
        declared = layout.declared_bytes
        self.declared_duration_s = (
            declared / layout.frame_bytes / layout.sample_rate_hz
            if layout.is_cut_short and declared
            else None
        )
        self._file = file
        self._layout = layout

    def blocks(self, first_frame: int = 0) -> Iterator[NDArray[np.float32]]:
        """Yield the samples; see `Sound.blocks`."""
        import soundfile  # not needed where only headers are repaired

        layout = self._layout
        skipped = first_frame * layout.frame_bytes
        if skipped >= layout.data_bytes:
            return
        rest = _Window(self._file, layout.data_offset + skipped, layout.data_bytes - skipped)
        window = io.BufferedReader(rest, 1 << 18)
        with soundfile.SoundFile(
            window,
            format="RAW",
            subtype=_SUBTYPES[layout.codec],
            endian="LITTLE",
            samplerate=layout.sample_rate_hz,
            channels=layout.channels,
        ) as reader:
            while len(block := reader.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                yield block


class _Window(io.RawIOBase):
    """Read a section of a file as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move within the section."""
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def tell(self) -> int:
        """Return the position within the section."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer, up to the end of the section."""
        self._file.seek(self._offset + self._at)
        part = self._file.read(min(len(buffer), max(0, self._length - self._at)))
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def describe_bytes(head: bytes, size_bytes: int) -> str:
    """Describe for a person what bytes that are no recording seem to be."""
    if not size_bytes:
        return "it is empty (0 bytes)"
    if b"\0" not in head:
        text = head.decode("utf-8", errors="ignore")
        if len(text.encode()) >= len(head) - 3 and all(
            char.isprintable() or char in "\r\n\t\f" for char in text
        ):
            return "it is text, not audio"
    if head[4:8] == b"ftyp":
        return "cut short: its index (moov) is missing"
    if head.startswith((b"fLaC", b"OggS", b"FORM", b"\x1aE\xdf\xa3")) or is_wav(head):
        return "its beginning is that of a recording, but its header is cut or damaged"
    return "no audio in any format known here"


@contextlib.contextmanager
def open_ffmpeg(file: BinaryIO, head: bytes, size_bytes: int) -> Iterator[Sound]:
    """Open a recording with FFmpeg.

    Args:
        head: the recording's first bytes.

    Raises:
        NotAudio: FFmpeg does not know it, or it holds no sound.
    """
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
    """Open FFmpeg's container of a recording; tags that are not UTF-8 do no harm.

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
    """The first sound stream of a recording, as FFmpeg decodes it."""

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
        self.damaged_packets = 0
        self.ending = ending
        self.has_true_sizes = True
        self.declared_duration_s = declared_duration_s(file, container, stream)
        self._container = container
        self._stream = stream
        self._extents: dict[int, tuple[int, int]] = {}

    @property
    def span_s(self) -> float:
        """See `Sound`."""
        first, end = self._extents.get(self._stream.index, (0, 0))
        return _seconds(end - first, self._stream)

    @property
    def reached_s(self) -> float:
        """See `Sound`."""
        if self._container.format.name not in FILE_DURATION_READERS:
            return self.span_s
        streams = self._container.streams
        return max((_seconds(end, streams[index]) for index, (_, end) in self._extents.items()), default=0.0)

    def blocks(self, first_frame: int = 0) -> Iterator[NDArray[np.float32]]:
        """Yield the samples; see `Sound.blocks`."""
        gathered: list[NDArray[np.float32]] = []
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
            if samples.shape[1] != self.channels:  # joined broadcasts: one shape throughout, no sound lost
                samples = np.repeat(samples.mean(axis=1, keepdims=True), self.channels, axis=1)
            gathered.append(samples)
            count += len(samples)
            if count >= BLOCK_FRAMES:
                yield np.concatenate(gathered)
                gathered, count = [], 0
        if count:
            yield np.concatenate(gathered)

    def _frames(self) -> Iterator[av.AudioFrame]:
        import av

        packets = self._container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:
                self.damaged_packets += 1
                return
            self._note_time(packet)
            if packet.stream.index != self._stream.index:
                continue
            try:
                yield from self._stream.decode(packet)
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.damaged_packets += 1

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
    """Convert a decoded frame's samples, of any kind, to frames x channels of float32, full scale ±1."""
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
