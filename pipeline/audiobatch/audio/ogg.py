"""Whether an Ogg file is whole: it promises no length, but its pages do, and the last one says that it is.

    page: "OggS" version flags granule(8) serial(4) sequence(4) crc(4) segments  sizes[segments]  bytes

Source: RFC 3533, section 6, checked 2026-11-20.
"""

from __future__ import annotations

import io
from typing import BinaryIO, Literal

_LARGEST_PAGE_BYTES = 27 + 255 + 255 * 255
_HEADER_BYTES = 27
_END_OF_STREAM = 0x04


def ogg_end(file: BinaryIO, size_bytes: int) -> Literal["whole", "unmarked", "cut"]:
    """How an Ogg file ends.

    `cut`: within a page. `unmarked`: behind a page that is not the last; a live capture ends so, too.

    Args:
        file: seekable; its position is moved.
    """
    file.seek(max(0, size_bytes - _LARGEST_PAGE_BYTES), io.SEEK_SET)
    tail = file.read(_LARGEST_PAGE_BYTES)
    at = len(tail)
    while (at := tail.rfind(b"OggS\0", 0, at)) >= 0:
        if at + _HEADER_BYTES > len(tail):
            return "cut"
        sizes = tail[at + _HEADER_BYTES : at + _HEADER_BYTES + tail[at + 26]]
        if len(sizes) < tail[at + 26] or at + _HEADER_BYTES + len(sizes) + sum(sizes) > len(tail):
            return "cut"
        return "whole" if tail[at + 5] & _END_OF_STREAM else "unmarked"
    return "cut"
