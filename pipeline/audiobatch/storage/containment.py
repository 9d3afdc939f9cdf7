"""Where a relative path lies inside a folder, and the refusal of every path that would lead out of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from audiobatch.errors import StorageError

_FORBIDDEN: Final = frozenset("\\:\0")
#: Windows' other kind of link to a folder: IO_REPARSE_TAG_MOUNT_POINT, which `stat` names only there.
_JUNCTION: Final = 0xA0000003


def place_inside(root: Path, path: str) -> Path:
    """The absolute place of a POSIX path relative to `root`. Its folders need not be there yet.

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
