"""Whether a piece of sound can be speech at all: neither silence, nor tones, nor plain noise.

The recognizer must be asked first: it hears words in anything, and is sure of them. Measured in windows of
64 ms on the thirteen voices here: in at most a fifth of them are nine lines of the spectrum nearly
everything, and the most tonal tenth is never flat. Tones, melodies, ring tones: nine lines are nearly
everything most of the time. Noise: even the most tonal tenth is flat.
"""

import numpy as np
from numpy.typing import NDArray

from audiobatch_emulator.measuring import SILENT_DBFS

WINDOW_SAMPLES = 1024  # 64 ms
FEWEST_WINDOWS = 2
STRONGEST_LINES = 9  # three peaks, as a Hann window widens them
NEARLY_ALL = 0.95  # of a window's energy
TONAL_SHARE = 0.5  # of the windows
NOISE_FLATNESS = (
    0.3  # geometric by arithmetic mean of the spectrum; 0.56 for white noise, under 0.001 for vowels
)
LOWEST_LINE, FLATNESS_LINES = 2, slice(4, 450)  # 30 Hz; 60 to 7000 Hz


def can_be_speech(samples: NDArray[np.float32]) -> bool:
    """Returns whether a mono piece at 16 kHz, full scale 1.0, can be speech."""
    count = len(samples) // WINDOW_SAMPLES
    windows = samples[: count * WINDOW_SAMPLES].reshape(count, WINDOW_SAMPLES).astype(np.float64)
    windows = windows[np.mean(windows**2, axis=1) > 10 ** (SILENT_DBFS / 10)]
    if len(windows) < FEWEST_WINDOWS:
        return False
    spectra = np.abs(np.fft.rfft(windows * np.hanning(WINDOW_SAMPLES), axis=1)) ** 2 + 1e-12
    audible = np.sort(spectra[:, LOWEST_LINE:], axis=1)
    strongest = audible[:, -STRONGEST_LINES:].sum(axis=1) / audible.sum(axis=1)
    if np.mean(strongest > NEARLY_ALL) > TONAL_SHARE:
        return False
    lines = spectra[:, FLATNESS_LINES]
    flatness = np.exp(np.log(lines).mean(axis=1)) / lines.mean(axis=1)
    return bool(np.percentile(flatness, 10) < NOISE_FLATNESS)
