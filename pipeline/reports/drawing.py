"""Waveforms within bounds: drawn while there is time for it, left out after, and said to be."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipeline.reports.waveform import waveform_path

if TYPE_CHECKING:
    from pathlib import Path


class Drawing:
    """Draws a recording's waveform; a run's end is not held up by a hundred thousand of them."""

    def __init__(self, seconds: float | None) -> None:
        """`seconds`: how long all drawing together may take; None: as long as it takes."""
        self._left_s = seconds
        self._left_out = 0

    def __call__(self, path: Path) -> str | None:
        if self._left_s is None:
            return waveform_path(path)
        if self._left_s <= 0:
            self._left_out += 1
            return None
        began_s = time.monotonic()
        picture = waveform_path(path)
        self._left_s -= time.monotonic() - began_s
        return picture

    def notes(self, folder: Path) -> list[str]:
        """What was left out, and how to get it."""
        if not self._left_out:
            return []
        what = f"{self._left_out} waveforms were left out of the page to save time"
        return [f"{what}; `audiobatch report {folder}` draws them."]
