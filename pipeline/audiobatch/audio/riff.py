"""The WAV container as it is found in the wild: RIFF, RF64 and BW64, with sizes that may be missing or wrong.

    "RIFF" size "WAVE"  { id size bytes [pad to even] }*        little endian

Two chunks matter, `fmt ` and `data`. A writer that cannot seek back leaves the sizes at 0 or 0xFFFFFFFF, so a
size is a claim to be compared with the bytes that are there, never a fact.
RF64 and BW64 keep 64-bit sizes in a `ds64` chunk, and 0xFFFFFFFF where 32 bits are too few.
Source: tech.ebu.ch/publications/tech3306, continued as ITU-R BS.2088, checked 2026-11-20.
"""

from __future__ import annotations

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
#: the largest positive int or a block less (sox). They promise nothing.
_UNKNOWN_SIZES = (range(1), range(0xFFFFF000, 0x1_0000_0000), range(0x7FFFF000, 0x8000_0000))
_LARGEST_HEADER_BYTES = 1 << 20
RIFF_BYTES = 12
_CHUNK_BYTES = 8
#: As far as its three sizes: of the file, of the samples, and the count of frames.
_DS64_BYTES = 24
_LEAST_TAIL_BYTES = 64


class NotWav(ValueError):
    """The bytes are no WAV file, or end within its header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WavLayout:
    """Where the samples are, and what the header says of them.

    Attributes:
        codec: a value of `LINEAR_CODECS`, or `tag 0x0011` and the like for block codecs.
        data_offset: of the first sample's first byte in the file.
        data_bytes: bytes of samples that are there, whole frames only for linear codecs.
        promised_bytes: what the header says, None where it says nothing.
        understated: the header promises less than is there, and what follows is no chunk.
        fact_offset: of the `fact` chunk's sample count, None without one.
        ds64_offset: of the RF64 sizes, None in a plain RIFF file.
    """

    codec: str
    channels: int
    sample_rate_hz: int
    frame_bytes: int
    data_offset: int
    data_bytes: int
    promised_bytes: int | None
    understated: bool
    fact_offset: int | None
    ds64_offset: int | None

    @property
    def linear(self) -> bool:
        return self.codec in LINEAR_CODECS.values()

    @property
    def frames(self) -> int:
        return self.data_bytes // self.frame_bytes

    @property
    def cut_short(self) -> bool:
        """The header promises at least one frame (and a pad byte) more than is there."""
        return self.promised_bytes is not None and self.promised_bytes > self.data_bytes + self.frame_bytes

    @property
    def sizes_true(self) -> bool:
        return self.promised_bytes is not None and not self.cut_short and not self.understated


def is_wav(head: bytes) -> bool:
    """Whether these first 12 bytes open a WAV file."""
    return head[:4] in _MAGICS and head[8:12] == b"WAVE"


def read_layout(file: BinaryIO, size_bytes: int) -> WavLayout:
    """Reads a WAV's header chunk by chunk, however long the file.

    Args:
        file: opened for reading bytes, seekable; its position is moved.
        size_bytes: the file's true size.

    Raises:
        NotWav: with what is missing, in words for a person.
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
    promised = _promised_bytes(file, offset, size, ds64_bytes, size_bytes)
    understated = promised is not None and _lies_low(file, offset + promised + (promised & 1), size_bytes)
    data_bytes = size_bytes - offset
    if promised is not None and not understated:
        data_bytes = min(promised, data_bytes)
    if codec in LINEAR_CODECS.values():
        data_bytes -= data_bytes % frame_bytes
    return WavLayout(
        codec=codec,
        channels=channels,
        sample_rate_hz=sample_rate_hz,
        frame_bytes=frame_bytes,
        data_offset=offset,
        data_bytes=data_bytes,
        promised_bytes=promised,
        understated=understated,
        fact_offset=fact_offset,
        ds64_offset=ds64_offset,
    )


def _chunks(file: BinaryIO, offset: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset of the body and claimed size of each chunk from `offset` on; the file stands at its body."""
    while True:
        file.seek(offset)
        header = file.read(_CHUNK_BYTES)
        if len(header) < _CHUNK_BYTES:
            return
        size = int.from_bytes(header[4:], "little")
        yield header[:4], offset + _CHUNK_BYTES, size
        offset += _CHUNK_BYTES + size + (size & 1)


def _promised_bytes(
    file: BinaryIO, offset: int, size: int, ds64_bytes: int | None, size_bytes: int
) -> int | None:
    """What the header says of the samples' bytes; None where it says nothing.

    Args:
        offset, size: of the samples, by their chunk.
        ds64_bytes: their size by an RF64's own chunk.
    """
    if ds64_bytes is not None and size == 0xFFFF_FFFF:
        return ds64_bytes if ds64_bytes not in (0, (1 << 64) - 1) else None
    if size == 0 and _is_chunks(file, offset, size_bytes):
        return 0
    unknown = any(size in sizes for sizes in _UNKNOWN_SIZES)
    return None if unknown and size != size_bytes - offset else size


def _shape(body: bytes) -> tuple[str, int, int, int]:
    """Codec, channels, sample rate in hertz and bytes a frame, from a `fmt ` chunk's body."""
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


def _lies_low(file: BinaryIO, offset: int, size_bytes: int) -> bool:
    """Whether what follows the promised samples is more samples: neither chunks, nor a tag, nor padding."""
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
