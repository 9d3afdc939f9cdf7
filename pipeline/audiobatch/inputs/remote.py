"""Inputs in object stores: listed page by page, fetched a few ahead of the reader, probed on all cores.

The rules of discovery are those of local folders. An id is the object's path relative to the root that was given,
whose name is the last part of its address.

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
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Generic, Self, TypeVar

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
from audiobatch.inputs.found import Found, probed_source, unchanged, without_probing
from audiobatch.inputs.tables import MAX_PROMPT_CHARACTERS, TABLE_ENDINGS, lines_of, text_source
from audiobatch.storage.object_stores import Entry, is_passing
from audiobatch.storage.remote import FsspecStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from audiobatch.audio.probe import Probed
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.inputs.found import DiscoveryStats, Known
    from audiobatch.inputs.tables import Ids, Table
    from audiobatch.model import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class _Object:
    """An object that is an input: a recording, or else a prompt."""

    storage: FsspecStorage
    entry: Entry
    item_id: str
    found: Found | None = None


_Fetched = tuple[str, str]


@dataclass(slots=True, kw_only=True)
class RemoteDiscovery:
    """The remote inputs of one discovery, which shares its ids and counts.

    Attributes:
        marker: the name of the file that makes a folder an output of ours.
        wanted: whether `include` and `exclude` let a path through.
        table: makes a table of a name and a root.
    """

    spec: JobSpec
    marker: str
    known: Mapping[str, Known]
    stats: DiscoveryStats
    ids: Ids
    wanted: Callable[[PurePosixPath], bool]
    table: Callable[[str, str], Table]
    _kinds: dict[Address, str] = field(default_factory=dict)

    def is_folder(self, address: Address) -> bool:
        """Whether it is a folder; an object otherwise.

        Raises:
            ConfigError: nothing is there, or nobody can tell.
        """
        if address not in self._kinds:
            try:
                kind = FsspecStorage(address).kind_of_root()
            except StorageError as failed:
                raise ConfigError(failed.message) from failed
            if kind is None:
                raise ConfigError(f"{address}: there is no such file or folder")
            self._kinds[address] = kind
        return self._kinds[address] == "folder"

    def sources(self, given: Iterable[tuple[Address, str]]) -> Iterator[Source]:
        """Every input of these places, in order; each with the prefix that its ids get.

        Raises:
            ConfigError: one is of no known kind, or cannot be read.
        """
        with Prober() as prober:

            def work(one: Source | _Object) -> Probed | InputError | _Fetched:
                assert isinstance(one, _Object)
                if one.found is not None:
                    return prober.probe(one.storage, one.entry)
                return read_text(one.storage, one.entry)

            try:
                for one, result in Ahead(work).results(self._with_need(self._objects(given))):
                    yield self._source(one, result)
            except StorageError as failed:
                raise ConfigError(failed.message) from failed

    def _with_need(self, found: Iterable[Source | _Object]) -> Iterator[tuple[Source | _Object, bool]]:
        for one in found:
            needed = isinstance(one, _Object)
            if isinstance(one, _Object) and one.found is not None:
                needed = unchanged(one.found, self.known) is None
                self.stats.probed += needed
            yield one, needed

    def _source(self, one: Source | _Object, result: Probed | InputError | _Fetched | None) -> Source:
        if not isinstance(one, _Object):
            return one
        if one.found is not None:
            if result is None:
                return without_probing(one.found, self.known)
            assert not isinstance(result, tuple)
            # Without a version, the next run tries again.
            found = replace(one.found, mtime_ns=0) if isinstance(result, Unread) else one.found
            return probed_source(found, result)
        assert isinstance(result, tuple)
        text, refusal = result
        return text_source(
            text,
            ids=self.ids,
            root=str(one.storage.root),
            path=one.entry.path,
            item_id=one.item_id,
            refusal=refusal,
        )

    def _objects(self, given: Iterable[tuple[Address, str]]) -> Iterator[Source | _Object]:
        for address, prefix in given:
            if self.is_folder(address):
                yield from self._folder(address, prefix)
            else:
                yield from self._file(address, prefix)

    def _folder(self, address: Address, prefix: str) -> Iterator[Source | _Object]:
        storage = FsspecStorage(address)
        seen = survey(storage, self.marker, self.wanted)
        if "" in seen.outputs:
            raise ConfigError(f"{address}: is an output folder of audiobatch, not an input")
        for entry in storage.entries():
            path = PurePosixPath(entry.path)
            if not seen.counts(entry.path):
                continue
            if not self.wanted(path):
                self.stats.left_out += 1
            elif seen.has_recordings and looks_like_audio(path.name):
                yield self._recording(storage, entry, prefix)
            elif not seen.has_recordings and path.suffix.lower() == ".txt":
                if self.spec.one_prompt_per_line:
                    yield from self._lines(storage, entry)
                else:
                    yield _Object(storage=storage, entry=entry, item_id=prefix + entry.path)
            else:
                self.stats.other_files += 1

    def _file(self, address: Address, prefix: str) -> Iterator[Source | _Object]:
        storage = FsspecStorage(address.parent)
        entry = storage.stat(address.name)
        if entry is None:
            raise ConfigError(f"{address}: there is no such file or folder")
        ending = address.suffix.lower()
        if ending in TABLE_ENDINGS:
            with _at_hand(storage, entry) as here:
                yield from self.table(entry.path, str(storage.root)).from_file(here)
        elif ending == ".txt" and self.spec.one_prompt_per_line:
            yield from self._lines(storage, entry)
        elif ending == ".txt":
            yield _Object(storage=storage, entry=entry, item_id=prefix + entry.path)
        elif looks_like_audio(entry.path):
            yield self._recording(storage, entry, prefix)
        else:
            raise ConfigError(
                f"{address}: of no known kind. Inputs are folders, recordings (.wav, .mp3, …), .txt prompts, "
                f"and tables ({' '.join(TABLE_ENDINGS)})"
            )

    def _recording(self, storage: FsspecStorage, entry: Entry, prefix: str) -> _Object:
        item_id = self.ids.unique(prefix + entry.path)
        found = Found(
            item_id=item_id,
            root=str(storage.root),
            path=entry.path,
            size_bytes=entry.size_bytes,
            mtime_ns=entry.version,
        )
        return _Object(storage=storage, entry=entry, item_id=item_id, found=found)

    def _lines(self, storage: FsspecStorage, entry: Entry) -> Iterator[Source]:
        with _at_hand(storage, entry) as here:
            yield from lines_of(
                here, root=str(storage.root), ids=self.ids, name=PurePosixPath(entry.path).name
            )


@contextlib.contextmanager
def _at_hand(storage: FsspecStorage, entry: Entry) -> Iterator[Path]:
    """A copy of a table or a text for the block; errors name the object, not the copy."""
    with tempfile.TemporaryDirectory(prefix="audiobatch-") as folder:
        here = local_copy(Path(folder), entry.path)
        try:
            storage.fetch(entry.path, here, entry)
        except StorageError as failed:
            raise ConfigError(failed.message) from failed
        try:
            yield here
        except ConfigError as refused:
            raise ConfigError(refused.message.replace(str(here), str(storage.root / entry.path))) from refused


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


_T = TypeVar("_T")
_R = TypeVar("_R")
#: A store answers one request in some milliseconds, and many at once in hardly more.
AT_ONCE = 16
#: Items that nothing is done to wait behind one that is worked on; no more than these.
_MOST_WAITING = 1000


class Ahead(Generic[_T, _R]):
    """Works in threads. What the work raises, the reader gets in that item's turn."""

    def __init__(self, work: Callable[[_T], _R], *, at_once: int = AT_ONCE) -> None:
        self._work = work
        self._at_once = at_once

    def results(self, items: Iterable[tuple[_T, bool]]) -> Iterator[tuple[_T, _R | None]]:
        """Each item with its result, in order; with None where its flag is false: nothing is to be done."""
        waiting: deque[tuple[_T, Future[_R] | None]] = deque()
        source = iter(items)
        busy = 0
        more = True

        def full() -> bool:
            return busy >= 2 * self._at_once or len(waiting) >= _MOST_WAITING

        with ThreadPoolExecutor(self._at_once, thread_name_prefix="fetch") as threads:
            try:
                while more or waiting:
                    while more and not full():
                        drawn = next(source, None)
                        if drawn is None:
                            more = False
                            break
                        item, needed = drawn
                        if not needed and not waiting:
                            yield item, None
                            continue
                        waiting.append((item, threads.submit(self._work, item) if needed else None))
                        busy += needed
                    while waiting and (waiting[0][1] is None or full() or not more):
                        item, future = waiting.popleft()
                        yield item, None if future is None else future.result()
                        busy -= future is not None
            finally:
                for _, future in waiting:
                    if future is not None:
                        future.cancel()
