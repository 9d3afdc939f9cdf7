"""The spool: replies that were paid for and cannot be written to the output.

One file an entry: a line of JSON (which files, their lengths and hashes, and the caller's record), then the
files' bytes one after another. One file, so that an entry is whole or not there. Readable by its user only.

    StorageError in mid-run → add → the run stops → … → the next run → replay → entry deleted

A disk that is full for the output is often full for the spool too: `reserve` takes space before money is
spent, and `add` frees as much of it as an entry needs, and writes the entry, in one step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import platformdirs

from audiobatch.errors import LeaseLost, StorageError
from audiobatch.storage.atomic_file import is_full, open_patiently, sync_file, translating
from audiobatch.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from audiobatch.model import SavedFile
    from audiobatch.storage.local import Storage

_log = logging.getLogger(__name__)

_ENDING: Final = ".reply"
_RESERVE: Final = "reserve"
_BLOCK_BYTES: Final = 1 << 20
#: A full disk is tried for so long: somebody frees room, or a file system gives back late what was freed.
FULL_DISK_S: Final = 10.0
_LOOK_S: Final = 0.1
#: What an entry takes beside its bytes: its name, and the rest of a block.
_ENTRY_BYTES: Final = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolEntry:
    """One spooled reply.

    Attributes:
        name: what the caller called it.
        path: its file in the spool.
        record: what the caller gave with it, for example the outcome as JSON.
        files: (path relative to the output, bytes), checked against their hashes.
    """

    name: str
    path: Path
    record: Mapping[str, Any]
    files: tuple[tuple[str, bytes], ...]


class Spool:
    """The spooled replies of one output folder. Every method may be called from any thread."""

    def __init__(self, output: Path | str, *, base: Path | None = None) -> None:
        """`output` is a folder, or an address of another store; `base` replaces the user's state folder."""
        self.output = output if isinstance(output, str) and "://" in output else os.path.realpath(output)
        key = hashlib.sha256(os.fsencode(self.output)).hexdigest()[:32]
        base = base or platformdirs.user_state_path("audiobatch", appauthor=False)
        self.folder = base / "spool" / key
        self._storage = LocalStorage(self.folder, private=True)
        self._reserve = _RESERVE
        self._counting = threading.Lock()
        self._adding = threading.Lock()  # of the reserve and of what uses it up
        self._last_ns = 0

    def share(self, owner: str, *, alone: bool) -> None:
        """Other runs on this machine use this spool too: each sets aside room of its own.

        Args:
            owner: this run.
            alone: no other is at work; what dead ones set aside is freed.
        """
        if alone and self.folder.is_dir():
            for path in self.folder.glob(_RESERVE + "*"):
                self._storage.delete(path.name)
        self._reserve = f"{_RESERVE}.{owner}"

    def reserve(self, size_bytes: int) -> None:
        """Reserve space on the spool's disk, so that `add` works when it is full; adds to what is reserved.

        Raises:
            StorageError: that much is not free; what was set aside before is as it was.
        """
        with self._adding:
            before = self.reserved_bytes
            if not before:
                self._storage.write(self._reserve, b"")
            path = self.folder / self._reserve
            with translating(str(path)):
                descriptor = open_patiently(path, os.O_WRONLY | os.O_APPEND)
                try:
                    _fill(descriptor, size_bytes - before)
                except OSError:
                    os.ftruncate(descriptor, before)
                    raise
                finally:
                    os.close(descriptor)

    @property
    def reserved_bytes(self) -> int:
        """What is set aside now."""
        try:
            return (self.folder / self._reserve).stat().st_size
        except OSError:
            return 0

    def release(self) -> None:
        """Free the reserve, and leave no empty folder behind."""
        if self.folder.is_dir():
            self._storage.delete(self._reserve)
            self._storage.sweep_temporary()
            self._remove_if_empty()

    def add(self, name: str, files: Sequence[tuple[str, bytes]], record: Mapping[str, Any]) -> Path:
        """Spool a reply: its files as they were to be written, and a record for its replay.

        Durable when it returns. Two of one name are two entries: no entry is ever replaced.

        Raises:
            StorageError: it could not be written here either; the message says where and why.
            TypeError: the record is not JSON.
        """
        head = {
            "name": name,
            "output": self.output,
            "record": record,
            "files": [
                {"path": path, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for path, data in files
            ],
        }
        parts = [json.dumps(head).encode() + b"\n", *(data for _, data in files)]
        path = f"{self._next_ns()}-{secrets.token_hex(4)}{_ENDING}"
        with self._adding:
            self._write(path, parts)
        return self.folder / path

    def _write(self, path: str, parts: list[bytes]) -> None:
        """Write an entry, freeing the reserve where the disk is full. One at a time: no other takes its space."""
        ends_s = time.monotonic() + FULL_DISK_S
        again = True
        while True:
            try:
                self._storage.write(path, parts)
            except StorageError as failed:
                # Another run on the same output may have ended, and left no empty folder behind.
                self._storage = LocalStorage(self.folder, private=True)
                full = is_full(failed)
                if full and self._free(sum(map(len, parts)) + _ENTRY_BYTES):
                    continue
                if not (full and time.monotonic() < ends_s) and not (again and not full):
                    raise
                again = False
                if full:
                    time.sleep(_LOOK_S)
            else:
                return

    def _free(self, size_bytes: int) -> bool:
        """Free so much of the reserve; return whether there was any."""
        try:
            descriptor = open_patiently(self.folder / self._reserve, os.O_WRONLY)
        except OSError:
            return False
        try:
            left = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, max(0, left - size_bytes))
            sync_file(descriptor)  # journals hold freed blocks until they commit
        finally:
            os.close(descriptor)
        return left > 0

    def entries(self) -> Iterator[SpoolEntry]:
        """Yield the entries, oldest first, read one at a time. A damaged one is logged and left where it is."""
        for path in sorted(self.folder.glob("*" + _ENDING)):
            try:
                yield _read(path, self._storage.read(path.name))
            except (StorageError, ValueError, KeyError, TypeError) as exc:
                _log.error("the spooled reply %s cannot be read (%s); it is left there", path, exc)

    def replay(
        self,
        storage: Storage,
        record: Callable[[SpoolEntry, list[SavedFile]], None],
        *,
        prepare: Callable[[SpoolEntry], SpoolEntry] | None = None,
        hold: Callable[[SpoolEntry], AbstractContextManager[bool]] = lambda _: nullcontext(True),
    ) -> list[str]:
        """Write every entry to the output, have its outcome recorded, and only then delete the entry.

        A kill between these steps replays an entry twice: `record` must take an outcome that it already
        has, and be durable when it returns.

        Args:
            storage: the output.
            record: is given the entry and its files as saved.
            prepare: is given the entry before its files are written, and gives it back, perhaps with other paths.
            hold: entered while an entry is replayed; it says whether to replay that entry now.

        Returns:
            The names of the replayed entries.

        Raises:
            StorageError: the output still cannot be written; this entry and the rest stay.
        """
        replayed = []
        for entry in self.entries():
            try:
                with hold(entry) as is_held:
                    if not is_held:
                        continue
                    written = entry if prepare is None else prepare(entry)
                    record(written, storage.write_many(written.files))
            except LeaseLost as lost:
                _log.warning("%s; the reply stays in the spool", lost.message)
                continue
            self._storage.delete(entry.path.name)
            replayed.append(entry.name)
        if replayed:
            self._remove_if_empty()
        return replayed

    def _next_ns(self) -> int:
        """Return the time, as a name that sorts even while the clock is too coarse or set back."""
        with self._counting:
            self._last_ns = max(self._last_ns + 1, time.time_ns())
            return self._last_ns

    def _remove_if_empty(self) -> None:
        try:
            self.folder.rmdir()
        except OSError:
            return
        # It may be needed again in this run.
        self._storage = LocalStorage(self.folder, private=True)


def _fill(descriptor: int, size_bytes: int) -> None:
    """Append bytes that no file system compresses or stores as a hole, and flushes them."""
    block = os.urandom(_BLOCK_BYTES)
    while size_bytes > 0:
        size_bytes -= os.write(descriptor, block[:size_bytes])
    sync_file(descriptor)


def _read(path: Path, data: bytes) -> SpoolEntry:
    line, _, rest = data.partition(b"\n")
    head = json.loads(line)
    files = []
    start = 0
    for file in head["files"]:
        content = rest[start : start + file["size_bytes"]]
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise ValueError(f"{file['path']} is not what was spooled")
        files.append((str(file["path"]), content))
        start += file["size_bytes"]
    return SpoolEntry(name=head["name"], path=path, record=head["record"], files=tuple(files))
