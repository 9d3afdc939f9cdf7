"""A hash of a file's bytes taken while something else reads them."""

from __future__ import annotations

import hashlib
import io

_READ_BYTES = 1 << 20


class HashingFile(io.RawIOBase):
    """A file that hashes itself while it is read, so that the sound and the hash are of the same bytes.

    Bytes count once and in order; what readers jumped over is read by `finish`.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self._hashed = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        at = self._raw.tell()
        count = self._raw.readinto(buffer) or 0
        if at <= self._hashed < at + count:
            self._hash.update(memoryview(buffer)[self._hashed - at : count])
            self._hashed = at + count
        return count

    def finish(self) -> str:
        """Hashes what was not read yet; the SHA-256 of the whole file in hex."""
        self._raw.seek(self._hashed)
        while chunk := self._raw.read(_READ_BYTES):
            self._hash.update(chunk)
        return self._hash.hexdigest()
