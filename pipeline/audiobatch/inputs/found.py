"""A recording that was found and is not probed yet, and how it becomes a Source."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.errors import InputError
from audiobatch.inputs.sound_settings import SIDE_MARKS
from audiobatch.ledger.rows import media_from_text
from audiobatch.model import Source, SourceKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audiobatch.audio.probe import Probed

#: What the ledger knows of a file: size, time, hash, media, refusal.
Known = tuple[int, int, str, str, str]


@dataclass(slots=True)
class DiscoveryStats:
    """What discovery came across, for the plan's and the summary's words.

    Attributes:
        other_files: with endings that are no input here; counted, not listed.
        left_out: files that `include` and `exclude` leave out.
        skipped_links: symbolic links, which are not followed.
        probed: recordings read and measured in this run; the others were known by size and time.
    """

    other_files: int = 0
    left_out: int = 0
    skipped_links: int = 0
    probed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A recording as it lies there.

    Attributes:
        root: a folder, or a place in a store.
        path: relative to it.
        full_path: of a file of this machine.
        mtime_ns: when it was changed; of an object in a store, its version (`object_stores.version_of`).
        refusal: why it is not even read; empty when it is.
    """

    item_id: str
    root: str
    path: str
    size_bytes: int
    mtime_ns: int
    full_path: str = ""
    refusal: str = ""


def unchanged(found: Found, known: Mapping[str, Known]) -> Known | None:
    """What an earlier probing found, if the file is what it was then."""
    ids = (found.item_id, *(found.item_id + mark for mark in SIDE_MARKS))
    one = next((known[item_id] for item_id in ids if item_id in known), None)
    if one is None or one[:2] != (found.size_bytes, found.mtime_ns):
        return None
    return one if one[2] or one[4] else None


def without_probing(found: Found, known: Mapping[str, Known]) -> Source:
    """The source of a recording that was refused, or is as it was."""
    one = None if found.refusal else unchanged(found, known)
    if one is None:
        return recording_source(found, refusal=found.refusal)
    _, _, sha256, media, refusal = one
    return recording_source(found, sha256=sha256, media_text=media, refusal=refusal)


def recording_source(found: Found, *, sha256: str = "", media_text: str = "", refusal: str = "") -> Source:
    return Source(
        item_id=found.item_id,
        kind=SourceKind.RECORDING,
        position=0,
        root=found.root,
        path=found.path,
        size_bytes=found.size_bytes,
        mtime_ns=found.mtime_ns,
        sha256=sha256,
        media=media_from_text(media_text),
        refusal=refusal,
    )


def probed_source(found: Found, result: Probed | InputError) -> Source:
    if isinstance(result, InputError):
        return recording_source(found, refusal=result.message)
    return Source(
        item_id=found.item_id,
        kind=SourceKind.RECORDING,
        position=0,
        root=found.root,
        path=found.path,
        size_bytes=result.size_bytes,
        mtime_ns=result.mtime_ns,
        sha256=result.sha256,
        media=result.media,
    )


def readable_name(name: str) -> tuple[str, str]:
    """A file name as text that can be stored, and why it cannot be used where it is not valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        return shown, "its name is not valid UTF-8; rename it"
    return name, ""
