"""The voices: what each one sounds like, for the speech engine and for the tone generator alike.

A voice of the service is imitated by an eSpeak NG variant: which synthesiser renders it (`klatt`), between
which pitches it moves, and how long the vocal tract is (`formant_percent`, 100 being eSpeak's own speaker;
a longer tract has lower formants). Nothing here tries to sound like the service's voices; they are only
told apart easily, and understood well when they are heard back.
"""

import hashlib
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """One voice. `name` is a plain word, so that it can be a file's name."""

    name: str
    language: str  # of eSpeak NG, as `en-us`
    klatt: int  # 1-6, the Klatt synthesiser's voicing source
    low_pitch_hz: int
    high_pitch_hz: int
    formant_percent: int
    words_per_minute: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", self.name):
            raise ValueError(f"a voice's name is up to 32 of a-z, 0-9 and _, not {self.name!r}")
        if not 40 <= self.low_pitch_hz < self.high_pitch_hz <= 500:
            pitches = f"{self.low_pitch_hz}-{self.high_pitch_hz} Hz"
            raise ValueError(f"voice {self.name}: {pitches} is not a range of pitches within 40-500 Hz")

    def variant(self) -> str:
        """Returns the text of an eSpeak NG variant file that makes this voice."""
        lines = [
            "language variant",
            f"name {self.name}",
            f"klatt {self.klatt}",
            f"pitch {self.low_pitch_hz} {self.high_pitch_hz}",
            *(f"formant {formant} {self.formant_percent} 100 100" for formant in range(1, 7)),
        ]
        return "\n".join(lines) + "\n"


# Chosen by measurement: no two share a pitch range, and the recognizer understands each of them.
# fmt: off
KNOWN_VOICES: dict[str, Voice] = {
    name: Voice(
        name=name,
        language="en-us",
        klatt=klatt,
        low_pitch_hz=low_hz,
        high_pitch_hz=high_hz,
        formant_percent=formant,
        words_per_minute=pace,
    )
    for name, klatt, low_hz, high_hz, formant, pace in (
        ("alloy",   4,  110,  150,   103,     165),
        ("ash",     3,   80,  112,    98,     160),
        ("ballad",  4,   95,  140,    99,     150),
        ("coral",   4,  165,  230,   105,     165),
        ("echo",    5,   92,  128,   100,     160),
        ("sage",    3,  150,  200,   105,     150),
        ("shimmer", 3,  190,  265,   106,     160),
        ("verse",   5,  110,  167,   102,     170),
        ("marin",   5,  155,  215,   104,     150),
        ("cedar",   3,   68,   92,    96,     150),
        ("fable",   4,  125,  180,   105,     155),
        ("nova",    5,  200,  300,   106,     172),
        ("onyx",    5,   72,   98,    94,     155),
    )
}
# fmt: on


def voice_named(name: str) -> Voice:
    """Returns the voice of that name; for an unknown one (a custom voice's id) always the same invented one."""
    known = KNOWN_VOICES.get(name.lower())
    if known is not None:
        return known
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    low = 75 + digest[0] % 120
    return Voice(
        name="custom_" + digest[:8].hex(),
        language="en-us",
        klatt=3 + digest[1] % 3,
        low_pitch_hz=low,
        high_pitch_hz=low * 14 // 10,
        formant_percent=96 + (low - 75) * 10 // 120,
        words_per_minute=150 + digest[2] % 20,
    )
