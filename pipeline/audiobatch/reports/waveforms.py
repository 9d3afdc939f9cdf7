"""A recording as a picture: loudest and softest sample of each slice, as the path of an SVG.

Files are read by blocks, so an hour of audio takes no more memory than a second. What cannot be read has no
picture, which is never an error: the page is a view.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from audiobatch.audio.decode import open_recording
from audiobatch.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

_LOG = logging.getLogger(__name__)

#: Slices of a picture, and its height in the units of the path; the width is `BINS * STEP`.
BINS = 100
STEP = 2
HEIGHT = 32
_COARSE_FRAMES = 64
_LOUDEST_GAIN = 8.0


def waveform_path(path: Path) -> str | None:
    """The `d` of an SVG path in a `0 0 200 32` view box; None where there is nothing to draw.

    Quiet recordings are drawn larger, up to eight times, so that speech can be told from silence.
    """
    try:
        peaks = read_peaks(path)
    except InputError as refusal:
        _LOG.info("%s: no waveform: %s", path.name, refusal.message)
        return None
    except Exception:  # noqa: BLE001 - a picture is not worth a failure
        _LOG.exception("%s: no waveform", path.name)
        return None
    return None if peaks is None else svg_path(peaks)


def read_peaks(path: Path, bins: int = BINS) -> Samples | None:
    """Lowest and highest sample of each slice, `bins x 2`, within -1 to 1; None for a file without samples."""
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
    """One upright stroke a slice, in relative moves: some six characters each."""
    loudest = float(np.abs(peaks).max())
    gain = min(_LOUDEST_GAIN, 0.95 / loudest) if loudest > 0 else 1.0
    middle = HEIGHT / 2
    top = np.rint(middle - peaks[:, 1] * gain * middle).astype(int)
    bottom = np.maximum(np.rint(middle - peaks[:, 0] * gain * middle).astype(int), top + 1)
    parts = [f"M1 {top[0]}v{bottom[0] - top[0]}"]
    parts.extend(
        f"m{STEP} {top[place] - bottom[place - 1]}v{bottom[place] - top[place]}"
        for place in range(1, len(peaks))
    )
    return "".join(parts)


def _coarse(block: Samples) -> Samples:
    """Extremes of every 64 frames (`frames x channels` in, `slices x 2` out)."""
    if not block.size:
        return np.empty((0, 2), dtype=np.float32)
    starts = np.arange(0, len(block), _COARSE_FRAMES)
    low = np.minimum.reduceat(block.min(axis=1), starts)
    high = np.maximum.reduceat(block.max(axis=1), starts)
    return np.stack([low, high], axis=1).astype(np.float32)


def _blocks(path: Path) -> Iterator[Samples]:
    with open_recording(path) as sound:
        yield from sound.blocks()
