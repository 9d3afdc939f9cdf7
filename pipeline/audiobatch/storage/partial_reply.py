"""A reply on disk while it comes: the raw pieces, appended beside the item, in `replies/`.

What a broken call had received by then is kept with its outcome; what a killed run had received lies there as
`….part`. When a reply is whole and recorded, its copy is removed. Writing the copy never fails a call.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from audiobatch.errors import StorageError, longest_secret_bytes, redacted_bytes
from audiobatch.storage.local import LocalStorage, path_inside
from audiobatch.storage.names import output_path

if TYPE_CHECKING:
    from audiobatch.storage.local import Storage

log = logging.getLogger(__name__)

#: Pieces are gathered up to this size: a few seconds of speech.
GATHER_BYTES = 131_072


class Received:
    """One turn's copy; used by one task at a time."""

    def __init__(self, storage: LocalStorage, item_id: str, turn: int) -> None:
        self._storage = storage
        self._path = output_path(item_id, folder="replies", ending=".bin", turn=turn) + ".part"
        self._gathered = bytearray()
        self._file: IO[bytes] | None = None
        self._fresh = True
        self._broken = False

    @classmethod
    def of(cls, storage: Storage, item_id: str, turn: int) -> Received | None:
        """None where the output is no local disk: objects cannot grow."""
        return cls(storage, item_id, turn) if isinstance(storage, LocalStorage) else None

    async def restart(self) -> None:
        """A call begins; what an earlier one left stays until this one brings something."""
        self._gathered.clear()
        self._fresh = True

    async def write(self, piece: bytes) -> None:
        """More of the reply."""
        self._gathered += piece
        if len(self._gathered) >= GATHER_BYTES:
            await asyncio.to_thread(self._pour)

    def take(self) -> bytes:
        """What the last call that brought anything had received; the copy is gone then. Blocks."""
        self._pour(whole=True)
        self._shut()
        try:
            received = self._storage.read(self._path)
        except StorageError:
            received = b""
        self.discard()
        return received

    def discard(self) -> None:
        """The reply is whole, saved and recorded. Blocks."""
        self._gathered.clear()
        self._shut()
        with suppress(StorageError, OSError):
            path_inside(self._storage.root, self._path).unlink(missing_ok=True)

    def _pour(self, *, whole: bool = False) -> None:
        """Append what was gathered; but for its end, which may be the beginning of a credential, unless `whole`."""
        ready = bytearray(redacted_bytes(bytes(self._gathered)))
        kept = 0 if whole else max(0, longest_secret_bytes() - 1)
        self._gathered = ready[len(ready) - kept :] if kept else bytearray()
        ready = ready[: len(ready) - kept] if kept else ready
        if not ready or self._broken:
            return
        try:
            if self._fresh:
                self._shut()
                path = path_inside(self._storage.root, self._path)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("wb", buffering=0)
                self._fresh = False
            assert self._file is not None
            self._file.write(ready)
        except (OSError, StorageError) as failed:
            self._broken = True
            log.warning("%s: the reply's copy cannot be written: %s", self._path, failed)

    def _shut(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
