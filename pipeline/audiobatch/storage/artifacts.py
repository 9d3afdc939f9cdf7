"""A reply's files: audio that plays, its transcript, and the raw body where something was wrong.

Everything here is CPU and disk work for a thread: repair the header, measure, check, write, flush.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.audio.finish import Finish, finish_reply
from audiobatch.audio.measure import check_reply, measure
from audiobatch.audio.wav import pcm_to_wav, repair_header
from audiobatch.errors import BadReply, StorageError
from audiobatch.model import Check
from audiobatch.storage.names import output_path
from audiobatch.storage.versions import bare_samples_path, clear, set_aside

if TYPE_CHECKING:
    from collections.abc import Callable

    from audiobatch.audio.measure import Clip
    from audiobatch.model import Item, Outcome, Reply, SavedFile, Turn
    from audiobatch.storage.local import Storage

#: The service's pcm16 is 24 kHz, one channel. Source: OpenAI API reference, `audio.format` (2026-11).
PCM16_RATE_HZ = 24_000
AS_IT_CAME = Finish()
Files = list[tuple[str, bytes]]


class NotSaved(StorageError):
    """A reply that was paid for could not be written; its files come along, to be kept elsewhere."""

    def __init__(self, message: str, made: Made) -> None:
        super().__init__(message)
        self.made = made


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a reply comes to: its files (paths relative to the output folder) and what was measured."""

    files: Files
    audio_path: str | None
    transcript_path: str | None
    audio_duration_s: float | None
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A reply on disk, flushed."""

    made: Made
    audio: SavedFile | None
    transcript: SavedFile | None


def make(
    item: Item,
    turn: Turn,
    reply: Reply,
    finish: Finish = AS_IT_CAME,
    checks: tuple[Check, ...] | None = None,
) -> Made:
    """Decide a reply's files and check it: as it came, since a fade would hide that it breaks off.

    Args:
        checks: of a reply that was put together of checked ones.

    Raises:
        BadReply: its audio cannot be decoded or holds no samples.
    """
    filename = item.source.settings.filename
    files: Files = []
    audio_path = transcript_path = None
    clip: Clip | None = None
    duration_s: float | None = None
    if turn.wants_audio and reply.audio is not None:
        sound, clip = _playable(reply, reply.audio_format)
        duration_s = clip.duration_s
        bare = reply.audio
        if finish.changes_samples or reply.audio_format != turn.format:
            finished = finish_reply(sound, turn.format, finish)
            sound, bare = (pcm_to_wav(finished), finished) if turn.format == "pcm16" else (finished, b"")
            duration_s = measure(sound, turn.format).duration_s
        ending = ".wav" if turn.format == "pcm16" else f".{turn.format}"
        audio_path = output_path(
            item.item_id, folder="audio", ending=ending, turn=turn.number, filename=filename
        )
        files.append((audio_path, sound))
        if turn.format == "pcm16":
            files.append((bare_samples_path(audio_path), bare))
    words = reply.transcript_or_text
    if words:
        transcript_path = output_path(
            item.item_id, folder="transcripts", ending=".txt", turn=turn.number, filename=filename
        )
        files.append((transcript_path, words.encode()))
    if checks is None:
        checks = check_reply(
            clip=clip,
            transcript=reply.transcript,
            text=reply.text,
            wants_audio=turn.wants_audio,
            finish_reason=reply.finish_reason,
            verbatim_of=turn.text if item.read_aloud and turn.number == 1 else None,
        )
        if reply.repaired:
            checks = (*checks, Check.REPAIRED)
    return Made(
        files=files,
        audio_path=audio_path,
        transcript_path=transcript_path,
        audio_duration_s=duration_s,
        checks=checks,
    )


def _playable(reply: Reply, audio_format: str) -> tuple[bytes, Clip]:
    assert reply.audio is not None
    try:
        match audio_format:
            case "wav":
                sound = repair_header(reply.audio)
            case "pcm16":
                sound = pcm_to_wav(reply.audio, sample_rate_hz=PCM16_RATE_HZ)
            case _:
                sound = reply.audio
        return sound, measure(sound, "wav" if audio_format == "pcm16" else audio_format)
    except ValueError as failed:
        raise BadReply(
            f"the reply's audio cannot be used: {failed}", raw=reply.raw, request_id=reply.request_id
        ) from failed


def save(
    storage: Storage,
    item: Item,
    turn: Turn,
    reply: Reply,
    replaced: Outcome | None,
    finish: Finish = AS_IT_CAME,
    checks: tuple[Check, ...] | None = None,
    check_lease: Callable[[], None] = lambda: None,
) -> Saved:
    """Write a reply's files; each is whole and on disk when this returns.

    Args:
        storage: the output.
        item: whose reply it is.
        turn: of that item.
        reply: as decoded.
        replaced: an earlier success in whose place this one comes; its files are set aside first.
        finish: what is done to its sound.
        checks: of a reply that was put together of checked ones.
        check_lease: raises a StorageError where the item is no longer this run's to write.

    Raises:
        BadReply: the audio is unusable.
        NotSaved: the output cannot be written; carries the files.
    """
    made = make(item, turn, reply, finish, checks)
    try:
        check_lease()
        if replaced is not None:
            set_aside(storage, replaced)
        written = storage.write_many(made.files, replacing=replaced is not None, check_lease=check_lease)
        saved = {file.path: file for file in written}
        if replaced is not None:
            clear(storage, replaced, keep=list(saved))
    except StorageError as failed:
        raise NotSaved(failed.message, made) from failed
    return Saved(
        made=made,
        audio=saved.get(made.audio_path or ""),
        transcript=saved.get(made.transcript_path or ""),
    )


def result_paths(item: Item) -> list[str]:
    """Where an item's results are written, whatever its replies bring."""
    filename = item.source.settings.filename
    paths = []
    for turn in item.turns:
        if turn.wants_audio:
            ending = ".wav" if turn.format == "pcm16" else f".{turn.format}"
            paths.append(
                output_path(item.item_id, folder="audio", ending=ending, turn=turn.number, filename=filename)
            )
        paths.append(
            output_path(
                item.item_id, folder="transcripts", ending=".txt", turn=turn.number, filename=filename
            )
        )
    return paths


def raw_path(item_id: str, turn: int, raw: bytes) -> str:
    """Where a body is kept as it came, for whoever looks into what went wrong."""
    start = raw.lstrip()[:1]
    # A page is kept as text: no click opens it.
    ending = ".txt" if start == b"<" else ".json" if start == b"{" else ".bin"
    return output_path(item_id, folder="replies", ending=ending, turn=turn)
