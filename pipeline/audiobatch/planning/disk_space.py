"""Check free disk space before money is spent, and reserve some for replies that the output cannot take."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from audiobatch.errors import ConfigError, StorageError
from audiobatch.planning.tokens import FIRST_GUESS_AUDIO_S

if TYPE_CHECKING:
    from audiobatch.address import Location
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.storage.spool import Spool

log = logging.getLogger(__name__)

#: Bytes a second of audio. WAV and pcm16 have 24 kHz, 16 bit; the others the service's usual bit rates.
_BYTES_PER_S = {
    "wav": 48_000,
    "pcm16": 96_000,
    "flac": 30_000,
    "mp3": 20_000,
    "aac": 16_000,
    "opus": 8_000,
    "m4a": 16_000,
    "ogg": 16_000,
}
#: Bytes of a turn's ledger row, transcript and rows in the reports.
_BYTES_PER_TURN = 8_000
#: Free space that is left: a full file system works badly, and others write to it, too.
_SPARE_BYTES = 20_000_000
#: The spool reserves space for each call in flight: a reply of three times the usual length.
_LONG_REPLY = 3
#: Calls in flight, where the job does not limit them.
_USUAL_CALLS = 64
_LARGEST_RESERVE_BYTES = 256_000_000
#: During the run, for each call in flight: a reply of twice the average length; the reserve grows by a quarter
#: more.
_GROWN_LONG_REPLY = 2
_GROWTH = 1.25
_LARGEST_GROWN_BYTES = 4_000_000_000


def bytes_per_item(spec: JobSpec, reply_s: float = FIRST_GUESS_AUDIO_S) -> float:
    """Return the bytes that an item's results take on the disk.

    Args:
        spec: the job.
        reply_s: seconds of a spoken reply, on average.
    """
    total = 0.0
    for turn in spec.turn_specs():
        total += _BYTES_PER_TURN
        if "audio" in (turn.modalities or ()):
            total += _BYTES_PER_S[turn.format or spec.format] * reply_s
    return total


def check_free_space(spec: JobSpec, output: Location, *, items: int, free_bytes: int | None) -> None:
    """Check that the results of so many items fit on the output's disk.

    Raises:
        ConfigError: they do not; nothing was sent.
    """
    need = items * bytes_per_item(spec) + _SPARE_BYTES
    if items and free_bytes is not None and free_bytes < need:
        raise ConfigError(
            f"{output}: its disk has {_size(free_bytes)} free, and the results of {items:,} items need about "
            f"{_size(need)}. Free some space, name another --output, or send fewer with --limit; nothing was sent."
        )


def reserve(spec: JobSpec, spool: Spool, *, items: int) -> str:
    """Reserve space in the spool for replies that the output cannot take.

    Returns:
        Why there is none; empty where there is. The job can continue without a reserve.
    """
    calls = min(items, spec.max_concurrency or _USUAL_CALLS)
    size = min(calls * _LONG_REPLY * bytes_per_item(spec), _LARGEST_RESERVE_BYTES)
    try:
        spool.release()
        spool.reserve(int(size))
    except StorageError as failed:
        return (
            f"no space could be reserved for replies that the output folder cannot take: {failed.message} "
            "If its disk fills up, replies that are paid for could be lost."
        )
    return ""


def reserve_for_calls(spec: JobSpec, spool: Spool, *, calls: int, reply_s: float) -> None:
    """Enlarge the reserve where more calls are in flight, or replies are longer, than assumed.

    Args:
        spec: the job.
        spool: where the space is reserved.
        calls: calls in flight now.
        reply_s: seconds of a spoken reply, on average.

    Raises:
        StorageError: there is not enough free space.
    """
    size = min(_GROWN_LONG_REPLY * calls * bytes_per_item(spec, reply_s), _LARGEST_GROWN_BYTES)
    if size > spool.reserved_bytes:
        spool.reserve(int(size * _GROWTH))


def release_reserve(spool: Spool) -> None:
    """Free the space that was reserved."""
    try:
        spool.release()
    except StorageError as failed:
        log.warning("%s", failed.message)


def _size(size_bytes: float) -> str:
    for unit in ("KB", "MB", "GB"):
        size_bytes /= 1000
        if size_bytes < 1000 or unit == "GB":
            break
    return f"{size_bytes:.1f} {unit}"
