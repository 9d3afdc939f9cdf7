"""Where reports are made, and how they get to the output.

For a local output that is the output folder itself, and nothing has to be brought anywhere. For a store it is a
temporary folder: reports that somebody else has changed are brought here before they are read, and each new one is
put into the store as soon as it is made. A reader there sees the old one or the new one. Where another program
holds the old one open, the new one is written beside it.
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
    """A local output: reports are made where they belong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def bring(self, *names: str) -> None:
        """Have these reports here as they are in the output, if they are there."""

    def bring_pages(self) -> None:
        """Have the pages `report*.html` here."""

    def leave(self, name: str) -> None:
        """The output's copy of this one is ours, unchanged: `bring` need not fetch it."""

    def hand_in(self, path: Path) -> None:
        """A new report is finished. Raises: StorageError: the output has the old one."""

    def hand_in_pages(self) -> None:
        """The pages are finished; the output gets them, and loses those that are no more."""

    def stamp(self, name: str) -> list[int] | None:
        """What tells one state of a report in the output from another; None where there is none."""
        try:
            found = (self.folder / name).stat()
        except OSError:
            return None
        return [found.st_size, found.st_mtime_ns]

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()

    @contextmanager
    def borrowed(self, path: Path) -> Iterator[Path]:
        """A file of the output to look into, named as if it were in `folder`.

        Raises:
            StorageError: it is not to be had.
        """
        yield path


class RemoteDesk(ReportStaging):
    """A temporary folder, which goes with this object."""

    def __init__(self, storage: FsspecStorage) -> None:
        scratch = tempfile.mkdtemp(prefix="audiobatch-reports-")
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        # Reports are titled by the output's name.
        super().__init__(Path(scratch, storage.root.name))
        self.folder.mkdir()
        self._storage = storage
        self._here: dict[str, list[int] | None] = {}

    def bring(self, *names: str) -> None:
        for name in names:
            there = self.stamp(name)
            if there is not None and there != self._here.get(name):
                fresh = self.folder / f"{name}.new"
                self._storage.fetch(name, fresh)
                fresh.replace(self.folder / name)
                self._here[name] = there

    def bring_pages(self) -> None:
        self.bring(*self._pages())

    def leave(self, name: str) -> None:
        self._here[name] = self.stamp(name)

    def hand_in(self, path: Path) -> None:
        self._storage.write_file(path.name, path)
        self._here[path.name] = self.stamp(path.name)

    def hand_in_pages(self) -> None:
        mine = sorted(path.name for path in self.folder.glob("report*.html"))
        for name in mine:
            self.hand_in(self.folder / name)
        for name in set(self._pages()) - set(mine):
            self._storage.delete(name)

    def stamp(self, name: str) -> list[int] | None:
        found = self._storage.stat(name)
        return None if found is None else [found.size_bytes, found.version]

    def exists(self, name: str) -> bool:
        return self._storage.exists(name)

    @contextmanager
    def borrowed(self, path: Path) -> Iterator[Path]:
        if not path.is_relative_to(self.folder):
            raise StorageError(f"{path.name} is not in the output")
        with tempfile.TemporaryDirectory(prefix="audiobatch-") as folder:
            here = Path(folder, path.name)
            self._storage.fetch(path.relative_to(self.folder).as_posix(), here)
            yield here

    def _pages(self) -> list[str]:
        """The pages in the output: `report.html`, and as many of `report-2.html`, … as follow it."""
        found = []
        number = 1
        while self._storage.exists(name := "report.html" if number == 1 else f"report-{number}.html"):
            found.append(name)
            number += 1
        return found


def desk_of(storage: Storage) -> ReportStaging:
    """The place to make an output's reports at."""
    if isinstance(storage, LocalStorage):
        return ReportStaging(storage.root)
    from audiobatch.storage.remote import FsspecStorage

    assert isinstance(storage, FsspecStorage)
    return RemoteDesk(storage)


_OTHER_NAMES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a report ended up.

    Attributes:
        path: the file that was written; not the one asked for when that is open elsewhere.
        notes: what a person should be told, one sentence each.
    """

    path: Path
    notes: tuple[str, ...] = ()


@contextmanager
def draft_beside(target: Path) -> Iterator[Path]:
    """A path in the target's folder to write to; it is removed unless `place` moved it away.

    Raises:
        StorageError: the folder cannot be written.
    """
    # A name that the next run, or `verify --repair`, sweeps away where a kill leaves it.
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


def place(draft: Path, target: Path) -> Placed:
    """Move a finished draft over the target; beside it when the target is held open (Windows locks it)."""
    try:
        draft.replace(target)
    except PermissionError:
        for number in range(1, _OTHER_NAMES):
            other = target.with_name(f"{target.stem}.new{number if number > 1 else ''}{target.suffix}")
            with suppress(PermissionError):
                draft.replace(other)
                note = f"{target.name} is open in another program; the new one is {other.name} beside it."
                return Placed(path=other, notes=(note,))
        raise
    return Placed(path=target)
