"""Read what a container declares of its length and its end.

The duration is the recording's own count, never FFmpeg's estimate from bytes and bit rates. Where a header names
no duration, FFmpeg divides the file's size by a bit rate: a cover, a tag or padding after the sound then counts as
sound, and speech at a variable rate lasts as long as its first seconds suggest.

    mp3             the frame count that encoders leave in a first frame of silence: Xing, Info, VBRI
    matroska, asf   the duration of the file: its longest stream's, perhaps the pictures'
    mp4, flac, aiff, au, caf, w64    the duration of the stream, in the header or in a table of its packets
    ogg, aac, amr   nothing

Source: FFmpeg, libavformat/mp3dec.c and asfdec_f.c; RFC 9559 (Matroska), section 5.1.2, checked 2026-11-20.

An Ogg file declares no length, but its pages have sizes, and the last one is marked.

    page: "OggS" version flags granule(8) serial(4) sequence(4) crc(4) segments  sizes[segments]  bytes

Source: RFC 3533, section 6, checked 2026-11-20.
"""

from __future__ import annotations

import io
import re
import struct
from typing import TYPE_CHECKING, BinaryIO, Literal

if TYPE_CHECKING:
    import av
    import av.container

#: FFmpeg's readers whose declared duration is the longest stream's, not the sound's.
FILE_DURATION_READERS = frozenset({"matroska,webm", "asf"})
_UNDECLARED = frozenset({"aac", "adts", "latm", "loas", "amr", "amrnb", "amrwb", "ogg"})
_HEADER_BYTES = 1 << 16
_ID3_BYTES = 10
#: A layer III frame: header, side information (by version and channels), then the mark, its flags and the count.
_MP3_FRAME_COUNT = re.compile(
    rb"\xff[\xe2-\xfb]..(?:(?:.{9}|.{17}|.{32})(?:Xing|Info)...[\x01\x03\x05\x07\x09\x0b\x0d\x0f](.{4})"
    rb"|.{32}VBRI.{10}(.{4}))",
    re.DOTALL,
)
_MPEG1_LEAST_HZ = 32_000
_MATROSKA_DURATION = re.compile(rb"\x15\x49\xa9\x66.{1,1000}?\x44\x89[\x84\x88]", re.DOTALL)
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_BROADCAST = 0x01
_OGG_LARGEST_PAGE_BYTES = 27 + 255 + 255 * 255
_OGG_HEADER_BYTES = 27
_OGG_END_OF_STREAM = 0x04


def declared_duration_s(
    file: BinaryIO, container: av.container.InputContainer, stream: av.AudioStream
) -> float | None:
    """Return the duration that a recording declares; None where it declares none.

    Args:
        file: the recording, seekable; its position is restored.
    """
    reader = container.format.name
    if reader in _UNDECLARED:
        return None
    if reader == "mp3":
        frames = _mp3_frames(_header(file))
        frame_samples = 1152 if stream.sample_rate >= _MPEG1_LEAST_HZ else 576
        return frames * frame_samples / stream.sample_rate if frames else None
    if reader == "asf":
        return _asf_duration_s(_header(file))
    if reader == "matroska,webm":
        whole_us = container.duration if _MATROSKA_DURATION.search(_header(file)) else None
        return whole_us / 1_000_000 if whole_us else None
    if stream.duration is None or stream.time_base is None:
        return None
    return float(stream.duration * stream.time_base)


def _header(file: BinaryIO) -> bytes:
    """Return a recording's first bytes after its ID3 tags."""
    position = file.tell()
    try:
        start = 0
        while True:
            file.seek(start)
            header = file.read(_HEADER_BYTES)
            if not header.startswith(b"ID3") or len(header) < _ID3_BYTES:
                return header
            size = header[6:10]  # 7 bits a byte
            start += _ID3_BYTES + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
    finally:
        file.seek(position)


def _mp3_frames(header: bytes) -> int:
    """Return the count of frames after the one that holds the count; 0 where there is none."""
    found = _MP3_FRAME_COUNT.search(header)
    return int.from_bytes(found[1] or found[2]) if found else 0


def _asf_duration_s(header: bytes) -> float | None:
    """Return the play time in the file properties, without the time to fill a player's buffer."""
    at = header.find(_ASF_FILE_PROPERTIES)
    if at < 0 or len(header) < at + 92:
        return None
    play_100ns, _, preroll_ms, flags = struct.unpack_from("<QQQI", header, at + 64)
    return None if flags & _ASF_BROADCAST else play_100ns / 10_000_000 - preroll_ms / 1_000


def ogg_end(file: BinaryIO, size_bytes: int) -> Literal["whole", "unmarked", "cut"]:
    """Tell how an Ogg file ends.

    `cut`: within a page. `unmarked`: after a page that is not marked as the last, as a live capture ends.

    Args:
        file: seekable; its position is moved.
    """
    file.seek(max(0, size_bytes - _OGG_LARGEST_PAGE_BYTES), io.SEEK_SET)
    tail = file.read(_OGG_LARGEST_PAGE_BYTES)
    at = len(tail)
    while (at := tail.rfind(b"OggS\0", 0, at)) >= 0:
        if at + _OGG_HEADER_BYTES > len(tail):
            return "cut"
        sizes = tail[at + _OGG_HEADER_BYTES : at + _OGG_HEADER_BYTES + tail[at + 26]]
        if len(sizes) < tail[at + 26] or at + _OGG_HEADER_BYTES + len(sizes) + sum(sizes) > len(tail):
            return "cut"
        return "whole" if tail[at + 5] & _OGG_END_OF_STREAM else "unmarked"
    return "cut"
