"""WAV replies made right: the service streams its WAVs, so both sizes in their headers are 0xFFFFFFFF.

Left so, Python's `wave` reports 89 478 s for a reply of 1.6 s, and players show no duration.
Source: pollinations/pollinations#11951, #12061; speaches-ai/speaches#493, checked 2026-11-20.
"""

from __future__ import annotations

import io
import struct

from audiobatch.audio.riff import NotWav, WavLayout, read_layout

_U32_MAX = 0xFFFF_FFFF


def repair_header(data: bytes) -> bytes:
    """The same WAV with true sizes; other chunks and every sample stay as they are.

    Bytes whose sizes are true already come back as they are, not copied. An incomplete last frame is dropped.

    Raises:
        ValueError: it is no WAV, its header is cut, or it is too long for a RIFF header (4 GB).
    """
    layout = read_layout(io.BytesIO(data), len(data))
    riff_size = int.from_bytes(data[4:8], "little")
    if layout.sizes_true and riff_size in (len(data) - 8, len(data) - 9):
        return data
    if layout.ds64_offset is not None:
        if layout.sizes_true:
            return data
        return _with_sizes64(data, layout)
    end = layout.data_offset + layout.data_bytes
    pad = layout.data_bytes & 1
    kept = data[end + pad :] if layout.promised_bytes is not None and not layout.understated else b""
    size = end + pad + len(kept) - 8
    if size > _U32_MAX:
        raise NotWav("too long for a WAV header")
    header = bytearray(data[: layout.data_offset])
    struct.pack_into("<I", header, 4, size)
    struct.pack_into("<I", header, layout.data_offset - 4, layout.data_bytes)
    if layout.fact_offset is not None and layout.linear:
        struct.pack_into("<I", header, layout.fact_offset, layout.frames)
    return b"".join((header, memoryview(data)[layout.data_offset : end], b"\0" * pad, kept))


def _with_sizes64(data: bytes, layout: WavLayout) -> bytes:
    """An RF64 file with its 64-bit sizes made true."""
    assert layout.ds64_offset is not None
    end = layout.data_offset + layout.data_bytes
    header = bytearray(data[: layout.data_offset])
    struct.pack_into("<QQQ", header, layout.ds64_offset, end - 8, layout.data_bytes, layout.frames)
    return b"".join((header, memoryview(data)[layout.data_offset : end]))


def pcm_to_wav(pcm: bytes, *, sample_rate_hz: int = 24_000, channels: int = 1) -> bytes:
    """Raw 16-bit little-endian samples, frames x channels interleaved, as a WAV file.

    The defaults are the service's `pcm16`: 24 kHz, one channel. An incomplete last frame is dropped.
    Source: Azure's realtime audio quickstart, checked 2026-11-20.

    Raises:
        ValueError: longer than a RIFF header can say (4 GB).
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
