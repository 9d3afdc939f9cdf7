"""Draw a recording's waveform: the loudest and softest sample of each slice, as the path of an SVG.

Files are read in blocks, so that an hour of audio takes no more memory than a second. A file that cannot be read
has no waveform, and that is never an error.

Waveforms are drawn within a time limit; the others are left out, and a note says so. A page that is written again
takes waveforms from its predecessor: decoding every recording of a large job takes minutes, reading the old page a
moment. A waveform is reused only while its file's size and time are the same; the page has both (`data-stamp`).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiobatch.audio.decode import open_recording
from audiobatch.errors import InputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from audiobatch.address import Location

    Samples = NDArray[np.float32]

_LOG = logging.getLogger(__name__)

#: Slices of a waveform, and its height in the units of the path; the width is `BINS * STEP`.
BINS = 100
STEP = 2
HEIGHT = 32
_COARSE_FRAMES = 64
_LOUDEST_GAIN = 8.0


def waveform_path(path: Path) -> str | None:
    """Return the `d` of an SVG path in a `0 0 200 32` view box; None where there is nothing to draw.

    Quiet recordings are drawn up to eight times larger, so that speech differs visibly from silence.
    """
    try:
        peaks = read_peaks(path)
    except InputError as refusal:
        _LOG.info("%s: no waveform: %s", path.name, refusal.message)
        return None
    except Exception:  # noqa: BLE001 - a report does not fail for a waveform
        _LOG.exception("%s: no waveform", path.name)
        return None
    return None if peaks is None else svg_path(peaks)


def read_peaks(path: Path, bins: int = BINS) -> Samples | None:
    """Return the lowest and highest sample of each slice, `bins x 2`, within -1 to 1; None without samples."""
    coarse = [part for block in _blocks(path) if (part := _coarse(block)).size]
    if not coarse:
        return None
    rows: Samples = np.concatenate(coarse)
    edges = np.linspace(0, len(rows), bins + 1).astype(np.int64)
    starts = np.minimum(edges[:-1], len(rows) - 1)
    low = np.minimum.reduceat(rows[:, 0], starts)
    high = np.maximum.reduceat(rows[:, 1], starts)
    peaks: Samples = np.clip(np.nan_to_num(np.stack([low, high], axis=1)), -1.0, 1.0)
    return peaks


def svg_path(peaks: Samples) -> str:
    """Draw one vertical stroke for each slice, in relative moves: about six characters each."""
    loudest = float(np.abs(peaks).max())
    gain = min(_LOUDEST_GAIN, 0.95 / loudest) if loudest > 0 else 1.0
    middle = HEIGHT / 2
    top = np.rint(middle - peaks[:, 1] * gain * middle).astype(int)
    bottom = np.maximum(np.rint(middle - peaks[:, 0] * gain * middle).astype(int), top + 1)
    parts = [f"M1 {top[0]}v{bottom[0] - top[0]}"]
    parts.extend(
        f"m{STEP} {top[index] - bottom[index - 1]}v{bottom[index] - top[index]}"
        for index in range(1, len(peaks))
    )
    return "".join(parts)


def _coarse(block: Samples) -> Samples:
    """Return the extremes of every 64 frames (`frames x channels` in, `slices x 2` out)."""
    if not block.size:
        return np.empty((0, 2), dtype=np.float32)
    starts = np.arange(0, len(block), _COARSE_FRAMES)
    low = np.minimum.reduceat(block.min(axis=1), starts)
    high = np.maximum.reduceat(block.max(axis=1), starts)
    return np.stack([low, high], axis=1).astype(np.float32)


def _blocks(path: Path) -> Iterator[Samples]:
    with open_recording(path) as sound:
        yield from sound.blocks()


class WaveformDrawer:
    """Draws waveforms within a time limit, so that a hundred thousand of them do not delay the end of a run."""

    def __init__(
        self, seconds: float | None, local_copy: Callable[[Path], AbstractContextManager[Path]] = nullcontext
    ) -> None:
        """Set the limit.

        Args:
            seconds: how long all drawing together may take; None: no limit.
            local_copy: makes a file readable that is not on this machine.
        """
        self._left_s = seconds
        self._local_copy = local_copy
        self._left_out = 0

    def __call__(self, path: Path) -> str | None:
        """Draw a file's waveform; None where there is none, or the time is over."""
        if self._left_s is None:
            return self._draw(path)
        if self._left_s <= 0:
            self._left_out += 1
            return None
        began_s = time.monotonic()
        waveform = self._draw(path)
        self._left_s -= time.monotonic() - began_s
        return waveform

    def _draw(self, path: Path) -> str | None:
        try:
            with self._local_copy(path) as copy:
                return waveform_path(copy)
        except StorageError as failed:
            _LOG.warning("%s: no waveform: %s", path.name, failed)
            return None

    def notes(self, folder: Location) -> list[str]:
        """Say how many waveforms were left out, and how to draw them."""
        if not self._left_out:
            return []
        what = f"{self._left_out} waveforms were left out of the page to save time"
        return [f"{what}; `audiobatch report {folder}` draws them."]


#: Returns the `d` of a file's waveform, or None where there is nothing to draw.
DrawWaveform = Callable[[Path], str | None]
_DRAWN = re.compile(r'data-src="([^"]+)" data-stamp="([^"]+)".{0,4000}?<path d="([^"]+)"')


class WaveformCache:
    """Draws new waveforms and takes the others from the old page; memory holds those of one page."""

    def __init__(self, draw: DrawWaveform) -> None:
        """Draw new waveforms with this function."""
        self._draw = draw
        self._old: dict[tuple[str, str], str] = {}

    def load(self, page: Path) -> None:
        """Read the waveforms of an old page, in place of those of the page before it."""
        self._old = {}
        with suppress(OSError), page.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                for url, stamp, waveform in _DRAWN.findall(line):
                    self._old[url, stamp] = waveform

    def waveform(self, url: str, path: Path, stamp: str = "") -> tuple[str, str | None]:
        """Return a file's stamp (empty where there is no such file) and its waveform.

        Args:
            url: of the file in the page.
            path: the file.
            stamp: if known, for a file that is not on this machine.
        """
        if not stamp:
            try:
                status = path.stat()
            except (OSError, ValueError):
                return "", None
            stamp = f"{status.st_size:x}-{status.st_mtime_ns:x}"
        return stamp, self._old.get((url, stamp)) or self._draw(path)
