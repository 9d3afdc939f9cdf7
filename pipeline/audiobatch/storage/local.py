"""The output folder as a store of files: whole or not at all, and durable when a call returns.

    temporary file beside the target → all bytes → length checked → flushed → renamed → folder flushed

A reader, or a run after a kill at any instant, sees the old file or the new one. What a kill leaves behind is
at most a temporary file, and `sweep_temporary` removes it.

A path that would lead out of the folder is refused.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import stat
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

from audiobatch.errors import ConfigError, StorageError
from audiobatch.model import SavedFile
from audiobatch.storage.atomic_file import (
    TEMPORARY_PREFIX,
    NewFile,
    SharedFlushes,
    make_folders,
    sync_folder,
    translating,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from audiobatch.address import Location


class Storage(Protocol):
    """Files by POSIX paths relative to a root. Every method may be called from any thread.

    A write is complete and durable when it returns, and has not happened when it raises. All methods raise
    StorageError where the root cannot be used, and for a path that leaves it.
    """

    @property
    def root(self) -> Location:
        """The folder or prefix that all paths are relative to."""

    def write(self, path: str, data: bytes | memoryview | Iterable[bytes]) -> SavedFile:
        """Write one file, or replace it."""

    def write_many(
        self,
        files: Sequence[tuple[str, bytes]],
        *,
        replacing: bool = True,
        check_lease: Callable[[], None] = lambda: None,
    ) -> list[SavedFile]:
        """Write several files that belong together; none is renamed before all are on disk.

        Args:
            files: path and content.
            replacing: files that exist may be replaced.
            check_lease: raises where another run has the item by now; called last before the files appear.
        """

    def open_text_atomic(
        self, path: str, *, encoding: str = "utf-8", newline: str = ""
    ) -> AbstractContextManager[IO[str]]:
        """Open a text file that appears, complete, when the block ends without an error."""

    def open_binary_atomic(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Open a binary file that appears, complete, when the block ends without an error."""

    def read(self, path: str) -> bytes:
        """Return a file's content."""

    def exists(self, path: str) -> bool:
        """Return whether there is such a file."""

    def size(self, path: str) -> int:
        """Return a file's size in bytes."""

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of a file's content, in hexadecimal."""

    def delete(self, path: str) -> None:
        """Delete a file; one that does not exist is no error."""

    def move(self, source: str, target: str) -> None:
        """Move a file to another path."""

    def walk(self, folder: str = "") -> Iterator[str]:
        """Yield the paths of all files below a folder."""

    def prune(self, folder: str) -> None:
        """Delete the empty folders below a folder, and the folder itself if it is empty."""

    def sweep_temporary(self, *, older_than_s: float = 0.0) -> int:
        """Delete temporary files that killed runs left; return how many."""

    def free_bytes(self) -> int | None:
        """Return the free space in bytes; None where it is unlimited or unknown."""

    def probe_writable(self) -> None:
        """Check that files can be written."""

    def refuse_file(self) -> None:
        """Check that the root is not a file."""


class LocalStorage:
    """A folder on a local disk.

    The root may be reached through links: that is the user's choice. Inside it none is followed for writing.
    A private one makes files and folders that no other user can read.
    """

    def __init__(self, root: Path, *, private: bool = False) -> None:
        self.root = Path(os.path.realpath(root))
        self._file_mode = 0o600 if private else 0o666
        self._folder_mode = 0o700 if private else 0o777
        self._root_was_made = False
        self._durable: set[Path] = set()  # folders whose own names are flushed, up to the root
        self._making = threading.Lock()
        self._flushes = SharedFlushes()

    def write(self, path: str, data: bytes | memoryview | Iterable[bytes]) -> SavedFile:
        """Raises: StorageError: the file is as it was before."""
        return self._write_all([(path, data)])[0]

    def write_many(
        self,
        files: Sequence[tuple[str, bytes]],
        *,
        replacing: bool = True,
        check_lease: Callable[[], None] = lambda: None,
    ) -> list[SavedFile]:
        """As `write`, with one flush a file and one a folder; a disk knows no conditions.

        Raises:
            StorageError: nothing may be taken as written; each file is its old or its new self.
        """
        return self._write_all(files)

    def _write_all(
        self, files: Sequence[tuple[str, bytes | memoryview | Iterable[bytes]]]
    ) -> list[SavedFile]:
        fresh: list[NewFile] = []
        saved: list[SavedFile] = []
        try:
            for path, data in files:
                file = self._new_file(path)
                fresh.append(file)
                size_bytes, sha256 = file.pour(data)
                saved.append(SavedFile(path=path, size_bytes=size_bytes, sha256=sha256))
            for file in fresh:
                file.rename()
        except BaseException:
            for file in fresh:
                file.discard()
            raise
        for folder in dict.fromkeys(file.target.parent for file in fresh):
            with translating(str(folder)):
                self._flushes.flush(folder)
        return saved

    @contextmanager
    def open_text_atomic(self, path: str, *, encoding: str = "utf-8", newline: str = "") -> Iterator[IO[str]]:
        """A text file to stream into; it takes its name when the block ends well, else the old one stays.

        Raises:
            StorageError: also from the file's own `write`.
        """
        with self.open_binary_atomic(path) as stream:
            text = io.TextIOWrapper(stream, encoding=encoding, newline=newline)
            yield text
            text.flush()
            text.detach()

    @contextmanager
    def open_binary_atomic(self, path: str) -> Iterator[IO[bytes]]:
        """As `open_text_atomic`, for bytes."""
        file = self._new_file(path)
        try:
            yield file.stream()
            file.finish()
            file.rename()
        except BaseException:
            file.discard()
            raise
        with translating(str(file.target)):
            sync_folder(file.target.parent)

    def read(self, path: str) -> bytes:
        """Raises: StorageError: not there, or not readable."""
        file_path = path_inside(self.root, path)
        with translating(str(file_path), verb="read"):
            return file_path.read_bytes()

    def exists(self, path: str) -> bool:
        """Return whether there is such a file."""
        return path_inside(self.root, path).is_file()

    def size(self, path: str) -> int:
        """Bytes. Raises: StorageError: not there."""
        file_path = path_inside(self.root, path)
        with translating(str(file_path), verb="read"):
            return file_path.stat().st_size

    def sha256(self, path: str) -> str:
        """Of the file as it is now, read in blocks. Raises: StorageError: not there, or not readable."""
        file_path = path_inside(self.root, path)
        with translating(str(file_path), verb="read"), file_path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def delete(self, path: str) -> None:
        """Durably gone when it returns; also when it was not there.

        Raises:
            StorageError: it may still be there.
        """
        file_path = path_inside(self.root, path)
        with translating(str(file_path), verb="delete"), suppress(FileNotFoundError):
            file_path.unlink()
            sync_folder(file_path.parent)

    def move(self, source: str, target: str) -> None:
        """Renames within the root, making folders as needed; never over an existing file.

        Raises:
            StorageError: both are as they were, unless the rename was done and only its flush failed.
        """
        old, new = path_inside(self.root, source), path_inside(self.root, target)
        if os.path.lexists(new):
            raise StorageError(f"cannot move {old}: {target} exists already")
        with translating(str(old), verb="move"):
            self._make_durable(new.parent)
            old.rename(new)
            for folder in dict.fromkeys([new.parent, old.parent]):
                sync_folder(folder)

    def walk(self, folder: str = "") -> Iterator[str]:
        """The paths of all files and links below a folder, sorted by folder and name."""
        for path in sorted((self.root / folder).rglob("*")):
            if path.is_file() or path.is_symlink():
                yield path.relative_to(self.root).as_posix()

    def prune(self, folder: str) -> None:
        """Removes the empty folders below a folder."""
        folders = [path for path in (self.root / folder).rglob("*") if path.is_dir()]
        for path in sorted(folders, reverse=True):
            if not any(path.iterdir()):
                path.rmdir()

    def sweep_temporary(self, *, older_than_s: float = 0.0) -> int:
        """Removes what killed runs left half-written; how many files.

        `older_than_s` spares younger ones, where other live runs may write into the same folder.
        """
        swept = 0
        newest = time.time() - older_than_s
        for folder, _, names in os.walk(self.root):
            for path in (Path(folder, name) for name in names if name.startswith(TEMPORARY_PREFIX)):
                with suppress(FileNotFoundError), translating(str(path), verb="delete"):
                    if not older_than_s or path.lstat().st_mtime <= newest:
                        path.unlink()
                        swept += 1
        return swept

    def free_bytes(self) -> int | None:
        """What this user may still write; None where the system does not say."""
        for folder in (self.root, *self.root.parents):
            try:
                return shutil.disk_usage(folder).free
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                return None
        return None

    def probe_writable(self) -> None:
        """Makes the root where it is missing; writes, flushes, renames and deletes a small file in it.

        Raises:
            ConfigError: output is a file, or cannot be written; nothing was sent yet.
        """
        self.refuse_file()
        probe = TEMPORARY_PREFIX + "probe"
        try:
            self.write(probe, bytes(4096))
            self.delete(probe)
        except StorageError as exc:
            raise ConfigError(f"the output folder cannot be used: {exc.message}") from exc

    def refuse_file(self) -> None:
        """Raises: ConfigError: the root is a file."""
        if os.path.lexists(self.root) and not self.root.is_dir():
            raise ConfigError(f"--output {self.root} is a file; name a folder, or a new one")

    def _new_file(self, path: str) -> NewFile:
        file_path = path_inside(self.root, path)
        with translating(str(file_path)):
            self._make_durable(file_path.parent)
            try:
                return NewFile(file_path, mode=self._file_mode)
            except FileNotFoundError:
                # Someone deleted the folder in mid-run.
                self._durable.discard(file_path.parent)
                self._make_durable(file_path.parent)
                return NewFile(file_path, mode=self._file_mode)

    def _make_durable(self, folder: Path) -> None:
        """The folder is there, and its name and those above it, up to the root, are flushed."""
        if folder in self._durable:
            return
        with self._making:
            # Made once only: where a disk was unmounted, a second time would write below its mount point.
            if not self._root_was_made:
                make_folders(self.root, mode=self._folder_mode)
                self._root_was_made = True
            elif not self.root.is_dir():
                raise FileNotFoundError(errno.ENOENT, "the output folder is gone", str(self.root))
            make_folders(folder, mode=self._folder_mode)
            # Those that were there may be another process's, not flushed yet.
            above = folder
            while above != self.root and above not in self._durable:
                above = above.parent
                sync_folder(above)
            self._durable.add(folder)


_FORBIDDEN: Final = frozenset("\\:\0")
#: Windows' other kind of link to a folder: IO_REPARSE_TAG_MOUNT_POINT, which `stat` names only there.
_JUNCTION: Final = 0xA0000003


def path_inside(root: Path, path: str) -> Path:
    """Return the absolute path of a POSIX path relative to `root`. Its folders need not exist yet.

    Looked at again at every call, since a folder can be swapped for a link in mid-run. The last component may be
    a link: to rename over it or to delete it changes the link, not what it points to.

    Raises:
        StorageError: it would leave the root, by its words or through a link.
    """
    parts = path.split("/")
    if any(part in {"", ".", ".."} or not _FORBIDDEN.isdisjoint(part) for part in parts):
        raise StorageError(f"refused: {path!r} is not a path inside {root}")
    folder = str(root)
    for part in parts[:-1]:
        folder = f"{folder}{os.sep}{part}"
        if _is_link(folder):
            raise StorageError(f"refused: {path!r} leads through a link out of its place in {root}")
    return Path(folder, parts[-1])


def _is_link(path: str) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False  # not there yet, or a file: who makes the folder finds out
    return stat.S_ISLNK(status.st_mode) or getattr(status, "st_reparse_tag", 0) == _JUNCTION
