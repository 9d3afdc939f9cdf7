"""The output in an object store: every object whole or not at all, and what is there replaced only knowingly.

    bytes → one put, on condition that nothing is there → the store's own hash of them compared

A put that breaks off leaves nothing, so there are no temporary objects to sweep. What fails for a reason that
passes (throttled, cut off) is tried again (`object_stores`); a put that is tried again finds its own bytes there
and is content. Other bytes in the way of a result that nobody meant to replace are kept under
`versions/unrecorded/` first.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal, TypeVar

from audiobatch.errors import ConfigError, StorageError
from audiobatch.model import SavedFile
from audiobatch.storage.atomic_file import TEMPORARY_PREFIX
from audiobatch.storage.object_stores import (
    Entry,
    RetryingFilesystem,
    filesystem_of,
    is_unknown_there,
    listed,
    store_error,
    version_of,
)
from audiobatch.storage.versions import UNRECORDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from audiobatch.address import Address

log = logging.getLogger(__name__)

_T = TypeVar("_T")
#: Bytes asked for at a time: what is larger is read in pieces.
PIECE_BYTES: Final = 8 << 20
_PUTS_AT_ONCE: Final = 32
_FORBIDDEN: Final = frozenset("\\:\0")


class FsspecStorage:
    """A prefix of a container or bucket. Implements `Storage`; every method may be called from any thread."""

    def __init__(self, root: Address, *, patience_s: float | None = None) -> None:
        """Raises: ConfigError: there is no way to that store from here."""
        self.root = root
        self._files = filesystem_of(root)
        self._again = RetryingFilesystem(self._files, patience_s)
        self._puts = ThreadPoolExecutor(_PUTS_AT_ONCE, thread_name_prefix="put")

    # What is written.

    def write(self, path: str, data: bytes | memoryview | Iterable[bytes]) -> SavedFile:
        """Replaces what is there. Raises: StorageError: the object is as it was, or whole."""
        if isinstance(data, bytes | bytearray | memoryview):
            return self._put(path, bytes(data))
        digest = hashlib.sha256()
        with self.open_binary_atomic(path) as scratch:
            for chunk in data:
                digest.update(chunk)
                scratch.write(chunk)
            size_bytes = scratch.tell()
        return SavedFile(path=path, size_bytes=size_bytes, sha256=digest.hexdigest())

    def write_many(
        self,
        files: Sequence[tuple[str, bytes]],
        *,
        replacing: bool = True,
        check_lease: Callable[[], None] = lambda: None,
    ) -> list[SavedFile]:
        """A reply's files, at once.

        Args:
            replacing: what lies there may go; else each is put on condition that nothing is there.
            check_lease: raises where another run has claimed the item; called before an object that is in the way
                is set aside, since it may be that run's result.

        Raises:
            StorageError: nothing may be taken as written; each object is its old or its new self.
        """
        put = self._put if replacing else partial(self._put_new, check_lease=check_lease)
        if len(files) == 1:
            return [put(*files[0])]
        waiting = [self._puts.submit(put, path, data) for path, data in files]
        failed = [write.exception() for write in waiting]
        if first := next((error for error in failed if error is not None), None):
            raise first
        return [write.result() for write in waiting]

    @contextmanager
    def open_text_atomic(self, path: str, *, encoding: str = "utf-8", newline: str = "") -> Iterator[IO[str]]:
        """A text to stream into, through a temporary file here; it is put when the block ends well.

        Raises:
            StorageError: the object is as it was.
        """
        with self.open_binary_atomic(path) as stream:
            text = io.TextIOWrapper(stream, encoding=encoding, newline=newline)
            yield text
            text.flush()
            text.detach()

    @contextmanager
    def open_binary_atomic(self, path: str) -> Iterator[IO[bytes]]:
        """As `open_text_atomic`, for bytes."""
        self._key(path)
        with tempfile.TemporaryDirectory(prefix="audiobatch-") as folder:
            scratch = Path(folder, "object")
            with scratch.open("wb") as stream:
                yield stream
            self.write_file(path, scratch)

    def write_file(self, path: str, source: Path) -> None:
        """Put a local file, streamed. Raises: StorageError: the object is as it was."""
        size_bytes = source.stat().st_size
        if size_bytes <= PIECE_BYTES:
            self._put(path, source.read_bytes())
            return
        key = self._key(path)
        self._asked(path, "write", lambda: self._files.put_file(str(source), key))
        if self.size(path) != size_bytes:
            raise StorageError(f"cannot write {self.root / path}: not all of it arrived")

    # What is read.

    def read(self, path: str) -> bytes:
        """Raises: StorageError: not there, or not readable."""
        key = self._key(path)
        return self._asked(path, "read", lambda: self._get(key))

    def exists(self, path: str) -> bool:
        """Return whether there is such an object."""
        return self.stat(path) is not None

    def size(self, path: str) -> int:
        """Bytes. Raises: StorageError: not there."""
        return self._there(path).size_bytes

    def sha256(self, path: str) -> str:
        """Of the object as it is now, read in pieces. Raises: StorageError: not there, or changed meanwhile."""
        digest = hashlib.sha256()
        for piece in self.pieces(path):
            digest.update(piece)
        return digest.hexdigest()

    def pieces(self, path: str, known: Entry | None = None) -> Iterator[bytes]:
        """The object's bytes, some at a time; all of one version of it.

        Args:
            path: the object.
            known: as it was listed: a small one then takes a single request.

        Raises:
            StorageError: not there, not readable, or replaced while it was read.
        """
        key = self._key(path)
        if known is not None and known.size_bytes <= PIECE_BYTES:
            yield self.read(path)
            return
        found = self._there(path)
        for start in range(0, found.size_bytes, PIECE_BYTES):
            end = min(start + PIECE_BYTES, found.size_bytes)
            piece = self._asked(path, "read", partial(self._get, key, start, end))
            if len(piece) != end - start:
                raise StorageError(f"cannot read {self.root / path}: it changed while it was read")
            yield piece
        if found.size_bytes > PIECE_BYTES and self.stat(path) != found:
            raise StorageError(f"cannot read {self.root / path}: it changed while it was read")

    def fetch(self, path: str, target: Path, known: Entry | None = None) -> str:
        """Copy an object to a local file, reading it once; the SHA-256 of just those bytes.

        Raises:
            StorageError: as `pieces`.
            OSError: the local file cannot be written.
        """
        digest = hashlib.sha256()
        with target.open("wb") as file:
            for piece in self.pieces(path, known):
                digest.update(piece)
                file.write(piece)
        return digest.hexdigest()

    def stat(self, path: str) -> Entry | None:
        """Size and version; None where there is no such object. Raises: StorageError: nobody can tell."""
        key = self._key(path)
        try:
            info = self._again(lambda: self._files.info(key))
        except FileNotFoundError:
            return None
        except Exception as failed:
            raise store_error(failed, self.root / path, verb="read") from failed
        if info.get("type") != "file":
            return None
        return Entry(path=path, size_bytes=int(info["size"]), version=version_of(info))

    def entries(self, folder: str = "") -> Iterator[Entry]:
        """Every object below a folder, page by page, in the order of their names; paths relative to the root.

        Raises:
            StorageError: it cannot be listed.
        """
        prefix = self.root / folder if folder else self.root
        try:
            for entry in listed(self._files, prefix, self._again):
                path = f"{folder}/{entry.path}" if folder else entry.path
                yield Entry(path=path, size_bytes=entry.size_bytes, version=entry.version)
        except FileNotFoundError:
            return
        except StorageError:
            raise
        except Exception as failed:
            raise store_error(failed, prefix, verb="list") from failed

    def walk(self, folder: str = "") -> Iterator[str]:
        """The paths of `entries`."""
        return (entry.path for entry in self.entries(folder))

    # What goes.

    def delete(self, path: str) -> None:
        """Gone when it returns; also when it was not there. Raises: StorageError: it may still be there."""
        key = self._key(path)
        try:
            self._again(lambda: self._files.rm_file(key))
        except FileNotFoundError:
            return
        except Exception as failed:
            raise store_error(failed, self.root / path, verb="delete") from failed

    def move(self, source: str, target: str) -> None:
        """Copies, then deletes; never over an existing object.

        Raises:
            StorageError: `source` is as it was.
        """
        self._key(target)
        if self.exists(target):
            raise StorageError(f"cannot move {self.root / source}: {target} exists already")
        if not self.exists(source):
            raise StorageError(f"cannot move {self.root / source}: it is not there")
        self._put_new(target, self.read(source))
        self.delete(source)

    def prune(self, folder: str) -> None:
        """Nothing to do: a store has no folders of its own."""

    def sweep_temporary(self, *, older_than_s: float = 0.0) -> int:
        """Only the probe of a run that was killed while it looked whether it can write."""
        if self.stat(_PROBE) is None:
            return 0
        self.delete(_PROBE)
        return 1

    def free_bytes(self) -> int | None:
        """None: a store does not say."""
        return None

    def probe_writable(self) -> None:
        """Puts and deletes a small object.

        Raises:
            ConfigError: no such container, or it cannot be written; nothing was sent yet.
        """
        try:
            self.write(_PROBE, bytes(16))
            self.delete(_PROBE)
        except StorageError as exc:
            raise ConfigError(f"the output cannot be used: {exc.message}") from exc

    def refuse_file(self) -> None:
        """Raises: ConfigError: the root is an object itself."""
        try:
            kind = self.kind_of_root()
        except StorageError as failed:
            raise ConfigError(f"the output cannot be used: {failed.message}") from failed
        if kind == "file":
            raise ConfigError(f"--output {self.root} is a file; name a folder, or a new one")

    def kind_of_root(self) -> Literal["file", "folder"] | None:
        """What the address names; None: nothing is there. Raises: StorageError: nobody can tell."""
        try:
            info = self._again(lambda: self._files.info(self.root.path))
        except FileNotFoundError:
            return None
        except Exception as failed:
            raise store_error(failed, self.root, verb="read") from failed
        return "file" if info.get("type") == "file" else "folder"

    # How.

    def _put(self, path: str, data: bytes) -> SavedFile:
        key = self._key(path)
        answer = self._asked(path, "write", lambda: self._files.pipe_file(key, data))
        return self._arrived(path, data, answer)

    def _put_new(self, path: str, data: bytes, check_lease: Callable[[], None] = lambda: None) -> SavedFile:
        key = self._key(path)
        try:
            answer = self._again(lambda: self._files.pipe_file(key, data, mode="create"))
        except FileExistsError:
            return self._in_the_way(path, data, check_lease)
        except Exception as failed:
            if not is_unknown_there(failed):
                raise store_error(failed, self.root / path) from failed
            # Some servers that speak like S3 know no conditions.
            return self._in_the_way(path, data, check_lease) if self.exists(path) else self._put(path, data)
        return self._arrived(path, data, answer)

    def _in_the_way(self, path: str, data: bytes, check_lease: Callable[[], None]) -> SavedFile:
        """An object is there: ours, whose answer was lost; or one that no record speaks of."""
        there = self.read(path)
        if there == data:
            return _saved(path, data)
        check_lease()
        kept = f"{UNRECORDED}/{path}"
        log.warning("%s was there already and is not on record; it is kept as %s", path, kept)
        self._put(kept, there)
        return self._put(path, data)

    def _arrived(self, path: str, data: bytes, answer: object) -> SavedFile:
        """See that the store has just these bytes, by its own hash or else by the size.

        Raises:
            StorageError: it has others.
        """
        theirs = _md5_of(answer)
        if theirs is not None:
            whole = theirs == hashlib.md5(data, usedforsecurity=False).hexdigest()
        else:
            whole = self.size(path) == len(data)
        if not whole:
            raise StorageError(f"cannot write {self.root / path}: what arrived is not what was sent")
        return _saved(path, data)

    def _get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        # One connection an object; s3fs would otherwise ask for its size first.
        single = {"max_concurrency": 1} if self.root.protocol in {"az", "s3"} else {}
        found: bytes = self._files.cat_file(key, start=start, end=end, **single)
        return found

    def _there(self, path: str) -> Entry:
        found = self.stat(path)
        if found is None:
            raise StorageError(f"cannot read {self.root / path}: it is not there")
        return found

    def _asked(self, path: str, verb: str, call: Callable[[], _T]) -> _T:
        try:
            return self._again(call)
        except Exception as failed:
            raise store_error(failed, self.root / path, verb=verb) from failed

    def _key(self, path: str) -> str:
        """Raises: StorageError: it would leave the root."""
        parts = path.split("/")
        if any(part in {"", ".", ".."} or not _FORBIDDEN.isdisjoint(part) for part in parts):
            raise StorageError(f"refused: {path!r} is not a path inside {self.root}")
        return f"{self.root.path}/{path}"


_PROBE: Final = TEMPORARY_PREFIX + "probe"


def _saved(path: str, data: bytes) -> SavedFile:
    return SavedFile(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _md5_of(answer: object) -> str | None:
    """The MD5 that a store gives back for a put; None where it gives none."""
    if not isinstance(answer, dict):
        return None
    if isinstance(md5 := answer.get("content_md5"), bytes | bytearray):
        return md5.hex()
    tag = str(answer.get("ETag", "")).strip('"')
    # Of objects encrypted with a key of the user's, and of those put in parts, the tag is no hash of the bytes.
    encrypted = answer.get("SSEKMSKeyId") or answer.get("SSECustomerAlgorithm")
    return tag if len(tag) == 32 and not encrypted else None
