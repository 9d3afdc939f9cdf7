"""Prepare a recording for sending: as one request, or as parts whose bytes are read when they are sent.

The file may have changed since it was probed; the hash is always that of the bytes that are sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from audiobatch.address import is_remote
from audiobatch.audio.convert import fits_one_request, prepare, unpack
from audiobatch.audio.probe import probe
from audiobatch.audio.split import PART_S, measure_levels, plan_parts
from audiobatch.audio.trim import plan_trim, saved_s
from audiobatch.errors import InputError, working_on_input
from audiobatch.inputs.sound_settings import channels_of

if TYPE_CHECKING:
    from audiobatch.audio.channels import Channels
    from audiobatch.audio.split import Part
    from audiobatch.audio.trim import Timeline
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.model import AudioPart, Media, Source

#: Containers in which a part is found by seeking; others are decoded once, into a plain copy.
_SEEKABLE = frozenset({"wav"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRecording:
    """A recording, or one side of it, as it is sent.

    Attributes:
        path: the file that is read: the recording, or a plain copy of a long compressed one.
        timeline: which stretches are sent; None: all.
        parts: the parts that are sent one by one; empty where one request is enough.
        audio: the bytes where one request is enough; None: `read` reads them.
        trimmed_s: seconds of silence that are left out; None where trimming was not asked for.
        scratch: the folder of the copy, which `close` deletes.
    """

    path: Path
    media: Media
    channels: Channels
    timeline: Timeline | None = None
    parts: tuple[Part, ...] = ()
    audio: AudioPart | None = None
    trimmed_s: float | None = None
    scratch: Path | None = None

    @property
    def duration_s(self) -> float:
        """Seconds that are sent."""
        return self.timeline.duration_s if self.timeline else self.media.duration_s

    def read(self) -> AudioPart:
        """Return everything that is sent, as one request.

        Raises:
            InputError: the file can no longer be read, or is too long for one request.
        """
        if self.audio is not None:
            return self.audio
        return prepare(self.path, self.media, channels=self.channels, timeline=self.timeline)

    def read_part(self, part: Part) -> AudioPart:
        """Return the audio of a part.

        Raises:
            InputError: the file can no longer be read.
        """
        return prepare(self.path, self.media, channels=self.channels, timeline=part.timeline)

    def split(self, longest_s: float) -> tuple[Part, ...]:
        """Plan parts of at most `longest_s` seconds.

        Raises:
            InputError: the file can no longer be read.
        """
        levels = measure_levels(self.path, self.channels)
        return plan_parts(levels, longest_s=longest_s, timeline=self.timeline)

    def close(self) -> None:
        """Delete the copy, if there is one."""
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)


def prepare_recording(source: Source, spec: JobSpec) -> tuple[Source, PreparedRecording]:
    """Prepare a recording as the job's settings say.

    Returns:
        The source as the file is now, and the prepared recording, which must be closed.

    Raises:
        InputError: the file was deleted, or is no longer a recording.
        StorageError: its store cannot be reached.
    """
    with working_on_input(source.item_id):
        return _from_store(source, spec) if is_remote(source.root) else _from_disk(source, spec)


def _from_disk(source: Source, spec: JobSpec) -> tuple[Source, PreparedRecording]:
    path = Path(source.root) / source.path
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError("the file is gone: it was moved or deleted after it was found") from None
    except OSError as failed:
        raise InputError(f"it cannot be read: {failed.strerror}") from failed
    if (status.st_size, status.st_mtime_ns) != (source.size_bytes, source.mtime_ns) or source.media is None:
        source = _probed_again(source, path)
    return _prepare_file(source, path, spec)


def _from_store(source: Source, spec: JobSpec) -> tuple[Source, PreparedRecording]:
    """Prepare an object: it is downloaded once, into a temporary file that `close` deletes."""
    from audiobatch.inputs.remote import fetch_recording

    with contextlib.ExitStack() as on_failure:
        scratch = Path(tempfile.mkdtemp(prefix="audiobatch-"))
        on_failure.callback(shutil.rmtree, scratch, ignore_errors=True)
        path, source = fetch_recording(source, scratch)
        source, prepared = _prepare_file(source, path, spec)
        if prepared.scratch is None:
            on_failure.pop_all()
            prepared = replace(prepared, scratch=scratch)
    return source, prepared


def _prepare_file(source: Source, path: Path, spec: JobSpec) -> tuple[Source, PreparedRecording]:
    assert source.media is not None
    channels = channels_of(source, spec)
    longest_s = spec.max_part * 60 if spec.max_part else None
    is_short = longest_s is None or source.media.duration_s <= longest_s
    if is_short and not spec.trim_silence and fits_one_request(source.media, source.size_bytes):
        return _prepare_whole(source, path, channels)
    return source, _prepare_measured(path, source, channels, trim=spec.trim_silence, longest_s=longest_s)


def prepare_bytes(data: bytes, name: str) -> PreparedRecording:
    """Prepare a reply's audio like a recording; it must be closed.

    Raises:
        InputError: it is not a recording.
    """
    scratch = Path(tempfile.mkdtemp(prefix="audiobatch-"))
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(shutil.rmtree, scratch, ignore_errors=True)
        path = scratch / name
        path.write_bytes(data)
        media = probe(path).media
        on_failure.pop_all()
    return PreparedRecording(path=path, media=media, channels="mix", scratch=scratch)


def _prepare_whole(source: Source, path: Path, channels: Channels) -> tuple[Source, PreparedRecording]:
    """Read a recording that is sent as one request; where its bytes are not converted, compare their hash."""
    media = source.media
    assert media is not None
    audio = prepare(path, media, channels=channels)
    is_unconverted = len(audio.data) == source.size_bytes
    if is_unconverted and hashlib.sha256(audio.data).hexdigest() != source.sha256:
        source = _probed_again(source, path)
        media = source.media or media
        audio = prepare(path, media, channels=channels)
    return source, PreparedRecording(path=path, media=media, channels=channels, audio=audio)


def _prepare_measured(
    path: Path, source: Source, channels: Channels, *, trim: bool, longest_s: float | None
) -> PreparedRecording:
    """Measure a recording's levels, and plan its trimming and its parts by them."""
    assert source.media is not None
    levels = measure_levels(path, channels)
    timeline = plan_trim(levels) if trim else None
    sent_s = timeline.duration_s if timeline else levels.duration_s
    prepared = PreparedRecording(
        path=path,
        media=source.media,
        channels=channels,
        timeline=timeline,
        trimmed_s=round(saved_s(levels, timeline), 3) if trim else None,
    )
    fits = fits_one_request(source.media, source.size_bytes, sent_s if timeline else None)
    if fits and (longest_s is None or sent_s <= longest_s):
        return replace(prepared, audio=prepare(path, source.media, channels=channels, timeline=timeline))
    prepared = replace(prepared, parts=plan_parts(levels, longest_s=longest_s or PART_S, timeline=timeline))
    return prepared if source.media.container in _SEEKABLE else _decoded_once(prepared)


def _decoded_once(prepared: PreparedRecording) -> PreparedRecording:
    """Read the parts from a plain copy, so that the file is decoded once and not for each part."""
    with contextlib.ExitStack() as on_failure:
        scratch = Path(tempfile.mkdtemp(prefix="audiobatch-"))
        on_failure.callback(shutil.rmtree, scratch, ignore_errors=True)
        plain = scratch / "recording.wav"
        try:
            unpack(prepared.path, prepared.media, plain, channels=prepared.channels)
        except OSError as failed:
            raise InputError(f"it cannot be decoded into {scratch.parent}: {failed.strerror}") from failed
        media = probe(plain).media
        on_failure.pop_all()
    return replace(prepared, path=plain, media=media, channels="mix", scratch=scratch)


def _probed_again(source: Source, path: Path) -> Source:
    probed = probe(path)
    return replace(
        source,
        media=probed.media,
        sha256=probed.sha256,
        size_bytes=probed.size_bytes,
        mtime_ns=probed.mtime_ns,
    )
