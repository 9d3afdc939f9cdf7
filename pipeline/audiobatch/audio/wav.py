"""Read, repair and write WAV containers: RIFF, RF64 and BW64, with sizes that may be missing or wrong.

    "RIFF" size "WAVE"  { id size bytes [pad to even] }*        little endian

Two chunks matter, `fmt ` and `data`. A writer that cannot seek back leaves the sizes at 0 or 0xFFFFFFFF, so a
size is a claim to be compared with the bytes that are there, never a fact.
RF64 and BW64 keep 64-bit sizes in a `ds64` chunk, and 0xFFFFFFFF where 32 bits are too few.
Source: tech.ebu.ch/publications/tech3306, continued as ITU-R BS.2088, checked 2026-11-20.

The service streams its WAVs, so both sizes in the header of a reply are 0xFFFFFFFF. Python's `wave` then reports
89 478 s for a reply of 1.6 s, and players show no duration.
Source: pollinations/pollinations#11951, #12061; speaches-ai/speaches#493, checked 2026-11-20.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

#: `wFormatTag` -> codec, by bits a sample where the tag leaves that open. Names are FFmpeg's.
LINEAR_CODECS: dict[tuple[int, int], str] = {
    (0x0001, 8): "pcm_u8",
    (0x0001, 16): "pcm_s16le",
    (0x0001, 24): "pcm_s24le",
    (0x0001, 32): "pcm_s32le",
    (0x0003, 32): "pcm_f32le",
    (0x0003, 64): "pcm_f64le",
    (0x0006, 8): "pcm_alaw",
    (0x0007, 8): "pcm_mulaw",
}
_EXTENSIBLE = 0xFFFE
_MAGICS = (b"RIFF", b"RF64", b"BW64")

#: Sizes that writers to a pipe leave behind: nothing (0), all ones or nearly (FFmpeg, the audio service), and
#: the largest positive int or a block less (sox). They say nothing about the length.
_UNKNOWN_SIZES = (range(1), range(0xFFFFF000, 0x1_0000_0000), range(0x7FFFF000, 0x8000_0000))
_LARGEST_HEADER_BYTES = 1 << 20
RIFF_BYTES = 12
_CHUNK_BYTES = 8
#: As far as its three sizes: of the file, of the samples, and the count of frames.
_DS64_BYTES = 24
_LEAST_TAIL_BYTES = 64
_U32_MAX = 0xFFFF_FFFF


class NotWav(ValueError):
    """The bytes are no WAV file, or end within its header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WavLayout:
    """Position of the samples, and what the header says of them.

    Attributes:
        codec: a value of `LINEAR_CODECS`, or `tag 0x0011` and the like for block codecs.
        data_offset: position of the first sample in the file, in bytes.
        data_bytes: size of the samples that are there, whole frames only for linear codecs.
        declared_bytes: size of the samples by the header, None where it does not say.
        is_understated: the header declares less than is there, and what follows is no chunk.
        fact_offset: of the `fact` chunk's sample count, None without one.
        ds64_offset: of the RF64 sizes, None in a plain RIFF file.
    """

    codec: str
    channels: int
    sample_rate_hz: int
    frame_bytes: int
    data_offset: int
    data_bytes: int
    declared_bytes: int | None
    is_understated: bool
    fact_offset: int | None
    ds64_offset: int | None

    @property
    def is_linear(self) -> bool:
        """Whether each sample has a size and a position of its own, as in PCM."""
        return self.codec in LINEAR_CODECS.values()

    @property
    def frames(self) -> int:
        """How many whole frames are there."""
        return self.data_bytes // self.frame_bytes

    @property
    def is_cut_short(self) -> bool:
        """Whether the header declares at least one frame (and a pad byte) more than is there."""
        return self.declared_bytes is not None and self.declared_bytes > self.data_bytes + self.frame_bytes

    @property
    def has_true_sizes(self) -> bool:
        """Whether the header declares exactly what is there."""
        return self.declared_bytes is not None and not self.is_cut_short and not self.is_understated


def is_wav(head: bytes) -> bool:
    """Whether these first 12 bytes open a WAV file."""
    return head[:4] in _MAGICS and head[8:12] == b"WAVE"


def read_layout(file: BinaryIO, size_bytes: int) -> WavLayout:
    """Read a WAV's header chunk by chunk, however long the file.

    Args:
        file: opened for reading bytes, seekable; its position is moved.
        size_bytes: the file's true size.

    Raises:
        NotWav: the message says what is missing.
    """
    file.seek(0)
    if not is_wav(file.read(RIFF_BYTES)):
        raise NotWav("it does not begin as a WAV file does")
    shape: tuple[str, int, int, int] | None = None
    ds64_offset = ds64_bytes = fact_offset = None
    for name, offset, size in _chunks(file, RIFF_BYTES):
        if name == b"data":
            break
        if name == b"fmt ":
            shape = _shape(file.read(min(size, _LARGEST_HEADER_BYTES)))
        elif name == b"ds64" and len(body := file.read(min(size, _DS64_BYTES))) == _DS64_BYTES:
            ds64_offset, ds64_bytes = offset, int.from_bytes(body[8:16], "little")
        elif name == b"fact" and size >= 4:
            fact_offset = offset
    else:
        raise NotWav("cut in its header: there is no sound data" if shape else "cut in its header")
    if shape is None:
        raise NotWav("its header does not say how the samples are stored (no 'fmt ' chunk)")
    codec, channels, sample_rate_hz, frame_bytes = shape
    declared = _declared_bytes(file, offset, size, ds64_bytes, size_bytes)
    is_understated = declared is not None and _more_samples_follow(
        file, offset + declared + (declared & 1), size_bytes
    )
    data_bytes = size_bytes - offset
    if declared is not None and not is_understated:
        data_bytes = min(declared, data_bytes)
    if codec in LINEAR_CODECS.values():
        data_bytes -= data_bytes % frame_bytes
    return WavLayout(
        codec=codec,
        channels=channels,
        sample_rate_hz=sample_rate_hz,
        frame_bytes=frame_bytes,
        data_offset=offset,
        data_bytes=data_bytes,
        declared_bytes=declared,
        is_understated=is_understated,
        fact_offset=fact_offset,
        ds64_offset=ds64_offset,
    )


def _chunks(file: BinaryIO, offset: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, body offset and claimed size of each chunk; the file is positioned at the body."""
    while True:
        file.seek(offset)
        header = file.read(_CHUNK_BYTES)
        if len(header) < _CHUNK_BYTES:
            return
        size = int.from_bytes(header[4:], "little")
        yield header[:4], offset + _CHUNK_BYTES, size
        offset += _CHUNK_BYTES + size + (size & 1)


def _declared_bytes(
    file: BinaryIO, offset: int, size: int, ds64_bytes: int | None, size_bytes: int
) -> int | None:
    """Return the size of the samples by the header; None where it does not say.

    Args:
        offset, size: of the `data` chunk's body.
        ds64_bytes: size of the samples by the `ds64` chunk.
    """
    if ds64_bytes is not None and size == _U32_MAX:
        return ds64_bytes if ds64_bytes not in (0, (1 << 64) - 1) else None
    if size == 0 and _is_chunks(file, offset, size_bytes):
        return 0
    unknown = any(size in sizes for sizes in _UNKNOWN_SIZES)
    return None if unknown and size != size_bytes - offset else size


def _shape(body: bytes) -> tuple[str, int, int, int]:
    """Return codec, channels, sample rate in hertz and bytes a frame from a `fmt ` chunk's body."""
    if len(body) < 16:
        raise NotWav("cut in its header")
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", body)
    if tag == _EXTENSIBLE and len(body) >= 26:
        tag = int.from_bytes(body[24:26], "little")
    if not channels or not rate:
        raise NotWav(f"its header says {channels} channels at {rate} Hz")
    container_bits = frame_bytes * 8 // channels
    codec = LINEAR_CODECS.get((tag, container_bits)) or f"tag 0x{tag:04x}"
    if tag == 1 and bits > container_bits:
        raise NotWav(f"its header says {bits} bits in {container_bits}")
    return codec, channels, rate, max(1, frame_bytes)


def _more_samples_follow(file: BinaryIO, offset: int, size_bytes: int) -> bool:
    """Whether more samples follow the declared ones: neither chunks, nor a tag, nor padding."""
    if size_bytes - offset < _LEAST_TAIL_BYTES or _is_chunks(file, offset, size_bytes):
        return False
    file.seek(offset)
    tail = file.read(4096)
    return bool(tail.strip(b"\0")) and not tail.startswith((b"ID3", b"TAG", b"APETAGEX"))


def _is_chunks(file: BinaryIO, offset: int, size_bytes: int) -> bool:
    """Whether a chain of chunks leads from `offset` to the end of the file, give or take a pad byte."""
    end = None
    for name, body, size in _chunks(file, offset):
        if not all(0x20 <= byte < 0x7F for byte in name):
            return False
        end = body + size + (size & 1)
    return end is not None and end <= size_bytes + 1


def repair_header(data: bytes) -> bytes:
    """Return a WAV with true sizes; other chunks and every sample stay as they are.

    A WAV whose sizes are true is returned itself, not a copy. An incomplete last frame is dropped.

    Raises:
        ValueError: it is no WAV, its header is cut, or it is too long for a RIFF header (4 GB).
    """
    layout = read_layout(io.BytesIO(data), len(data))
    riff_size = int.from_bytes(data[4:8], "little")
    if layout.has_true_sizes and riff_size in (len(data) - 8, len(data) - 9):
        return data
    if layout.ds64_offset is not None:
        if layout.has_true_sizes:
            return data
        return _with_sizes64(data, layout)
    end = layout.data_offset + layout.data_bytes
    pad = layout.data_bytes & 1
    has_more_chunks = layout.declared_bytes is not None and not layout.is_understated
    more_chunks = data[end + pad :] if has_more_chunks else b""
    size = end + pad + len(more_chunks) - 8
    if size > _U32_MAX:
        raise NotWav("too long for a WAV header")
    header = bytearray(data[: layout.data_offset])
    struct.pack_into("<I", header, 4, size)
    struct.pack_into("<I", header, layout.data_offset - 4, layout.data_bytes)
    if layout.fact_offset is not None and layout.is_linear:
        struct.pack_into("<I", header, layout.fact_offset, layout.frames)
    return b"".join((header, memoryview(data)[layout.data_offset : end], b"\0" * pad, more_chunks))


def _with_sizes64(data: bytes, layout: WavLayout) -> bytes:
    """Return an RF64 file with true 64-bit sizes."""
    assert layout.ds64_offset is not None
    end = layout.data_offset + layout.data_bytes
    header = bytearray(data[: layout.data_offset])
    struct.pack_into("<QQQ", header, layout.ds64_offset, end - 8, layout.data_bytes, layout.frames)
    return b"".join((header, memoryview(data)[layout.data_offset : end]))


def pcm_to_wav(pcm: bytes, *, sample_rate_hz: int = 24_000, channels: int = 1) -> bytes:
    """Make a WAV file of raw 16-bit little-endian samples, frames x channels interleaved.

    The defaults are the service's `pcm16`: 24 kHz, one channel. An incomplete last frame is dropped.
    Source: Azure's realtime audio quickstart, checked 2026-11-20.

    Raises:
        ValueError: they are longer than a RIFF header can declare (4 GB).
    """
    frame_bytes = 2 * channels
    size = len(pcm) - len(pcm) % frame_bytes
    if size + 36 > _U32_MAX:
        raise NotWav("too long for a WAV header")
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        size + 36,
        b"WAVE",
        b"fmt ",
        16,
        1,
        channels,
        sample_rate_hz,
        sample_rate_hz * frame_bytes,
        frame_bytes,
        16,
        b"data",
        size,
    )
    return b"".join((header, memoryview(pcm)[:size]))
