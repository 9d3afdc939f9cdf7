"""Putting a finished report where it belongs, whoever holds the old one open."""

from __future__ import annotations

import secrets
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.errors import StorageError
from audiobatch.storage.atomic_file import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
