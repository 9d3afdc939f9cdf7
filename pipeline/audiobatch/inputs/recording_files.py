"""Recordings that discovery lists, in a folder or a store, and how each becomes a Source."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from audiobatch.errors import InputError
from audiobatch.inputs.sound_settings import SIDE_SUFFIXES
from audiobatch.ledger.rows import media_from_text
from audiobatch.model import Source, SourceKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audiobatch.audio.probe import Probed

#: What the ledger has of a file: size, time, hash, media, refusal.
KnownFile = tuple[int, int, str, str, str]


@dataclass(slots=True)
class DiscoveryStats:
    """Counts of what discovery saw, for the plan and the summary.

    Attributes:
        other_files: files with endings that are not inputs; counted, not listed.
        left_out: files that `include` and `exclude` leave out.
        skipped_links: symbolic links, which are not followed.
        probed: recordings read and measured in this run; the others were known by size and time.
    """

    other_files: int = 0
    left_out: int = 0
    skipped_links: int = 0
    probed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFile:
    """A recording that is listed and not probed yet.

    Attributes:
        root: a folder, or an address in a store.
        path: relative to the root.
        full_path: of a file on this machine.
        mtime_ns: when it was changed; for an object in a store, its version (`object_stores.version_of`).
        refusal: why it is not even read; empty when it is.
    """

    item_id: str
    root: str
    path: str
    size_bytes: int
    mtime_ns: int
    full_path: str = ""
    refusal: str = ""


def if_unchanged(file: RecordingFile, known: Mapping[str, KnownFile]) -> KnownFile | None:
    """Return what the ledger has of a file; None where it has nothing, or the file changed since."""
    item_ids = (file.item_id, *(file.item_id + suffix for suffix in SIDE_SUFFIXES))
    earlier = next((known[item_id] for item_id in item_ids if item_id in known), None)
    if earlier is None or earlier[:2] != (file.size_bytes, file.mtime_ns):
        return None
    _, _, sha256, _, refusal = earlier
    return earlier if sha256 or refusal else None


def source_without_probing(file: RecordingFile, known: Mapping[str, KnownFile]) -> Source:
    """Return the source of a recording that is refused by its name, or is unchanged."""
    earlier = None if file.refusal else if_unchanged(file, known)
    if earlier is None:
        return _source(file, refusal=file.refusal)
    _, _, sha256, media, refusal = earlier
    return _source(file, sha256=sha256, media_text=media, refusal=refusal)


def _source(file: RecordingFile, *, sha256: str = "", media_text: str = "", refusal: str = "") -> Source:
    return Source(
        item_id=file.item_id,
        kind=SourceKind.RECORDING,
        position=0,
        root=file.root,
        path=file.path,
        size_bytes=file.size_bytes,
        mtime_ns=file.mtime_ns,
        sha256=sha256,
        media=media_from_text(media_text),
        refusal=refusal,
    )


def probed_source(file: RecordingFile, result: Probed | InputError) -> Source:
    """Return the source of a recording that was probed, or could not be."""
    if isinstance(result, InputError):
        return _source(file, refusal=result.message)
    return replace(
        _source(file, sha256=result.sha256),
        size_bytes=result.size_bytes,
        mtime_ns=result.mtime_ns,
        media=result.media,
    )


def readable_name(name: str) -> tuple[str, str]:
    """Return a file name as text that can be stored, and a refusal where it is not valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        return shown, "its name is not valid UTF-8; rename it"
    return name, ""
