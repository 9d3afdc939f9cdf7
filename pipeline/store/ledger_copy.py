"""A ledger copied to plan on: the original stays as it is, also while a run works on it."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.store.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def ledger_copy(original: Path, folder: Path) -> Iterator[Ledger]:
    """A copy of the ledger at `original` in `folder`; an empty one where there is none yet.

    Raises:
        ConfigError: the file is no ledger.
    """
    copy = folder / "ledger.db"
    if original.exists():
        try:
            with (
                contextlib.closing(
                    sqlite3.connect(f"{original.resolve().as_uri()}?mode=ro", uri=True)
                ) as source,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
        except sqlite3.Error as failed:
            raise ConfigError(f"{original}: cannot be read: {failed}") from failed
    ledger = Ledger.open(copy)
    try:
        yield ledger
    finally:
        ledger.close()
