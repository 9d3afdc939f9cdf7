"""A recording made ready to be sent: its bytes at once, or planned in parts whose bytes are read when they go.

The file may have changed since it was probed: what is hashed is what is sent.
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
from audiobatch.inputs.sound_settings import side_of

if TYPE_CHECKING:
    from audiobatch.audio.channels import Channels
    from audiobatch.audio.split import Part
    from audiobatch.audio.trim import Timeline
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.model import AudioPart, Media, Source

#: Containers whose parts are cut out by seeking; others would be decoded from the beginning for each part.
_SEEKABLE = frozenset({"wav"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundInput:
    """One recording, or one side of it, as it goes out.

    Attributes:
        path: what is read: the recording, or a plain copy of a long compressed one, deleted by `close`.
        timeline: what is sent of it; None for all.
        parts: the requests that it takes; empty where one is enough.
        sound: its bytes where one request is enough, else None.
        trimmed_s: seconds of silence that are left out; None where trimming was not asked for.
    """

    path: Path
    media: Media
    channels: Channels
    timeline: Timeline | None = None
    parts: tuple[Part, ...] = ()
    sound: AudioPart | None = None
    trimmed_s: float | None = None
    scratch: Path | None = None

    @property
    def duration_s(self) -> float:
        """Of what is sent, in seconds."""
        return self.timeline.duration_s if self.timeline else self.media.duration_s

    def whole(self) -> AudioPart:
        """All that is sent, at once.

        Raises:
            InputError: the file cannot be read any more, or that is too much for one request.
        """
        if self.sound is not None:
            return self.sound
        return prepare(self.path, self.media, channels=self.channels, timeline=self.timeline)

    def of(self, part: Part) -> AudioPart:
        """A part's bytes.

        Raises:
            InputError: the file cannot be read any more.
        """
        return prepare(self.path, self.media, channels=self.channels, timeline=part.timeline)

    def in_parts(self, longest_s: float) -> tuple[Part, ...]:
        """What is sent, cut into parts of at most this long.

        Raises:
            InputError: the file cannot be read any more.
        """
        levels = measure_levels(self.path, self.channels)
        return plan_parts(levels, longest_s=longest_s, timeline=self.timeline)

    def close(self) -> None:
        """Delete the plain copy, if there is one."""
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)


def open_input(source: Source, spec: JobSpec) -> tuple[Source, SoundInput]:
    """A recording as this job sends it, and the source as the file is now.

    Raises:
        InputError: it is gone, or is no recording any more.
        StorageError: the store that it is in is away.
    """
    with working_on_input(source.item_id):
        return _from_store(source, spec) if is_remote(source.root) else _from_disk(source, spec)


def _from_disk(source: Source, spec: JobSpec) -> tuple[Source, SoundInput]:
    path = Path(source.root) / source.path
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError("the file is gone since it was found") from None
    except OSError as failed:
        raise InputError(f"it cannot be read: {failed.strerror}") from failed
    if (found.st_size, found.st_mtime_ns) != (source.size_bytes, source.mtime_ns) or source.media is None:
        source = _probed_again(source, path)
    return _ready(source, path, spec)


def _from_store(source: Source, spec: JobSpec) -> tuple[Source, SoundInput]:
    """The same of an object: read once, into a temporary file that goes when the input is closed."""
    from audiobatch.inputs.remote import fetch_recording

    with contextlib.ExitStack() as on_failure:
        scratch = Path(tempfile.mkdtemp(prefix="audiobatch-"))
        on_failure.callback(shutil.rmtree, scratch, ignore_errors=True)
        path, source = fetch_recording(source, scratch)
        source, sound = _ready(source, path, spec)
        if sound.scratch is None:
            on_failure.pop_all()
            sound = replace(sound, scratch=scratch)
    return source, sound


def _ready(source: Source, path: Path, spec: JobSpec) -> tuple[Source, SoundInput]:
    assert source.media is not None
    channels = side_of(source, spec)
    longest_s = spec.max_part * 60 if spec.max_part else None
    short = longest_s is None or source.media.duration_s <= longest_s
    if short and not spec.trim_silence and fits_one_request(source.media, source.size_bytes):
        return _whole(source, path, channels)
    return source, _surveyed(path, source, channels, trim=spec.trim_silence, longest_s=longest_s)


def open_bytes(data: bytes, name: str) -> SoundInput:
    """A reply's sound, to be heard like a recording. To be closed.

    Raises:
        InputError: it is no recording.
    """
    scratch = Path(tempfile.mkdtemp(prefix="audiobatch-"))
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(shutil.rmtree, scratch, ignore_errors=True)
        path = scratch / name
        path.write_bytes(data)
        media = probe(path).media
        on_failure.pop_all()
    return SoundInput(path=path, media=media, channels="mix", scratch=scratch)


def _whole(source: Source, path: Path, channels: Channels) -> tuple[Source, SoundInput]:
    """The bytes of a recording that goes out at once; where they go as they are, they are what is hashed."""
    media = source.media
    assert media is not None
    sound = prepare(path, media, channels=channels)
    as_it_is = len(sound.data) == source.size_bytes
    if as_it_is and hashlib.sha256(sound.data).hexdigest() != source.sha256:
        source = _probed_again(source, path)
        media = source.media or media
        sound = prepare(path, media, channels=channels)
    return source, SoundInput(path=path, media=media, channels=channels, sound=sound)


def _surveyed(
    path: Path, source: Source, channels: Channels, *, trim: bool, longest_s: float | None
) -> SoundInput:
    """A recording of which some is left out, or that goes out in parts."""
    assert source.media is not None
    levels = measure_levels(path, channels)
    timeline = plan_trim(levels) if trim else None
    sent_s = timeline.duration_s if timeline else levels.duration_s
    made = SoundInput(
        path=path,
        media=source.media,
        channels=channels,
        timeline=timeline,
        trimmed_s=round(saved_s(levels, timeline), 3) if trim else None,
    )
    fits = fits_one_request(source.media, source.size_bytes, sent_s if timeline else None)
    if fits and (longest_s is None or sent_s <= longest_s):
        return replace(made, sound=prepare(path, source.media, channels=channels, timeline=timeline))
    made = replace(made, parts=plan_parts(levels, longest_s=longest_s or PART_S, timeline=timeline))
    return made if source.media.container in _SEEKABLE else _unpacked(made)


def _unpacked(made: SoundInput) -> SoundInput:
    """The same, read from a plain copy: decoded once instead of once a part."""
    with contextlib.ExitStack() as on_failure:
        scratch = Path(tempfile.mkdtemp(prefix="audiobatch-"))
        on_failure.callback(shutil.rmtree, scratch, ignore_errors=True)
        plain = scratch / "recording.wav"
        try:
            unpack(made.path, made.media, plain, channels=made.channels)
        except OSError as failed:
            raise InputError(f"no room to unpack it in {scratch.parent}: {failed.strerror}") from failed
        media = probe(plain).media
        on_failure.pop_all()
    return replace(made, path=plain, media=media, channels="mix", scratch=scratch)


def _probed_again(source: Source, path: Path) -> Source:
    probed = probe(path)
    return replace(
        source,
        media=probed.media,
        sha256=probed.sha256,
        size_bytes=probed.size_bytes,
        mtime_ns=probed.mtime_ns,
    )
