"""Probe recordings before anything is spent: measure them from their samples, or refuse them with a reason.

The probe hashes a file's bytes while it reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from audiobatch.audio.channels import MixMeter
from audiobatch.audio.decode import NotAudio, Sound, open_sound
from audiobatch.audio.levels import LevelMeter
from audiobatch.audio.probe_pool import ProbePool, usable_cores
from audiobatch.audio.trim import plan_trim, saved_s
from audiobatch.audio.wav import RIFF_BYTES, is_wav, read_layout
from audiobatch.errors import InputError, working_on_input
from audiobatch.model import Media

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: Endings that recordings of a container usually have; the first is the one to suggest.
EXTENSIONS: dict[str, tuple[str, ...]] = {
    "wav": ("wav", "wave"),
    "mp3": ("mp3",),
    "mp4": ("m4a", "mp4", "mov", "m4v", "m4b", "3gp", "3g2", "aac"),
    "aac": ("aac",),
    "flac": ("flac",),
    "ogg": ("ogg", "oga", "opus"),
    "webm": ("webm",),
    "mkv": ("mkv", "mka"),
    "aiff": ("aiff", "aif", "aifc"),
    "amr": ("amr", "awb"),
    "au": ("au",),
    "caf": ("caf",),
    "w64": ("w64",),
    "wma": ("wma",),
}
_KNOWN = frozenset(ending for endings in EXTENSIONS.values() for ending in endings)
#: The service takes audio files up to 20 MB; read as 10^6 bytes a megabyte, and before base64.
#: Source: github MicrosoftDocs/azure-ai-docs, audio-completions-intro.md, checked 2026-11-20; it does not say
#: whether before or after base64.
LARGEST_SENT_BYTES = 20_000_000
#: A recording whose level is below this, with hardly a window above `levels.SILENCE_DBFS`, holds no speech.
SILENT_DBFS = -60.0
SILENT_SHARE = 0.999
#: A recording may be this much shorter than its header declares before it counts as cut short, and than its time
#: stamps span before it gets a note: encoders pad their last frames, and headers count the decoder's delay.
_DURATION_SLACK_S = 0.15
_DURATION_SLACK_SHARE = 0.01
#: The workers take about half a second to start; a queue that is done sooner needs none.
ALONE_S = 1.0
_READ_BYTES = 1 << 18
_HASHED_BYTES = 1 << 20
#: This program reads a WAV without sizes, as browsers and pipes write it; not every server does.
NOTE_SIZES = "its header does not say how long it is, or says it wrongly"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A recording's measured facts, and the identity of the bytes that were measured."""

    media: Media
    sha256: str
    size_bytes: int
    mtime_ns: int


def looks_like_audio(name: str) -> bool:
    """Whether a file's ending is one that recordings have. Only its content decides."""
    stem, _, ending = name.rpartition(".")
    return ending.lower() in _KNOWN and stem != "" and not stem.endswith("/")


def sendable_as_is(media: Media, size_bytes: int) -> Literal["wav", "mp3"] | None:
    """Return the format in which the service takes these bytes unchanged; None where they must be prepared.

    WAV: 16-bit samples, one or two channels, 8 to 48 kHz, a header that is true. mp3: any. Both up to
    `LARGEST_SENT_BYTES`, and with channels that do not cancel each other. The API has these two formats only, and
    its reference does not mention other kinds of WAV.
    """
    if size_bytes > LARGEST_SENT_BYTES or media.mix_channel is not None:
        return None
    if media.container == "mp3" and media.codec == "mp3":
        return "mp3"
    plain = media.container == "wav" and media.codec == "pcm_s16le" and NOTE_SIZES not in media.notes
    return "wav" if plain and media.channels <= 2 and 8_000 <= media.sample_rate_hz <= 48_000 else None


def is_silent(media: Media) -> bool:
    """Whether a recording holds no speech, by `SILENT_DBFS` and `SILENT_SHARE`; False where not measured."""
    if media.level_dbfs is None or media.silence_share is None:
        return False
    return media.level_dbfs < SILENT_DBFS and media.silence_share >= SILENT_SHARE


def probe(path: Path) -> Probed:
    """Read a recording once, from its beginning to its end, in blocks; memory does not grow with its length.

    Raises:
        InputError: it is no recording, is cut short, holds no samples, or cannot be read; the message is the
            reason without the file's name.
    """
    with working_on_input(path.name):
        return _probe(path)


def _probe(path: Path) -> Probed:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError("it is not a regular file")
        with path.open("rb", buffering=0) as raw:
            found = os.fstat(raw.fileno())
            if not found.st_size:
                raise InputError("it is empty (0 bytes)")
            hashing = HashingFile(raw)
            media = _measured(io.BufferedReader(hashing, _READ_BYTES), found.st_size, path.name)
            digest = hashing.finish()
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror or error}") from error
    return Probed(media=media, sha256=digest, size_bytes=found.st_size, mtime_ns=found.st_mtime_ns)


def probe_many(
    paths: Iterable[Path], processes: int | None = None
) -> Iterator[tuple[Path, Probed | InputError]]:
    """Probe recordings in the order given; on all cores when they are many, a few ahead of the caller.

    This process reads plain WAVs only: a damaged file can crash FFmpeg, and then ends a worker with it.

    Args:
        paths: may be endless; it is read as results are taken.
        processes: number of workers, from the start. None: in this process for `ALONE_S` (a thousand short WAVs)
            or until a recording is no plain WAV, then on all cores.

    Yields:
        Each path with its facts, or why it is refused.
    """
    source = iter(paths)
    alone_until = time.monotonic() + (ALONE_S if processes is None else 0.0)
    for path in source:
        if time.monotonic() >= alone_until or not is_plain_wav(path):
            source = chain([path], source)
            break
        yield path, probe_or_refusal(path)
    else:
        return
    with ProbePool(processes or usable_cores()) as pool:
        for path, answer in pool.answers(source):
            yield path, result_of(answer)


def probe_or_refusal(path: Path) -> Probed | InputError:
    """Return what `probe` returns or raises."""
    try:
        return probe(path)
    except InputError as refusal:
        return refusal


def is_plain_wav(path: Path) -> bool:
    """Whether a file is a WAV of linear samples, or empty: it is read without FFmpeg."""
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        head = file.read(RIFF_BYTES)
        return not head or (is_wav(head) and read_layout(file, size_bytes).is_linear)
    return False


def result_of(answer: dict[str, Any]) -> Probed | InputError:
    """Convert the answer of a `ProbePool` worker."""
    if "refusal" in answer:
        return InputError(answer["refusal"])
    answer["media"]["notes"] = tuple(answer["media"]["notes"])
    return Probed(**{**answer, "media": Media(**answer["media"])})


def _measured(file: io.BufferedReader, size_bytes: int, name: str) -> Media:
    try:
        with open_sound(file, size_bytes) as sound:
            meter = LevelMeter(sound.sample_rate_hz)
            mix = MixMeter(sound.channels)
            for block in sound.blocks():
                meter.add(block)
                mix.add(block)
            levels = meter.result()
            _refuse_broken(sound, levels.duration_s)
            mix_channel = mix.replacement_channel()
            return Media(
                container=sound.container,
                codec=sound.codec,
                duration_s=levels.duration_s,
                sample_rate_hz=sound.sample_rate_hz,
                channels=sound.channels,
                level_dbfs=round(levels.rms_dbfs, 2),
                silence_share=round(levels.silence_share, 4),
                notes=tuple(_notes(sound, name, levels.duration_s, mix_channel)),
                trimmable_s=round(saved_s(levels, plan_trim(levels)), 2),
                mix_channel=mix_channel,
            )
    except NotAudio as error:
        raise InputError(str(error)) from error


def _refuse_broken(sound: Sound, duration_s: float) -> None:
    """Refuse a recording that is shorter than its header declares, or empty.

    Raises:
        InputError: with the reason.
    """
    if not duration_s:
        if sound.damaged_packets:
            raise InputError("none of it can be decoded: its content is damaged")
        raise InputError("it has a header but no sound in it (0 samples)")
    if sound.ending == "cut":
        raise InputError(f"cut short: it ends within a page, {duration_s:.1f} s are there")
    declared_s, present_s = sound.declared_duration_s, max(duration_s, sound.reached_s)
    if declared_s and _falls_short(present_s, declared_s):
        raise InputError(f"cut short: the header promises {declared_s:.1f} s, {present_s:.1f} s are there")


def _falls_short(present_s: float, declared_s: float) -> bool:
    return declared_s - present_s > _DURATION_SLACK_S + declared_s * _DURATION_SLACK_SHARE


def _notes(sound: Sound, name: str, duration_s: float, mix_channel: int | None) -> Iterator[str]:
    ending = PurePosixPath(name).suffix.lower().removeprefix(".")
    usual = EXTENSIONS.get(sound.container, ())
    if ending and usual and ending not in usual:
        yield f"extension says .{ending}, content is {sound.container}"
    if not sound.has_true_sizes:
        yield NOTE_SIZES
    if sound.ending == "unmarked":
        yield "it has no end mark: perhaps cut short"
    if _falls_short(duration_s, sound.span_s):
        yield f"by its time stamps {sound.span_s - duration_s:.1f} s are missing within it"
    if mix_channel is not None:
        yield f"its channels cancel each other when mixed: channel {mix_channel + 1} stands for all of them"
    if sound.damaged_packets:
        yield f"{sound.damaged_packets} damaged pieces were skipped"


class HashingFile(io.RawIOBase):
    """Hash a file while it is read, so that the sound and the hash are of the same bytes.

    Bytes count once and in order; `finish` reads what readers skipped.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self._hashed = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move within the file."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in the file."""
        return self._raw.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer, and hash what is new."""
        at = self._raw.tell()
        count = self._raw.readinto(buffer) or 0
        if at <= self._hashed < at + count:
            self._hash.update(memoryview(buffer)[self._hashed - at : count])
            self._hashed = at + count
        return count

    def finish(self) -> str:
        """Hash the rest, and return the SHA-256 of the whole file in hex."""
        self._raw.seek(self._hashed)
        while chunk := self._raw.read(_HASHED_BYTES):
            self._hash.update(chunk)
        return self._hash.hexdigest()
