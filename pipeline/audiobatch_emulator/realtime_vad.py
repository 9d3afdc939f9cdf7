"""Voice activity in the input buffer: where speech begins, and when it has ended.

The service's detector is a network; this one looks at the level of 20 ms frames. `threshold` (0 to 1) is a
level between -60 and -20 dBFS, so that the default 0.5 lies 15 dB under quiet speech. The three settings and
what they do to the buffer are the service's: speech begins `prefix_padding_ms` before it was noticed, ends
after `silence_duration_ms` without any, and what lies between two speeches is dropped, not billed.

Source: the Realtime reference (`turn_detection`); developers.openai.com/api/docs/guides/realtime-vad.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAME_MS = 20
#: A click is no speech: so many frames in a row begin one.
FEWEST_FRAMES = 3
_QUIETEST_DBFS, _RANGE_DB = -60.0, 40.0
Samples = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """`at_ms` since the session's first audio, padding included."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """`at_ms` since the session's first audio; `samples` is what was said, padding and last silence too."""

    at_ms: int
    samples: Samples


class VoiceDetector:
    """Takes a session's audio as it comes; gives what it notices.

    Kept in whole frames, so that nothing that was looked at is copied again.
    """

    def __init__(
        self,
        rate_hz: int,
        *,
        threshold: float | None,
        prefix_padding_ms: int,
        silence_ms: int,
    ) -> None:
        """Makes a detector; with `threshold` None it notices nothing, and holds all for a commit by hand."""
        self._rate_hz = rate_hz
        self._frame = rate_hz * FRAME_MS // 1000
        self._least_dbfs = None if threshold is None else _QUIETEST_DBFS + _RANGE_DB * threshold
        self._padding_frames = prefix_padding_ms // FRAME_MS
        self._silence_frames = max(1, silence_ms // FRAME_MS)
        self._frames: deque[Samples] = deque()
        self._rest: Samples = np.zeros(0, np.int16)
        self._past_frames = 0
        self._held = 0
        self._loud = 0
        self._quiet = 0
        self.speaking = False

    def add(self, samples: Samples) -> list[SpeechStarted | SpeechStopped]:
        """Adds more audio."""
        noticed: list[SpeechStarted | SpeechStopped] = []
        if self._least_dbfs is None:
            self._frames.append(samples)
            self._held += len(samples)
            return noticed
        pending = np.concatenate((self._rest, samples))
        whole = len(pending) - len(pending) % self._frame
        for start in range(0, whole, self._frame):
            frame = pending[start : start + self._frame]
            self._frames.append(frame)
            self._past_frames += 1
            change = self._quieter(frame) if self.speaking else self._louder(frame)
            if change is not None:
                noticed.append(change)
        self._rest = pending[whole:]
        return noticed

    @property
    def held(self) -> int:
        """Samples that a commit by hand would take."""
        return self._held if self._least_dbfs is None else len(self._frames) * self._frame + len(self._rest)

    def take(self) -> Samples:
        """Returns everything that is held, for a commit by hand; the detector goes on with what comes next."""
        taken = np.concatenate((*self._frames, self._rest))
        self.clear()
        return taken

    def clear(self) -> None:
        """Forget what is held."""
        self._frames.clear()
        self._rest = self._rest[:0]
        self._held = self._loud = self._quiet = 0
        self.speaking = False

    def _louder(self, frame: Samples) -> SpeechStarted | None:
        self._loud = self._loud + 1 if self._is_loud(frame) else 0
        while len(self._frames) > self._padding_frames + FEWEST_FRAMES:
            self._frames.popleft()
        if self._loud < FEWEST_FRAMES:
            return None
        self.speaking, self._loud, self._quiet = True, 0, 0
        return SpeechStarted((self._past_frames - len(self._frames)) * FRAME_MS)

    def _quieter(self, frame: Samples) -> SpeechStopped | None:
        self._quiet = 0 if self._is_loud(frame) else self._quiet + 1
        if self._quiet < self._silence_frames:
            return None
        said = np.concatenate(tuple(self._frames))
        self._frames.clear()
        self.speaking, self._loud, self._quiet = False, 0, 0
        return SpeechStopped(self._past_frames * FRAME_MS, said)

    def _is_loud(self, frame: Samples) -> bool:
        power = float(np.mean((frame.astype(np.float32) / 32768) ** 2))
        return self._least_dbfs is not None and 10 * np.log10(max(power, 1e-12)) > self._least_dbfs
