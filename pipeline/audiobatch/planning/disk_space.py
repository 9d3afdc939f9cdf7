"""Room on the disk, asked for before money is spent: for what the plan writes, and for replies that it cannot."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from audiobatch.errors import ConfigError, StorageError
from audiobatch.planning.tokens import FIRST_GUESS_AUDIO_S

if TYPE_CHECKING:
    from audiobatch.address import Place
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.storage.spool import Spool

log = logging.getLogger(__name__)

#: Bytes a second of sound takes. WAV and pcm16 are 24 kHz, 16 bit; the others at the service's usual bit rates.
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
#: What an item's row, transcript and place in the reports come to.
_BYTES_PER_TURN = 8_000
#: A file system that is full to the last block works badly, and others write to it too.
_SPARE_BYTES = 20_000_000
#: What the spool sets aside for each call in flight: a reply of three times the usual length.
_LONG_REPLY = 3
#: Calls in flight, where nobody says how many.
_USUAL_CALLS = 64
_LARGEST_RESERVE_BYTES = 256_000_000
#: While calls are in flight, for each: a reply of twice the usual length, and a quarter more at a time.
_MORE_THAN_USUAL = 2
_AHEAD = 1.25
_LARGEST_GROWN_BYTES = 4_000_000_000


def bytes_per_item(spec: JobSpec, reply_s: float = FIRST_GUESS_AUDIO_S) -> float:
    """What one item's results take on the disk."""
    total = 0.0
    for turn in spec.turn_specs():
        total += _BYTES_PER_TURN
        if "audio" in (turn.modalities or ()):
            total += _BYTES_PER_S[turn.format or spec.format] * reply_s
    return total


def check_room(spec: JobSpec, output: Place, *, items: int, free_bytes: int | None) -> None:
    """See that the plan's results have room.

    Raises:
        ConfigError: they have not; nothing was sent.
    """
    need = items * bytes_per_item(spec) + _SPARE_BYTES
    if items and free_bytes is not None and free_bytes < need:
        raise ConfigError(
            f"{output}: {_shown(free_bytes)} are free on its disk, and the results of {items:,} items need about "
            f"{_shown(need)}. Free some space, name another --output, or send fewer with --limit; nothing was sent."
        )


def reserve(spec: JobSpec, spool: Spool, *, items: int) -> str:
    """Set room aside for replies that the output will not take.

    Returns:
        Why there is none; empty where there is. The job can go on without: the output is where replies belong.
    """
    calls = min(items, spec.max_concurrency or _USUAL_CALLS)
    size = min(calls * _LONG_REPLY * bytes_per_item(spec), _LARGEST_RESERVE_BYTES)
    try:
        spool.release()
        spool.reserve(int(size))
    except StorageError as failed:
        return (
            f"no room could be set aside for replies that the output folder cannot take: {failed.message} "
            "Should its disk fill up, replies that are paid for could be lost."
        )
    return ""


def reserve_for_calls(spec: JobSpec, spool: Spool, *, calls: int, reply_s: float) -> None:
    """Set more room aside, where more calls are in flight, or replies are longer, than was thought.

    Args:
        spec: the job.
        spool: whose room.
        calls: in flight now.
        reply_s: how long replies are on average.

    Raises:
        StorageError: that much is not free.
    """
    size = min(_MORE_THAN_USUAL * calls * bytes_per_item(spec, reply_s), _LARGEST_GROWN_BYTES)
    if size > spool.reserved_bytes:
        spool.reserve(int(size * _AHEAD))


def give_back(spool: Spool) -> None:
    """Free what was set aside and not needed."""
    try:
        spool.release()
    except StorageError as failed:
        log.warning("%s", failed.message)


def _shown(size_bytes: float) -> str:
    for unit in ("KB", "MB", "GB"):
        size_bytes /= 1000
        if size_bytes < 1000 or unit == "GB":
            break
    return f"{size_bytes:.1f} {unit}"
