"""Measure the level of a sound in windows of 20 ms, for probing, checks, splitting and trimming.

Levels are dBFS of the RMS, so that a full-scale square wave is 0 and a full-scale sine -3.01. A window of
several channels counts by its loudest one: what is silent here is silent on every channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Digital silence has no level in decibels; this stands for it, below the noise of 16 bits (-98 dBFS).
FLOOR_DBFS = -120.0

#: A window below this is silence. Room noise of a telephone or laptop recording lies at -65 to -50 dBFS,
#: whispered speech about -45, speech at -30 to -15 (EBU R128 aims at -23).
SILENCE_DBFS = -50.0

#: Length of a window: shorter than the shortest pause between words, longer than a period of any voice.
HOP_S = 0.02

#: At or above this a sample is at full scale: 32764/32768, since encoders round.
FULL_SCALE = 32764 / 32768

#: Three neighbours at full scale: a clean peak at 0 dBFS touches it once or twice, a clipped one stays.
CLIP_RUN = 3


def to_dbfs(power: float) -> float:
    """Convert a mean square, 1.0 at full scale, to decibels; at least `FLOOR_DBFS`."""
    return max(FLOOR_DBFS, 10.0 * math.log10(power)) if power > 0 else FLOOR_DBFS


def to_power(level_dbfs: float) -> float:
    """Convert a level to its mean square, 1.0 at full scale."""
    return float(10.0 ** (level_dbfs / 10.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The levels of a whole sound.

    Attributes:
        hop_frames: frames a window; the last window may be shorter.
        power: mean square of each window, its loudest channel, full scale = 1.0; windows.
        last_power: mean square of the last full 20 ms, wherever the windows fall.
        end_power: mean square of the last 5 ms.
        clipped_share: share of samples within a run at full scale.
    """

    frames: int
    sample_rate_hz: int
    hop_frames: int
    power: NDArray[np.float32] = field(repr=False)
    last_power: float
    end_power: float
    peak: float
    mean_power: float
    clipped_share: float

    @property
    def duration_s(self) -> float:
        """The sound's length."""
        return self.frames / self.sample_rate_hz

    @property
    def hop_s(self) -> float:
        """A window's length."""
        return self.hop_frames / self.sample_rate_hz

    @property
    def peak_dbfs(self) -> float:
        """Level of the highest sample."""
        return to_dbfs(self.peak * self.peak)

    @property
    def rms_dbfs(self) -> float:
        """Level of the whole sound."""
        return to_dbfs(self.mean_power)

    @property
    def silence_share(self) -> float:
        """Share of the windows below `SILENCE_DBFS`, 0 to 1; 1 for no sound at all."""
        if not len(self.power):
            return 1.0
        return float(np.count_nonzero(self.power < to_power(SILENCE_DBFS)) / len(self.power))


class LevelMeter:
    """Measure a sound in blocks of any size; it stores one number a window, so that two hours are 1.4 MB."""

    __slots__ = (
        "_carry",
        "_clipped",
        "_frames",
        "_hop",
        "_peak",
        "_powers",
        "_rate",
        "_samples",
        "_tail",
        "_total",
    )

    def __init__(self, sample_rate_hz: int) -> None:
        self._rate = sample_rate_hz
        self._hop = max(1, round(sample_rate_hz * HOP_S))
        self._carry: NDArray[np.float32] | None = None
        self._tail: NDArray[np.float32] | None = None
        self._powers: list[NDArray[np.float32]] = []
        self._frames = self._samples = self._clipped = 0
        self._total = self._peak = 0.0

    @property
    def hop_frames(self) -> int:
        """Frames a window."""
        return self._hop

    def add(self, block: NDArray[np.float32]) -> None:
        """Measure a block, frames x channels of float32 at full scale ±1."""
        if not len(block):
            return
        self._frames += len(block)
        self._samples += block.size
        self._note_peak(block)
        if self._carry is not None:
            block = np.concatenate((self._carry, block))
        whole = len(block) - len(block) % self._hop
        if whole:
            power = self._power_of(block[:whole].reshape(-1, self._hop, block.shape[1]))
            self._powers.append(power)
            self._tail = block[whole - self._hop : whole].copy()
        self._carry = block[whole:].copy() if whole < len(block) else None

    def result(self) -> Levels:
        """Return the levels of all blocks so far."""
        powers = list(self._powers)
        total = self._total
        if self._carry is not None:
            powers.append(_loudest(self._carry[None, :, :]))
            total += float(np.vdot(self._carry, self._carry))
        ends = [part for part in (self._tail, self._carry) if part is not None]
        end = np.concatenate(ends)[None, -self._hop :, :] if ends else np.zeros((1, 1, 1), np.float32)
        return Levels(
            frames=self._frames,
            sample_rate_hz=self._rate,
            hop_frames=self._hop,
            power=np.concatenate(powers) if powers else np.empty(0, np.float32),
            last_power=float(_loudest(end)[0]),
            end_power=float(_loudest(end[:, -max(1, self._hop // 4) :, :])[0]),
            peak=self._peak,
            mean_power=total / self._samples if self._samples else 0.0,
            clipped_share=self._clipped / self._samples if self._samples else 0.0,
        )

    def _power_of(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean square of each window's loudest channel, and add to the total."""
        if windows.shape[2] == 1:
            flat = windows[:, :, 0]
            power = np.einsum("ij,ij->i", flat, flat)
            self._total += float(power.sum(dtype=np.float64))
        else:
            every = np.einsum("ijk,ijk->ik", windows, windows)
            self._total += float(every.sum(dtype=np.float64))
            power = every.max(axis=1)
        mean: NDArray[np.float32] = power / np.float32(self._hop)
        return mean

    def _note_peak(self, block: NDArray[np.float32]) -> None:
        peak = max(float(block.max()), -float(block.min()))
        self._peak = max(self._peak, peak)
        if peak >= FULL_SCALE and len(block) >= CLIP_RUN:
            full = np.abs(block) >= FULL_SCALE
            runs = full[:-2] & full[1:-1] & full[2:]
            hit = np.zeros(block.shape, bool)
            for shift in range(CLIP_RUN):
                hit[shift : len(hit) - (CLIP_RUN - 1 - shift)] |= runs
            self._clipped += int(np.count_nonzero(hit))


def _loudest(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean square of each window's loudest channel, from windows x frames x channels."""
    power: NDArray[np.float32] = np.mean(windows * windows, axis=1, dtype=np.float32).max(axis=1)
    return power


def quiet_below_dbfs(levels: Levels) -> float:
    """Return the level below which a window of this recording counts as a pause.

    Just above the noise of the room (its quietest tenth, plus 6 dB), though no stricter than `SILENCE_DBFS`; but
    always 20 dB below the speech (its loudest twentieth), and never above -40 dBFS, so that no word is taken for
    a pause however noisy the room.
    """
    if not len(levels.power):
        return SILENCE_DBFS
    noise, speech = (to_dbfs(float(power)) for power in np.percentile(levels.power, (10, 95)))
    return max(FLOOR_DBFS, min(max(noise + 6.0, SILENCE_DBFS), speech - 20.0, -40.0))


def runs_below(power: NDArray[np.float32], limit: float, least: int) -> list[tuple[int, int]]:
    """Find runs of at least `least` windows below `limit`: first window, and the one past the last."""
    quiet = np.concatenate(([False], power < limit, [False]))
    edges = np.flatnonzero(quiet[1:] != quiet[:-1]).reshape(-1, 2)
    return [(int(first), int(last)) for first, last in edges if last - first >= least]
