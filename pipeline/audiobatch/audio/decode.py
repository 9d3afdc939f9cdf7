"""Any recording as a stream of samples: WAV with linear samples through libsndfile, all else through FFmpeg.

libsndfile is fastest and takes a WAV's samples where `riff` found them, so that wrong sizes do no harm.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, BinaryIO, Literal

from audiobatch.audio.ffmpeg import open_ffmpeg
from audiobatch.audio.riff import NotWav, WavLayout, is_wav, read_layout
from audiobatch.audio.sound import BLOCK_FRAMES, NotAudio, Sound
from audiobatch.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
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
    layout = _layout(file, size_bytes) if is_wav(head) else None
    if layout is not None and layout.linear:
        yield _Linear(file, layout)
        return
    with open_ffmpeg(file, head, size_bytes) as sound:
        if layout is not None:
            sound.sizes_true = layout.sizes_true
            if not layout.cut_short:  # whole by its sizes, or without any: then FFmpeg's duration is a guess
                sound.promised_s = None
        yield sound


def _layout(file: BinaryIO, size_bytes: int) -> WavLayout:
    try:
        return read_layout(file, size_bytes)
    except NotWav as error:
        raise NotAudio(str(error)) from error


@contextlib.contextmanager
def open_recording(path: Path) -> Iterator[Sound]:
    """Opens a recording on disk.

    Raises:
        InputError: it cannot be read, or holds no sound; also for errors met while its blocks are read.
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


class _Linear:
    """A WAV whose samples stand one after the other."""

    def __init__(self, file: BinaryIO, layout: WavLayout) -> None:
        if layout.sample_rate_hz > _MOST_HZ:
            raise NotAudio(f"its header is damaged: a sample rate of {layout.sample_rate_hz} Hz")
        self.container = "wav"
        self.codec = layout.codec
        self.sample_rate_hz = layout.sample_rate_hz
        self.channels = layout.channels
        self.damaged = 0
        self.ending: Literal["whole", "unmarked", "cut"] = "whole"
        self.sizes_true = layout.sizes_true
        self.span_s = self.reached_s = 0.0
        promised = layout.promised_bytes
        self.promised_s = (
            promised / layout.frame_bytes / layout.sample_rate_hz if layout.cut_short and promised else None
        )
        self._file = file
        self._layout = layout

    def blocks(self, first_frame: int = 0) -> Iterator[NDArray[np.float32]]:
        import soundfile  # light, but not for those who only repair headers

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
