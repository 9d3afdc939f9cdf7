"""What can be measured of a recording without understanding it: length, level, silence, pitch.

One pass over blocks of samples; what is kept grows by 50 numbers a second.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audiobatch_emulator.decoding import RECOGNIZER_RATE_HZ

FRAME_SAMPLES = RECOGNIZER_RATE_HZ // 50  # 20 ms
FLOOR_DBFS = -120.0  # said of digital silence, whose level is minus infinity
SILENT_DBFS = -55.0  # a frame under this is silent, however quiet the rest is
SILENT_BELOW_LOUD_DB = 35.0  # and so is one this far under the loud ones

PITCH_WINDOW_SAMPLES = 1024  # 64 ms: four periods of the lowest pitch
PITCH_WINDOWS_PER_BLOCK = 10
LOWEST_PITCH_HZ, HIGHEST_PITCH_HZ = 60, 500
VOICED_CORRELATION = 0.6  # of a window with itself, a period later


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Levels are RMS relative to full scale (a full-scale sine is -3 dBFS), never under -120."""

    duration_s: float
    level_dbfs: float
    loud_dbfs: float  # of the loudest twentieth
    silence_share: float  # 0 to 1, of 20 ms frames
    pitch_hz: float | None  # the median where there is voice; None where there is none


class Measurer:
    """Takes a recording block by block (mono, 16 kHz, full scale 1.0) and sums it up at the end."""

    def __init__(self) -> None:
        self._samples = 0
        self._energy = 0.0
        self._frame_powers: list[NDArray[np.float32]] = []
        self._pitches: list[NDArray[np.float64]] = []
        self._window = np.hanning(PITCH_WINDOW_SAMPLES)
        self._window_correlation = _autocorrelation(self._window[np.newaxis])[0]

    def add(self, block: NDArray[np.float32]) -> None:
        """Adds a block of a second; frames do not span two of them."""
        self._samples += len(block)
        self._energy += float(np.dot(block, block))
        whole = len(block) - len(block) % FRAME_SAMPLES
        if whole:
            self._frame_powers.append(np.mean(block[:whole].reshape(-1, FRAME_SAMPLES) ** 2, axis=1))
        if len(block) >= PITCH_WINDOW_SAMPLES:
            self._pitches.append(self._pitches_of(block))

    def result(self) -> Measurements:
        """Returns the measurements of all blocks so far."""
        levels = _dbfs(np.concatenate(self._frame_powers)) if self._frame_powers else np.array([FLOOR_DBFS])
        loud_dbfs = float(np.percentile(levels, 95))
        silent = levels < max(SILENT_DBFS, loud_dbfs - SILENT_BELOW_LOUD_DB)
        pitches = np.concatenate(self._pitches) if self._pitches else np.zeros(0)
        return Measurements(
            duration_s=self._samples / RECOGNIZER_RATE_HZ,
            level_dbfs=float(_dbfs(np.array([self._energy / max(1, self._samples)]))[0]),
            loud_dbfs=loud_dbfs,
            silence_share=float(np.mean(silent)),
            pitch_hz=float(np.median(pitches)) if len(pitches) >= 3 else None,
        )

    def _pitches_of(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns the pitches in Hz of those windows of a block that are voiced."""
        starts = np.linspace(0, len(block) - PITCH_WINDOW_SAMPLES, PITCH_WINDOWS_PER_BLOCK).astype(int)
        windows = np.stack([block[start : start + PITCH_WINDOW_SAMPLES] for start in starts])
        windows = windows.astype(np.float64)
        audible = np.mean(windows**2, axis=1) > 10 ** (SILENT_DBFS / 10)
        windows = (windows[audible] - windows[audible].mean(axis=1, keepdims=True)) * self._window
        # Divided by the window's own, so that a longer period is not worth less (Boersma 1993).
        shortest, longest = RECOGNIZER_RATE_HZ // HIGHEST_PITCH_HZ, RECOGNIZER_RATE_HZ // LOWEST_PITCH_HZ
        lags = _autocorrelation(windows)[:, : longest + 2] / self._window_correlation[: longest + 2]
        pitches: list[float] = []
        for row in lags:
            best = row[shortest:longest].max(initial=0.0)
            if best < VOICED_CORRELATION:
                continue
            # The first peak that is nearly the best: a later one is a multiple of the period.
            for lag in range(shortest, longest + 1):
                if row[lag] >= 0.9 * best and row[lag] >= row[lag - 1] and row[lag] >= row[lag + 1]:
                    pitches.append(RECOGNIZER_RATE_HZ / lag)
                    break
        return np.array(pitches, dtype=np.float64)


def _autocorrelation(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the autocorrelation of each row, 1.0 at lag 0."""
    spectrum = np.fft.rfft(windows, 2 * PITCH_WINDOW_SAMPLES, axis=1)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :PITCH_WINDOW_SAMPLES]
    normalised: NDArray[np.float64] = correlation / np.maximum(correlation[:, :1], 1e-20)
    return normalised


def _dbfs(powers: NDArray[np.floating]) -> NDArray[np.float64]:
    levels: NDArray[np.float64] = 10 * np.log10(np.maximum(powers.astype(np.float64), 1e-20))
    return np.maximum(levels, FLOOR_DBFS)
