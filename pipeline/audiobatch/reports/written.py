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
    from collections.abc import Callable, Iterable

    from audiobatch.ledger.ledger import Ledger

_KEY = "reports"


@dataclass(slots=True, kw_only=True)
class Written:
    """The reports as we left them.

    Attributes:
        rows: hash of the manifest's bytes and of what else the reports show.
        added: whether they hold anything that a reviewer added.
        stamps: size and time of each, by name; in a store, size and version.
        stamp_of: the same of a report as it is now.
    """

    rows: str = ""
    added: bool = True
    stamps: dict[str, list[int]] = field(default_factory=dict)
    stamp_of: Callable[[str], list[int] | None]

    @classmethod
    def recall(cls, ledger: Ledger, stamp_of: Callable[[str], list[int] | None]) -> Written:
        """As noted in the ledger; `stamp_of` tells the state that a report of the output is in now."""
        text = ledger.noted(_KEY)
        return cls(**(orjson.loads(text) if text else {}), stamp_of=stamp_of)

    def remember(self, ledger: Ledger) -> None:
        record = {"rows": self.rows, "added": self.added, "stamps": self.stamps}
        ledger.note(_KEY, orjson.dumps(record).decode())

    def is_untouched(self, name: str) -> bool:
        """Whether the report is there and as we left it."""
        stamp = self.stamp_of(name)
        return stamp is not None and stamp == self.stamps.get(name)

    def shows(self, rows: str, names: Iterable[str]) -> bool:
        """Whether all these reports are as we left them, and show just these rows."""
        return rows == self.rows and all(map(self.is_untouched, names))

    def now(self, rows: str, names: Iterable[str], *, added: bool) -> None:
        """Take down what was written just now."""
        self.rows, self.added = rows, added
        stamps = {name: self.stamp_of(name) for name in names}
        self.stamps = {name: stamp for name, stamp in stamps.items() if stamp is not None}


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
