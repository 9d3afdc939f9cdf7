"""What becomes of a result's files when another takes its place, or was about to.

    copied to versions/ → the new files written over → the outcome recorded, the old one among the versions

Copied, not moved: at every instant the ledger's outcome has its files, in their own place or under `versions/`.
A kill in between leaves the old outcome with the new files; `restore` puts the old ones back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from audiobatch.model import Outcome
    from audiobatch.storage.local import Storage

#: Where earlier versions of a result go when it is made again.
VERSIONS = "versions"
#: Below it: files that lay in a result's place and belong to no outcome, moved aside (`verify --repair`).
UNRECORDED = f"{VERSIONS}/unrecorded"

#: Where results lie, whole and in parts, now and before; what else is in the folder is the user's, or a view.
RESULT_FOLDERS = ("audio", "transcripts", "replies", "parts", VERSIONS)


def bare_samples_path(audio_path: str) -> str:
    """Where a pcm16 reply's samples lie as they came, beside the WAV that plays."""
    return audio_path.removesuffix(".wav") + ".pcm"


def subtitle_paths(transcript_path: str) -> tuple[str, str]:
    """Where the words of a recording lie with their times, beside the transcript of the reply to it."""
    stem = transcript_path.removesuffix(".txt")
    return f"{stem}.srt", f"{stem}.vtt"


def files_of(outcome: Outcome) -> list[str]:
    """Every path that an outcome stands for."""
    paths = [file.path for file in (outcome.audio, outcome.transcript_file, outcome.raw_reply) if file]
    if outcome.audio and outcome.format == "pcm16":
        paths.append(bare_samples_path(outcome.audio.path))
    if outcome.transcript_file and outcome.input_transcript:
        paths += subtitle_paths(outcome.transcript_file.path)
    return paths


def version_path(path: str, version: int) -> str:
    """`audio/anna.wav` of version 1 → `versions/v1/audio/anna.wav`."""
    return f"{VERSIONS}/v{version}/{path}"


def set_aside(storage: Storage, outcome: Outcome) -> None:
    """Copy a result's files to `versions/`, before others are written in their place.

    Files that are gone are no reason to stop. A copy that is there already was made by a run that was killed
    later on: what lies in the result's place may then be a reply that was never recorded.

    Raises:
        StorageError: there is no room for the copies.
    """
    for path in files_of(outcome):
        kept = version_path(path, outcome.version)
        if storage.exists(path) and not storage.exists(kept):
            storage.write(kept, storage.read(path))


def clear(storage: Storage, outcome: Outcome, *, keep: Collection[str] = ()) -> None:
    """Delete a result's files that are set aside and that the new one has not written over."""
    for path in files_of(outcome):
        if path not in keep:
            storage.delete(path)


def restore(storage: Storage, outcome: Outcome) -> bool:
    """Undo what a killed redo did to a result that is still the recorded one.

    Returns:
        Whether a file had to be put back.
    """
    put_back = False
    copies = {path: version_path(path, outcome.version) for path in files_of(outcome)}
    copies = {path: kept for path, kept in copies.items() if storage.exists(kept)}
    for path, kept in copies.items():
        if not _same(storage, path, kept):
            storage.write(path, storage.read(kept))
            put_back = True
    for kept in copies.values():
        storage.delete(kept)
    return put_back


def _same(storage: Storage, path: str, other: str) -> bool:
    return (
        storage.exists(path)
        and storage.size(path) == storage.size(other)
        and storage.sha256(path) == storage.sha256(other)
    )
