"""Inputs in an object store: listed page by page, fetched a few ahead of the reader, probed on all cores.

    first listing     which folders are outputs of ours, and whether there are recordings
    second listing    each object that counts, in the order of names
    fetch             into a temporary file, hashed on the way; probed; deleted

A hash of every byte decides what an input is, so each new object is read once; one that has the size and version
that the ledger knows is not read at all. However many there are, memory and temporary space stay within bounds.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

from audiobatch.address import Address, place_of
from audiobatch.audio.probe import (
    ALONE_S,
    is_plain_wav,
    looks_like_audio,
    probe,
    probe_or_refusal,
    result_of,
)
from audiobatch.audio.probe_pool import ProbePool, usable_cores
from audiobatch.errors import ConfigError, InputError, StorageError
from audiobatch.inputs.tables import MAX_PROMPT_CHARACTERS
from audiobatch.storage.listing import Entry
from audiobatch.storage.remote import FsspecStorage
from audiobatch.storage.store_errors import is_passing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from audiobatch.audio.probe import Probed
    from audiobatch.model import Source

#: Fetched and not yet probed: what is larger waits until it is alone.
BYTES_AT_ONCE = 512_000_000
_LONGEST_TEXT_BYTES = 4 * MAX_PROMPT_CHARACTERS


@dataclass(frozen=True, slots=True)
class Survey:
    """What a first listing says of a folder.

    Attributes:
        outputs: folders in it that are outputs of ours, relative to it.
        has_recordings: whether there is a recording outside them that is wanted.
    """

    outputs: frozenset[str]
    has_recordings: bool

    def counts(self, path: str) -> bool:
        """Whether an object is an input at all: not hidden, and in no output of ours."""
        return not any(part.startswith(".") for part in path.split("/")) and not any(
            folder in self.outputs for folder in _folders_of(path)
        )


def survey(storage: FsspecStorage, marker: str, wanted: Callable[[PurePosixPath], bool]) -> Survey:
    """List a folder once.

    Args:
        storage: the folder.
        marker: the name of the file that makes a folder an output of ours.
        wanted: whether a path counts.
    """
    outputs: set[str] = set()
    recordings: set[str] = set()  # folders that hold any
    for entry in storage.entries():
        folder, _, name = entry.path.rpartition("/")
        if name == marker:
            outputs.add(folder)
        elif folder not in recordings and looks_like_audio(name) and wanted(PurePosixPath(entry.path)):
            recordings.add(folder)
    found = Survey(outputs=frozenset(outputs), has_recordings=False)
    return replace(found, has_recordings=any(found.counts(f"{one}/x" if one else "x") for one in recordings))


def _folders_of(path: str) -> Iterator[str]:
    """`a/b/c.wav` → ``, `a`, `a/b`."""
    yield ""
    for place, character in enumerate(path):
        if character == "/":
            yield path[:place]


class Unread(InputError):
    """An object that the store does not hand out; another time it may."""


class Prober:
    """Fetches recordings and probes them; a context manager that ends its processes."""

    def __init__(self) -> None:
        self._room = _Room(BYTES_AT_ONCE)
        self._pool: ProbePool | None = None
        self._opening = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._alone_until = time.monotonic() + ALONE_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def probe(self, storage: FsspecStorage, entry: Entry) -> Probed | InputError:
        """A recording's facts, with its version for a time; or why it is refused. For any thread.

        Raises:
            ConfigError: the store is away: that is no fault of the recording.
        """
        with self._room.taken(entry.size_bytes), tempfile.TemporaryDirectory(prefix="audiobatch-") as folder:
            here = local_copy(Path(folder), entry.path)
            try:
                storage.fetch(entry.path, here, entry)
            except StorageError as failed:
                return refusal_of(failed)
            found = self._probed(here)
        if isinstance(found, InputError):
            return found
        return replace(found, size_bytes=entry.size_bytes, mtime_ns=entry.version)

    def _probed(self, here: Path) -> Probed | InputError:
        if time.monotonic() < self._alone_until and is_plain_wav(here):
            return probe_or_refusal(here)
        with self._opening:
            if self._pool is None:
                self._pool = self._stack.enter_context(ProbePool(usable_cores()))
        return result_of(self._pool.submit(here).result())


def local_copy(folder: Path, path: str) -> Path:
    """Where to copy an object to: its ending tells what its name says it is."""
    return folder / f"recording{PurePosixPath(path).suffix[:12]}"


def refusal_of(failed: StorageError) -> InputError:
    """Why an object cannot be an input.

    Raises:
        ConfigError: the store is away.
    """
    if is_passing(failed):
        raise ConfigError(failed.message) from failed
    return Unread(failed.message)


def fetch_recording(source: Source, folder: Path) -> tuple[Path, Source]:
    """A recording of a store copied into a folder, read once; and the source of just those bytes.

    Raises:
        InputError: it is gone, or is no recording any more.
        StorageError: the store is away.
    """
    root = place_of(source.root)
    assert isinstance(root, Address)
    storage = FsspecStorage(root)
    here = local_copy(folder, source.path)
    try:
        known = Entry(path=source.path, size_bytes=source.size_bytes, version=source.mtime_ns)
        sha256 = storage.fetch(source.path, here, known)
        if sha256 == source.sha256 and source.media is not None:
            return here, source
        now = storage.stat(source.path)
    except StorageError as failed:
        if isinstance(failed.__cause__, FileNotFoundError):
            raise InputError("the file is gone since it was found") from None
        if is_passing(failed):
            raise
        raise InputError(failed.message) from failed
    except OSError as failed:
        raise InputError(f"no room to fetch it in {folder.parent}: {failed.strerror}") from failed
    probed = probe(here)
    changed = replace(source, media=probed.media, sha256=probed.sha256, size_bytes=probed.size_bytes)
    # Changed once more meanwhile: without a time, the next run looks at it again.
    is_current = now is not None and now.size_bytes == probed.size_bytes
    return here, replace(changed, mtime_ns=now.version if now and is_current else 0)


def read_text(storage: FsspecStorage, entry: Entry) -> tuple[str, str]:
    """A prompt's text and, when it cannot be used, why.

    Raises:
        ConfigError: the store is away.
    """
    if entry.size_bytes > _LONGEST_TEXT_BYTES:
        return "", f"the file has {entry.size_bytes:,} bytes: it is no prompt"
    try:
        return storage.read(entry.path).decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        return "", "the file is not UTF-8 text"
    except StorageError as failed:
        return "", refusal_of(failed).message


class _Room:
    """Bytes that may be taken at once; who wants more than there are waits until nobody has any."""

    def __init__(self, size_bytes: int) -> None:
        self._free_bytes = self._size_bytes = size_bytes
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
        share = min(size_bytes, self._size_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._free_bytes >= share)
            self._free_bytes -= share
        try:
            yield
        finally:
            with self._changed:
                self._free_bytes += share
                self._changed.notify_all()
