"""Discover inputs in object stores: list page by page, fetch a few ahead of the reader, probe on all cores.

The rules are those of local folders. An id is the object's path relative to the given root, whose name is the last
part of its address.

    first listing     which folders are outputs of audiobatch, and whether there are recordings
    second listing    each object that is an input, in the order of names
    fetch             into a temporary file, hashed on the way; probed; deleted

The hash of all its bytes identifies an input, so that each new object is read once; an object with the size and
version that the ledger has is not read at all. Memory and temporary space are bounded, whatever the number of
objects.
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

from audiobatch.address import Address, parse_location
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
from audiobatch.inputs.recording_files import (
    RecordingFile,
    if_unchanged,
    probed_source,
    source_without_probing,
)
from audiobatch.inputs.tables import MAX_PROMPT_CHARACTERS, TABLE_ENDINGS, lines_of, text_source
from audiobatch.storage.object_stores import Entry, is_passing
from audiobatch.storage.remote import FsspecStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from audiobatch.audio.probe import Probed
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.inputs.recording_files import DiscoveryStats, KnownFile
    from audiobatch.inputs.tables import ItemIds, PromptTable
    from audiobatch.model import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class _Object:
    """An object that is an input: a recording if it has a `file`, else a prompt."""

    storage: FsspecStorage
    entry: Entry
    item_id: str
    file: RecordingFile | None = None


#: A prompt's text, and a refusal where it cannot be used.
_TextOrRefusal = tuple[str, str]


@dataclass(slots=True, kw_only=True)
class RemoteDiscovery:
    """Finds the remote inputs of a `Discovery`, with its ids and counts.

    Attributes:
        marker: the file name that identifies an output folder of audiobatch.
        wanted: whether `include` and `exclude` accept a path.
        table: creates a table from a name and a root.
    """

    spec: JobSpec
    marker: str
    known: Mapping[str, KnownFile]
    stats: DiscoveryStats
    ids: ItemIds
    wanted: Callable[[PurePosixPath], bool]
    table: Callable[[str, str], PromptTable]
    _kinds: dict[Address, str] = field(default_factory=dict)

    def is_folder(self, address: Address) -> bool:
        """Whether an address is a folder, and not an object.

        Raises:
            ConfigError: there is neither, or the store cannot be read.
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
        """Yield every input, in order.

        Args:
            given: the addresses, each with the prefix of its ids.

        Raises:
            ConfigError: an address is not an input, or cannot be read.
        """
        with Prober() as prober:

            def fetch(item: Source | _Object) -> Probed | InputError | _TextOrRefusal:
                assert isinstance(item, _Object)
                if item.file is not None:
                    return prober.probe(item.storage, item.entry)
                return read_text(item.storage, item.entry)

            try:
                for item, result in PrefetchingMap(fetch).results(self._with_need(self._objects(given))):
                    yield self._source(item, result)
            except StorageError as failed:
                raise ConfigError(failed.message) from failed

    def _with_need(self, items: Iterable[Source | _Object]) -> Iterator[tuple[Source | _Object, bool]]:
        """Yield each item, and whether it must be fetched."""
        for item in items:
            needed = isinstance(item, _Object)
            if isinstance(item, _Object) and item.file is not None:
                needed = if_unchanged(item.file, self.known) is None
                self.stats.probed += needed
            yield item, needed

    def _source(self, item: Source | _Object, result: Probed | InputError | _TextOrRefusal | None) -> Source:
        if not isinstance(item, _Object):
            return item
        if item.file is not None:
            if result is None:
                return source_without_probing(item.file, self.known)
            assert not isinstance(result, tuple)
            # Without a version, the next run tries again.
            file = replace(item.file, mtime_ns=0) if isinstance(result, UnreadableObject) else item.file
            return probed_source(file, result)
        assert isinstance(result, tuple)
        text, refusal = result
        return text_source(
            text,
            ids=self.ids,
            root=str(item.storage.root),
            path=item.entry.path,
            item_id=item.item_id,
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
        listing = list_folder(storage, self.marker, self.wanted)
        if "" in listing.outputs:
            raise ConfigError(f"{address}: is an output folder of audiobatch, not an input")
        for entry in storage.entries():
            path = PurePosixPath(entry.path)
            if not listing.is_input(entry.path):
                continue
            if not self.wanted(path):
                self.stats.left_out += 1
            elif listing.has_recordings and looks_like_audio(path.name):
                yield self._recording(storage, entry, prefix)
            elif not listing.has_recordings and path.suffix.lower() == ".txt":
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
            with _downloaded(storage, entry) as copy:
                yield from self.table(entry.path, str(storage.root)).from_file(copy)
        elif ending == ".txt" and self.spec.one_prompt_per_line:
            yield from self._lines(storage, entry)
        elif ending == ".txt":
            yield _Object(storage=storage, entry=entry, item_id=prefix + entry.path)
        elif looks_like_audio(entry.path):
            yield self._recording(storage, entry, prefix)
        else:
            raise ConfigError(
                f"{address}: is not an input. Inputs are folders, recordings (.wav, .mp3, …), .txt prompts, "
                f"and tables ({' '.join(TABLE_ENDINGS)})"
            )

    def _recording(self, storage: FsspecStorage, entry: Entry, prefix: str) -> _Object:
        item_id = self.ids.unique(prefix + entry.path)
        file = RecordingFile(
            item_id=item_id,
            root=str(storage.root),
            path=entry.path,
            size_bytes=entry.size_bytes,
            mtime_ns=entry.version,
        )
        return _Object(storage=storage, entry=entry, item_id=item_id, file=file)

    def _lines(self, storage: FsspecStorage, entry: Entry) -> Iterator[Source]:
        with _downloaded(storage, entry) as copy:
            yield from lines_of(
                copy, root=str(storage.root), ids=self.ids, name=PurePosixPath(entry.path).name
            )


@contextlib.contextmanager
def _downloaded(storage: FsspecStorage, entry: Entry) -> Iterator[Path]:
    """Download a table or a text for the block; errors name the object, not the copy."""
    with tempfile.TemporaryDirectory(prefix="audiobatch-") as folder:
        copy = copy_path(Path(folder), entry.path)
        try:
            storage.fetch(entry.path, copy, entry)
        except StorageError as failed:
            raise ConfigError(failed.message) from failed
        try:
            yield copy
        except ConfigError as refused:
            raise ConfigError(refused.message.replace(str(copy), str(storage.root / entry.path))) from refused


#: Bytes that are fetched and not yet probed; a larger object waits until it is the only one.
MAX_BYTES_FETCHED = 512_000_000
_LONGEST_TEXT_BYTES = 4 * MAX_PROMPT_CHARACTERS


@dataclass(frozen=True, slots=True)
class FolderListing:
    """The result of a folder's first listing.

    Attributes:
        outputs: output folders of audiobatch in it, relative to it.
        has_recordings: whether there is a wanted recording outside them.
    """

    outputs: frozenset[str]
    has_recordings: bool

    def is_input(self, path: str) -> bool:
        """Whether an object can be an input: not hidden, and in no output folder of audiobatch."""
        return not any(part.startswith(".") for part in path.split("/")) and not any(
            folder in self.outputs for folder in _folders_of(path)
        )


def list_folder(
    storage: FsspecStorage, marker: str, wanted: Callable[[PurePosixPath], bool]
) -> FolderListing:
    """List a folder.

    Args:
        storage: the folder.
        marker: the file name that identifies an output folder of audiobatch.
        wanted: whether `include` and `exclude` accept a path.
    """
    outputs: set[str] = set()
    with_recordings: set[str] = set()
    for entry in storage.entries():
        folder, _, name = entry.path.rpartition("/")
        if name == marker:
            outputs.add(folder)
        elif folder not in with_recordings and looks_like_audio(name) and wanted(PurePosixPath(entry.path)):
            with_recordings.add(folder)
    listing = FolderListing(outputs=frozenset(outputs), has_recordings=False)
    has_recordings = any(listing.is_input(f"{folder}/x" if folder else "x") for folder in with_recordings)
    return replace(listing, has_recordings=has_recordings)


def _folders_of(path: str) -> Iterator[str]:
    """Yield the folders above a path: `a/b/c.wav` → ``, `a`, `a/b`."""
    yield ""
    for index, character in enumerate(path):
        if character == "/":
            yield path[:index]


class UnreadableObject(InputError):
    """An object that could not be read this time."""


class Prober:
    """Fetches recordings and probes them; a context manager that ends its processes."""

    def __init__(self) -> None:
        """Start no process yet: a few plain recordings are probed faster without."""
        self._budget = _ByteBudget(MAX_BYTES_FETCHED)
        self._pool: ProbePool | None = None
        self._pool_lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._alone_until = time.monotonic() + ALONE_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def probe(self, storage: FsspecStorage, entry: Entry) -> Probed | InputError:
        """Fetch and probe a recording; may be called from any thread.

        Returns:
            What was measured, with the object's version as its time; or why the recording is refused.

        Raises:
            ConfigError: the store cannot be reached, which is no fault of the recording.
        """
        with (
            self._budget.reserve(entry.size_bytes),
            tempfile.TemporaryDirectory(prefix="audiobatch-") as folder,
        ):
            copy = copy_path(Path(folder), entry.path)
            try:
                storage.fetch(entry.path, copy, entry)
            except StorageError as failed:
                return refusal_from(failed)
            result = self._probed(copy)
        if isinstance(result, InputError):
            return result
        return replace(result, size_bytes=entry.size_bytes, mtime_ns=entry.version)

    def _probed(self, copy: Path) -> Probed | InputError:
        if time.monotonic() < self._alone_until and is_plain_wav(copy):
            return probe_or_refusal(copy)
        with self._pool_lock:
            if self._pool is None:
                self._pool = self._stack.enter_context(ProbePool(usable_cores()))
        return result_of(self._pool.submit(copy).result())


def copy_path(folder: Path, path: str) -> Path:
    """Return the path for a copy of an object, with the object's suffix."""
    return folder / f"recording{PurePosixPath(path).suffix[:12]}"


def refusal_from(failed: StorageError) -> InputError:
    """Return why an object cannot be an input.

    Raises:
        ConfigError: the store cannot be reached.
    """
    if is_passing(failed):
        raise ConfigError(failed.message) from failed
    return UnreadableObject(failed.message)


def fetch_recording(source: Source, folder: Path) -> tuple[Path, Source]:
    """Download a recording into a folder.

    Returns:
        The copy, and the source of exactly its bytes.

    Raises:
        InputError: the object was deleted, or is no longer a recording.
        StorageError: the store cannot be reached.
    """
    root = parse_location(source.root)
    assert isinstance(root, Address)
    storage = FsspecStorage(root)
    copy = copy_path(folder, source.path)
    try:
        known = Entry(path=source.path, size_bytes=source.size_bytes, version=source.mtime_ns)
        sha256 = storage.fetch(source.path, copy, known)
        if sha256 == source.sha256 and source.media is not None:
            return copy, source
        now = storage.stat(source.path)
    except StorageError as failed:
        if isinstance(failed.__cause__, FileNotFoundError):
            raise InputError("the file is gone: it was moved or deleted after it was found") from None
        if is_passing(failed):
            raise
        raise InputError(failed.message) from failed
    except OSError as failed:
        raise InputError(f"it cannot be fetched into {folder.parent}: {failed.strerror}") from failed
    probed = probe(copy)
    changed = replace(source, media=probed.media, sha256=probed.sha256, size_bytes=probed.size_bytes)
    # If it changed again meanwhile, it has no time, so that the next run probes it again.
    is_current = now is not None and now.size_bytes == probed.size_bytes
    return copy, replace(changed, mtime_ns=now.version if now and is_current else 0)


def read_text(storage: FsspecStorage, entry: Entry) -> tuple[str, str]:
    """Return a prompt's text, and a refusal where it cannot be used.

    Raises:
        ConfigError: the store cannot be reached.
    """
    if entry.size_bytes > _LONGEST_TEXT_BYTES:
        return "", f"the file has {entry.size_bytes:,} bytes: it is not a prompt"
    try:
        return storage.read(entry.path).decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        return "", "the file is not UTF-8 text"
    except StorageError as failed:
        return "", refusal_from(failed).message


class _ByteBudget:
    """A number of bytes that threads share; a request for more than all of them waits until none is in use."""

    def __init__(self, size_bytes: int) -> None:
        self._free_bytes = self._size_bytes = size_bytes
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Hold so many bytes for the block; wait until they are free."""
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
#: A store answers many requests at once hardly more slowly than one.
THREADS = 16
#: Items that wait for an earlier one, at most.
_MAX_WAITING = 1000


class PrefetchingMap(Generic[_T, _R]):
    """Applies a function in threads, ahead of the reader, who gets results and exceptions in the items' order."""

    def __init__(self, work: Callable[[_T], _R], *, threads: int = THREADS) -> None:
        """Apply `work` in so many threads."""
        self._work = work
        self._threads = threads

    def results(self, items: Iterable[tuple[_T, bool]]) -> Iterator[tuple[_T, _R | None]]:
        """Yield each item with its result, in order.

        Args:
            items: each with a flag; where it is false, the function is not applied and the result is None.
        """
        waiting: deque[tuple[_T, Future[_R] | None]] = deque()
        source = iter(items)
        busy = 0
        more = True

        def full() -> bool:
            return busy >= 2 * self._threads or len(waiting) >= _MAX_WAITING

        with ThreadPoolExecutor(self._threads, thread_name_prefix="fetch") as executor:
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
                        waiting.append((item, executor.submit(self._work, item) if needed else None))
                        busy += needed
                    while waiting and (waiting[0][1] is None or full() or not more):
                        item, future = waiting.popleft()
                        yield item, None if future is None else future.result()
                        busy -= future is not None
            finally:
                for _, future in waiting:
                    if future is not None:
                        future.cancel()
