"""Any recording as a stream of samples: WAV with linear samples through libsndfile, all else through FFmpeg.

libsndfile is fastest and takes a WAV's samples where `riff` found them, so that wrong sizes do no harm.
FFmpeg (PyAV) reads the most formats. Only recordings are let in: a playlist or a concat script named `.wav`
would make FFmpeg open other files and addresses.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from pipeline.audio.riff import NotWav, WavLayout, is_wav, read_layout

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
#: Frames a block: about a second, so that the work a block outweighs the call.
BLOCK_FRAMES = 32_768

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
        promised_s: duration that the header claims, None where it claims none.
        damaged: packets that could not be decoded, counted while `blocks` runs.
        sizes_true: a WAV whose header needs no repair; True for the other formats.
    """

    container: str
    codec: str
    sample_rate_hz: int
    channels: int
    promised_s: float | None
    damaged: int
    sizes_true: bool

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """The samples in order, once: frames x channels of float32, full scale ±1, never an empty block."""


@contextlib.contextmanager
def open_sound(file: BinaryIO, size_bytes: int) -> Iterator[Sound]:
    """Opens a recording by its content.

    Args:
        file: opened for reading bytes, seekable.
        size_bytes: the file's true size.

    Raises:
        NotAudio: no reader takes it, or it holds no sound.
    """
    file.seek(0)
    head = file.read(512)
    if is_wav(head):
        try:
            layout = read_layout(file, size_bytes)
        except NotWav as error:
            raise NotAudio(str(error)) from error
        if layout.linear:
            yield _Linear(file, layout)
            return
    with _open_ffmpeg(file, head, size_bytes) as sound:
        yield sound


class _Linear:
    """A WAV whose samples stand one after the other."""

    def __init__(self, file: BinaryIO, layout: WavLayout) -> None:
        self.container = "wav"
        self.codec = layout.codec
        self.sample_rate_hz = layout.sample_rate_hz
        self.channels = layout.channels
        self.damaged = 0
        self.sizes_true = layout.sizes_true
        promised = layout.promised_bytes
        self.promised_s = (
            promised / layout.frame_bytes / layout.sample_rate_hz if layout.cut_short and promised else None
        )
        self._file = file
        self._layout = layout

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        import soundfile  # light, but not for those who only repair headers

        layout = self._layout
        if not layout.frames:
            return
        window = io.BufferedReader(_Window(self._file, layout.data_offset, layout.data_bytes), 1 << 18)
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
    """A stretch of a file as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._offset + self._at)
        part = self._file.read(min(len(buffer), max(0, self._length - self._at)))
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


@contextlib.contextmanager
def _open_ffmpeg(file: BinaryIO, head: bytes, size_bytes: int) -> Iterator[Sound]:
    import av

    file.seek(0)
    try:
        container = av.open(file, mode="r", options={"format_whitelist": READERS}, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise NotAudio(describe_bytes(head, size_bytes)) from error
    with container:
        if not container.streams.audio:
            raise NotAudio("it holds no sound" + (", only pictures" if container.streams.video else ""))
        yield _Decoded(container, head)


class _Decoded:
    """A recording as FFmpeg decodes it: its first sound stream."""

    def __init__(self, container: av.container.InputContainer, head: bytes) -> None:
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
        self.sizes_true = True
        self.promised_s = _promised_s(container, stream)
        self._container = container
        self._stream = stream

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        held: list[NDArray[np.float32]] = []
        count = 0
        for frame in self._frames():
            if frame.sample_rate != self.sample_rate_hz:
                raise NotAudio(
                    f"its sample rate changes from {self.sample_rate_hz} to {frame.sample_rate} Hz"
                )
            samples = as_float(frame)
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
    raw = frame.to_ndarray()
    samples: NDArray[Any] = raw.T if frame.format.is_planar else raw.reshape(-1, frame.layout.nb_channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(1 << (8 * samples.dtype.itemsize - 1))
    return samples.astype(np.float32, copy=False)


def describe_bytes(head: bytes, size_bytes: int) -> str:
    """What bytes that are no recording seem to be, for a person."""
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
