"""What was written last, so that nothing is read or written again that nobody has changed.

A workbook of 100 000 rows takes a minute to read or to write. Whether it has to be is told by its size and time,
and by the hash of the manifest whose rows it shows; both are kept in the ledger.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pipeline.store.ledger import Ledger

_KEY = "reports"


@dataclass(slots=True, kw_only=True)
class Written:
    """The reports as we left them.

    Attributes:
        rows: hash of the manifest's bytes and of what else the reports show.
        added: whether they hold anything that a reviewer added.
        stamps: size and time of each, by name.
    """

    rows: str = ""
    added: bool = True
    stamps: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def recall(cls, ledger: Ledger) -> Written:
        text = ledger.noted(_KEY)
        return cls(**orjson.loads(text)) if text else cls()

    def remember(self, ledger: Ledger) -> None:
        record = {"rows": self.rows, "added": self.added, "stamps": self.stamps}
        ledger.note(_KEY, orjson.dumps(record).decode())

    def is_untouched(self, path: Path) -> bool:
        """Whether the file is there and as we left it."""
        stamp = stamp_of(path)
        return stamp is not None and stamp == self.stamps.get(path.name)

    def shows(self, rows: str, paths: Iterable[Path]) -> bool:
        """Whether all these reports are as we left them, and show just these rows."""
        return rows == self.rows and all(map(self.is_untouched, paths))

    def now(self, rows: str, paths: Iterable[Path], *, added: bool) -> None:
        """Take down what was written just now."""
        self.rows, self.added = rows, added
        stamps = {path.name: stamp_of(path) for path in paths}
        self.stamps = {name: stamp for name, stamp in stamps.items() if stamp is not None}


def stamp_of(path: Path) -> list[int] | None:
    """A file's size and time; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


class Hashing:
    """A binary file that knows the hash of what was written to it."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._out.write(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
