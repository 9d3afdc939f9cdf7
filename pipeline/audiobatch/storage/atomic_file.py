"""Writes files that survive a kill and a power cut, and explains why a write failed.

A new file is durable when, in this order: its bytes are flushed, it has its name, the folder that holds the
name is flushed. Flushing the folder alone is not enough, and neither is flushing the file alone.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from audiobatch.errors import StorageError

if sys.platform == "darwin":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _typeshed import ReadableBuffer

#: A leading dot and our own word: no output name begins so, and a sweep can tell them from everything else.
TEMPORARY_PREFIX: Final = ".audiobatch-tmp-"

#: A reply that is paid for waits so long for a descriptor.
OPENING_S: Final = 120.0
_LOOK_S: Final = 0.05
_TOO_MANY: Final = frozenset({errno.EMFILE, errno.ENFILE})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_STREAM_BUFFER_BYTES: Final = 1 << 20
_CREATE: Final = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)
_AGAIN: Final = "then run the same command again: nothing that is recorded is lost or bought twice."
_FILE_IN_THE_WAY: Final = "a file is in the way, where a folder is needed"
#: What happened, and what to do.
_MESSAGES: Final = {
    errno.ENOSPC: ("no space is left on the disk", "Free some space, or name another --output, " + _AGAIN),
    errno.EDQUOT: ("the disk quota is used up", "Free some space, or name another --output, " + _AGAIN),
    errno.EROFS: ("the file system is read-only", "Mount it writable, or name another --output, " + _AGAIN),
    errno.EACCES: (
        "permission is missing",
        "Allow writing there, close programs that hold the file, " + _AGAIN,
    ),
    errno.EPERM: (
        "permission is missing",
        "Allow writing there, close programs that hold the file, " + _AGAIN,
    ),
    errno.ENOENT: (
        "it is not there",
        "If the folder was moved or its disk unmounted, bring it back, " + _AGAIN,
    ),
    errno.EIO: ("the disk reports an error", "Check the disk, or name another --output, " + _AGAIN),
    errno.EISDIR: ("a folder has that name", "Move the folder away, " + _AGAIN),
    errno.ENOTDIR: (_FILE_IN_THE_WAY, "Move that file away, or name another --output, " + _AGAIN),
    errno.EEXIST: (_FILE_IN_THE_WAY, "Move that file away, or name another --output, " + _AGAIN),
    errno.EMFILE: ("this process has too many files open", "Raise `ulimit -n`, " + _AGAIN),
    errno.ENFILE: ("the machine has too many files open", "End what holds them, " + _AGAIN),
    errno.ENAMETOOLONG: (
        "the path is too long for this system",
        "Name an --output with a shorter path, " + _AGAIN,
    ),
}


def storage_error(exc: OSError, path: str, *, verb: str = "write") -> StorageError:
    """Say what happened, to which file, and what to do. Permanent: waiting does not help."""
    what, advice = _MESSAGES.get(
        exc.errno or 0, (exc.strerror or type(exc).__name__, "Mend that, or name another --output, " + _AGAIN)
    )
    if what == _FILE_IN_THE_WAY and (file := file_in_the_way(Path(path).parent)):
        what = f"{file} is a file, where a folder is needed"
    return StorageError(f"cannot {verb} {path}: {what}. {advice}")


def file_in_the_way(folder: Path) -> Path | None:
    """Return the file that keeps `folder` from being made: at its path, or above; None if there is none."""
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            return None if os.path.isdir(path) else path  # noqa: PTH112 - raises nothing
    return None


def is_full(failed: StorageError) -> bool:
    """Return whether a write failed because the disk is full: others may free space, or have just done so."""
    return isinstance(failed.__cause__, OSError) and failed.__cause__.errno in _FULL


def open_patiently(path: Path, flags: int, mode: int = 0o777) -> int:
    """Call `os.open`; wait while this process, or the machine, has too many files open.

    What is written has been paid for, and calls that end close what they hold. Blocks for `OPENING_S` at most.

    Raises:
        OSError: as `os.open`.
    """
    ends_s = time.monotonic() + OPENING_S
    while True:
        try:
            return os.open(path, flags, mode)
        except OSError as failed:
            if failed.errno not in _TOO_MANY or time.monotonic() > ends_s:
                raise
            time.sleep(_LOOK_S)


@contextmanager
def translating(path: str, *, verb: str = "write") -> Iterator[None]:
    """Turns the system's errors of its block into StorageError.

    Raises:
        StorageError: for every OSError of the block.
    """
    try:
        yield
    except OSError as exc:
        raise storage_error(exc, path, verb=verb) from exc


class NewFile:
    """A file on its way: a temporary one beside its target, until `rename` gives it the target's name.

    Raises:
        OSError: the temporary file cannot be made. It never is one that was there before, nor a link.
    """

    __slots__ = ("_descriptor", "_shown", "_stream", "target", "temporary")

    def __init__(self, target: Path, *, mode: int = 0o666) -> None:
        self.target = target
        self.temporary = target.with_name(TEMPORARY_PREFIX + secrets.token_hex(8))
        self._shown = str(target)
        self._stream: IO[bytes] | None = None
        self._descriptor = open_patiently(self.temporary, _CREATE, mode)

    def pour(self, data: bytes | memoryview | Iterable[bytes]) -> tuple[int, str]:
        """Writes all of `data`, flushes it to the disk and closes; its length in bytes and its SHA-256.

        An error that `data` raises while it is iterated passes as it is: it is not the disk's.

        Raises:
            StorageError: not all of it could be written.
        """
        digest = hashlib.sha256()
        size_bytes = 0
        for chunk in (data,) if isinstance(data, bytes | bytearray | memoryview) else data:
            view = memoryview(chunk).cast("B")
            digest.update(view)  # lets other threads run, from 2 KiB on
            size_bytes += len(view)
            with translating(self._shown):
                while view:
                    view = view[os.write(self._descriptor, view) :]
        with translating(self._shown):
            sync_file(self._descriptor)
            written_bytes = os.fstat(self._descriptor).st_size
            self._close()
        if written_bytes != size_bytes:
            raise StorageError(
                f"cannot write {self._shown}: {written_bytes} of {size_bytes} bytes arrived. Check the disk."
            )
        return size_bytes, digest.hexdigest()

    def stream(self) -> IO[bytes]:
        """To write into by pieces; its `write` raises StorageError. End with `finish`."""
        self._stream = io.BufferedWriter(_Translated(self._descriptor, self._shown), _STREAM_BUFFER_BYTES)
        return self._stream

    def finish(self) -> None:
        """Flushes the stream to the disk and closes it. Raises: StorageError."""
        if self._stream is not None:
            self._stream.flush()
            with translating(self._shown):
                sync_file(self._descriptor)
                self._close()

    def rename(self) -> None:
        """Raises: StorageError: the target is what it was."""
        with translating(self._shown):
            self.temporary.replace(self.target)

    def discard(self) -> None:
        """Nothing is left of it; after `rename` it changes nothing."""
        with suppress(OSError, StorageError):  # the write that failed has been reported
            self._close()
        with suppress(OSError):
            self.temporary.unlink()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if self._stream is not None:
            self._stream.close()  # also where its last flush fails
        elif descriptor >= 0:
            os.close(descriptor)


class _Translated(io.FileIO):
    """A file whose `write` raises StorageError, so that an OSError of the caller's own stays its own."""

    def __init__(self, descriptor: int, shown: str) -> None:
        super().__init__(descriptor, "wb")
        self._shown = shown

    def write(self, data: ReadableBuffer, /) -> int:
        with translating(self._shown):
            return super().write(data)


def sync_file(descriptor: int) -> None:
    """Flush a file to the disk itself."""
    if sys.platform == "darwin":
        # fsync leaves the bytes in the drive's own cache there.
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError:  # network file systems know only fsync
            os.fsync(descriptor)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable. Windows cannot and need not: NTFS journals its names."""
    if os.name == "nt":
        return
    descriptor = open_patiently(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        # Some network and user-space file systems have no such call for folders: no more can be done there.
        if exc.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(descriptor)


class SharedFlushes:
    """Flushes of folders for many threads at once: one flush serves all who asked for it before it began.

    A flush takes milliseconds on a busy disk, and writers of one folder come together when replies do.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Path, _Round] = {}
        self._under_way: dict[Path, threading.Lock] = {}

    def flush(self, folder: Path) -> None:
        """As `sync_folder`.

        Raises:
            OSError: the flush that this call shared failed, whoever made it.
        """
        with self._lock:
            mine = self._open.get(folder)
            leads = mine is None
            if mine is None:
                mine = self._open[folder] = _Round()
            mine.asked += 1
            under_way = self._under_way.setdefault(folder, threading.Lock())
        if leads:
            with under_way:  # while the round before lasts, others join this one
                with self._lock:
                    del self._open[folder]
                try:
                    sync_folder(folder)
                except BaseException as failed:  # noqa: BLE001 - whoever shares the flush is told, whatever it is
                    mine.failed = failed
                finally:
                    mine.ended.set()
        mine.ended.wait()
        if mine.failed is not None:
            raise mine.failed

    def waiting(self, folder: Path) -> int:
        """How many wait for a flush that has not begun."""
        with self._lock:
            return self._open[folder].asked if folder in self._open else 0


class _Round:
    """One flush of one folder: how many asked for it, and how it ended."""

    __slots__ = ("asked", "ended", "failed")

    def __init__(self) -> None:
        self.asked = 0
        self.ended = threading.Event()
        self.failed: BaseException | None = None


def make_folders(folder: Path, *, mode: int = 0o777) -> None:
    """Makes `folder` and what is missing above it, durably; each new folder gets `mode` less the umask.

    Raises:
        OSError: FileExistsError where a file stands in the way.
    """
    missing = []
    while not folder.is_dir() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(mode, exist_ok=True)
        sync_folder(new.parent)
