"""Where reports are written, and how they get to the output.

A local output's reports are written in the output folder itself. Those of an object store are written in a
temporary folder: a report that somebody else changed is fetched before it is read, and each new one is published
as soon as it is finished. A reader of the store sees the old report or the new one. Where another program holds
the old report open, the new one is written beside it.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from audiobatch.errors import StorageError
from audiobatch.storage.atomic_file import TEMPORARY_PREFIX
from audiobatch.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from audiobatch.storage.local import Storage
    from audiobatch.storage.remote import FsspecStorage


class ReportStaging:
    """The staging of a local output: reports are written where they belong."""

    def __init__(self, folder: Path) -> None:
        """Write reports in this folder."""
        self.folder = folder

    def fetch(self, *names: str) -> None:
        """Bring these reports up to date with the output, those that it has."""

    def fetch_pages(self) -> None:
        """Bring the pages `report*.html` up to date with the output."""

    def mark_current(self, name: str) -> None:
        """Record that the output's copy of a report needs no fetching: audiobatch wrote it."""

    def publish(self, path: Path) -> None:
        """Write a finished report to the output.

        Raises:
            StorageError: the output still has the old one.
        """

    def publish_pages(self) -> None:
        """Write the finished pages to the output, and delete its pages that no longer exist."""

    def stamp(self, name: str) -> list[int] | None:
        """Return what distinguishes one state of a report in the output from another; None where there is none."""
        try:
            status = (self.folder / name).stat()
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]

    def exists(self, name: str) -> bool:
        """Whether the output has a report of this name."""
        return (self.folder / name).exists()

    @contextmanager
    def local_copy(self, path: Path) -> Iterator[Path]:
        """Make a file of the output readable for the block.

        Args:
            path: named as if it were in `folder`.

        Raises:
            StorageError: it cannot be read.
        """
        yield path


class RemoteStaging(ReportStaging):
    """The staging of an output in a store: a temporary folder, deleted with this object."""

    def __init__(self, storage: FsspecStorage) -> None:
        """Create the temporary folder; it has the output's name, which titles the reports."""
        scratch = tempfile.mkdtemp(prefix="audiobatch-reports-")
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        super().__init__(Path(scratch, storage.root.name))
        self.folder.mkdir()
        self._storage = storage
        self._fetched: dict[str, list[int] | None] = {}

    def fetch(self, *names: str) -> None:
        """Download those reports that changed since they were last fetched or published."""
        for name in names:
            stamp = self.stamp(name)
            if stamp is not None and stamp != self._fetched.get(name):
                download = self.folder / f"{name}.new"
                self._storage.fetch(name, download)
                download.replace(self.folder / name)
                self._fetched[name] = stamp

    def fetch_pages(self) -> None:
        """Download the pages that changed."""
        self.fetch(*self._pages())

    def mark_current(self, name: str) -> None:
        """Record the store's present state as known."""
        self._fetched[name] = self.stamp(name)

    def publish(self, path: Path) -> None:
        """Upload a finished report."""
        self._storage.write_file(path.name, path)
        self._fetched[path.name] = self.stamp(path.name)

    def publish_pages(self) -> None:
        """Upload all pages, then delete the store's pages beyond them."""
        written = sorted(path.name for path in self.folder.glob("report*.html"))
        for name in written:
            self.publish(self.folder / name)
        for name in set(self._pages()) - set(written):
            self._storage.delete(name)

    def stamp(self, name: str) -> list[int] | None:
        """Return size and version of a report in the store; None where there is none."""
        entry = self._storage.stat(name)
        return None if entry is None else [entry.size_bytes, entry.version]

    def exists(self, name: str) -> bool:
        """Whether the store has a report of this name."""
        return self._storage.exists(name)

    @contextmanager
    def local_copy(self, path: Path) -> Iterator[Path]:
        """Download a file of the output for the block."""
        if not path.is_relative_to(self.folder):
            raise StorageError(f"{path.name} is not in the output")
        with tempfile.TemporaryDirectory(prefix="audiobatch-") as folder:
            copy = Path(folder, path.name)
            self._storage.fetch(path.relative_to(self.folder).as_posix(), copy)
            yield copy

    def _pages(self) -> list[str]:
        """Return the pages in the output: `report.html`, and as many of `report-2.html`, … as follow it."""
        pages = []
        number = 1
        while self._storage.exists(name := "report.html" if number == 1 else f"report-{number}.html"):
            pages.append(name)
            number += 1
        return pages


def staging_for(storage: Storage) -> ReportStaging:
    """Return the staging for an output's reports."""
    if isinstance(storage, LocalStorage):
        return ReportStaging(storage.root)
    from audiobatch.storage.remote import FsspecStorage

    assert isinstance(storage, FsspecStorage)
    return RemoteStaging(storage)


_OTHER_NAMES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """A report that was written.

    Attributes:
        path: the file; beside the one asked for where another program holds that open.
        notes: what to tell the user, one sentence each.
    """

    path: Path
    notes: tuple[str, ...] = ()


@contextmanager
def draft_beside(target: Path) -> Iterator[Path]:
    """Create a temporary file in the target's folder; it is deleted unless `replace_with` moved it.

    Raises:
        StorageError: the folder cannot be written.
    """
    # The next run, or `verify --repair`, deletes files of this name that a killed run left.
    draft = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp")
    try:
        draft.open("xb").close()
    except OSError as error:
        raise StorageError(f"{target.parent}: cannot be written: {error.strerror or error}") from error
    try:
        yield draft
    except OSError as error:
        raise StorageError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            draft.unlink()


def replace_with(draft: Path, target: Path) -> WrittenFile:
    """Move a finished draft over the target; beside it where the target is open (Windows locks it)."""
    try:
        draft.replace(target)
    except PermissionError:
        for number in range(1, _OTHER_NAMES):
            other = target.with_name(f"{target.stem}.new{number if number > 1 else ''}{target.suffix}")
            with suppress(PermissionError):
                draft.replace(other)
                note = f"{target.name} is open in another program; the new one is {other.name} beside it."
                return WrittenFile(path=other, notes=(note,))
        raise
    return WrittenFile(path=target)
