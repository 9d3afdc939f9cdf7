"""Waveforms within bounds: drawn while there is time for it, left out after, and said to be."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from audiobatch.errors import StorageError
from audiobatch.reports.waveforms import waveform_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from audiobatch.address import Place

log = logging.getLogger(__name__)


class Drawing:
    """Draws a recording's waveform; a run's end is not held up by a hundred thousand of them."""

    def __init__(
        self, seconds: float | None, borrowed: Callable[[Path], AbstractContextManager[Path]] = nullcontext
    ) -> None:
        """Begin to count the time.

        Args:
            seconds: how long all drawing together may take; None: as long as it takes.
            borrowed: has a file at hand for a moment, where it is not on this machine.
        """
        self._left_s = seconds
        self._borrowed = borrowed
        self._left_out = 0

    def __call__(self, path: Path) -> str | None:
        if self._left_s is None:
            return self._drawn(path)
        if self._left_s <= 0:
            self._left_out += 1
            return None
        began_s = time.monotonic()
        picture = self._drawn(path)
        self._left_s -= time.monotonic() - began_s
        return picture

    def _drawn(self, path: Path) -> str | None:
        try:
            with self._borrowed(path) as here:
                return waveform_path(here)
        except StorageError as failed:  # a picture is not worth a failure
            log.warning("%s: no waveform: %s", path.name, failed)
            return None

    def notes(self, folder: Place) -> list[str]:
        """What was left out, and how to get it."""
        if not self._left_out:
            return []
        what = f"{self._left_out} waveforms were left out of the page to save time"
        return [f"{what}; `audiobatch report {folder}` draws them."]
