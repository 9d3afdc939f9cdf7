"""What was heard in a recording, and what was measured of it."""

from dataclasses import dataclass

CACHED_HEARINGS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardWord:
    """A word, when it was said, and how sure the recognizer is (0 to 1; of right ones mostly over 0.5)."""

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """What a recording holds. `text` is empty where no speech was made out, and `confidence` is then 0."""

    text: str
    confidence: float  # the mean of the words'
    duration_s: float
    level_dbfs: float  # RMS, relative to full scale; -120 for digital silence
    silence_share: float  # 0 to 1
    pitch_hz: float | None  # the median of the voiced parts; None where there is no voice
    words: tuple[HeardWord, ...]
