"""The service's memory of its own spoken replies, by audio id, for about an hour.

Source: `expires_at` of captured replies, about created + 3600 s; community.openai.com/t/1046769.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_KEPT = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """A reply that was spoken: its words and its length."""

    id: str
    transcript: str
    duration_s: float
    created_at: int
    expires_at: int


class AudioMemory:
    """Remembers replies until they expire; the oldest go first where there are too many."""

    def __init__(self, *, life_s: float, now: Callable[[], float] = time.time) -> None:
        self._life_s = life_s
        self._now = now
        self._kept: OrderedDict[str, tuple[float, Spoken]] = OrderedDict()

    def keep(self, transcript: str, duration_s: float) -> Spoken:
        """Gives the reply an id: `audio_` and 32 hex digits, of which eight are the time."""
        now = self._now()
        spoken = Spoken(
            id=f"audio_{int(now):08x}{secrets.token_hex(12)}",
            transcript=transcript,
            duration_s=duration_s,
            created_at=int(now),
            expires_at=int(now + self._life_s),
        )
        self._kept[spoken.id] = (now + self._life_s, spoken)
        while self._kept and (len(self._kept) > MOST_KEPT or next(iter(self._kept.values()))[0] <= now):
            self._kept.popitem(last=False)
        return spoken

    def recall(self, audio_id: str) -> Spoken | None:
        """Returns the reply, or None where it has expired or never was."""
        found = self._kept.get(audio_id)
        return found[1] if found is not None and self._now() < found[0] else None

    def clear(self) -> None:
        """Forgets everything."""
        self._kept.clear()
