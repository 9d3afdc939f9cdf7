"""Waveforms that are drawn once: a page that is made again takes them from the page that was there before.

To decode every recording of a large job takes minutes, to read an old page a moment. A picture is taken over
only while its file's size and time are what they were; the page carries both (`data-stamp`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

#: Gives the `d` of a waveform's path for a file, or None where there is nothing to draw.
Draw = Callable[[Path], str | None]

_PICTURE = re.compile(r'data-src="([^"]+)" data-stamp="([^"]+)".{0,4000}?<path d="([^"]+)"')


class Pictures:
    """Draws what is new and remembers the rest; memory holds the pictures of one page."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._old: dict[tuple[str, str], str] = {}

    def recall(self, page: Path) -> None:
        """Take over the pictures of this page, in place of those of the page before."""
        self._old = {}
        with suppress(OSError), page.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                for url, stamp, picture in _PICTURE.findall(line):
                    self._old[url, stamp] = picture

    def picture(self, url: str, path: Path, stamp: str = "") -> tuple[str, str | None]:
        """The file's stamp (empty where there is no such file) and its picture.

        Args:
            url: under which the page has it.
            path: the file.
            stamp: known beforehand, for a file that is not on this machine.
        """
        if not stamp:
            try:
                found = path.stat()
            except (OSError, ValueError):
                return "", None
            stamp = f"{found.st_size:x}-{found.st_mtime_ns:x}"
        return stamp, self._old.get((url, stamp)) or self._draw(path)
