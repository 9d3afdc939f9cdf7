"""What a listener would want to know of a reply before listening to it.

Each threshold says where it comes from. A check is a flag for a person, so that a wrong flag costs a look and
a missed one costs a bad file in the product: the limits lean towards flagging, by as much as clean replies
allow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiobatch.audio.wording import WIDE_CHARACTER, is_refusal, reads_like
from audiobatch.model import Check

if TYPE_CHECKING:
    from audiobatch.audio.measure import Clip

#: No sample above this: digital silence, or the dither of an encoder. Noise of 16 bits peaks near -90 dBFS,
#: and codecs leave less than -70 where the input was silent.
SILENT_PEAK_DBFS = -60.0

#: Something is there, but no speech a listener would hear: spoken replies measure -30 to -15 dBFS RMS, and
#: EBU R128 aims at -23; 20 dB less than the quietest of them.
NEAR_SILENT_RMS_DBFS = -50.0
#: … or nearly all of it is silence: pauses take up to half of slow speech.
NEAR_SILENT_SHARE = 0.95

#: Share of samples in flat tops at full scale. A clean reply has none; from about one in two thousand on it
#: can be heard as crackle.
CLIPPED_SHARE = 0.0005

#: Characters of transcript a second of sound. Speech is 10 to 17 in European languages at 130 to 190 words a
#: minute (Pellegrino, Coupé, Marsico 2011, in Language 87: 5.2 to 7.8 syllables a second), and as much as 25
#: while it sounds. More than this over the whole reply cannot be said; less than this over its sounding windows
#: is not all of what was said.
FASTEST_CHARS_PER_S = 28.0
SLOWEST_CHARS_PER_SOUNDING_S = 6.0
#: Han, kana and hangul carry a syllable or more a character, so that they count as this many.
_WIDE_CHAR_WEIGHT = 2.5
#: A digit is read as a word: "742" is said as long as "seven hundred and forty-two".
_DIGIT_WEIGHT = 5.0
#: Under this length a "Yes." drawn out says nothing about speed.
_SHORTEST_RATED_S = 1.5
#: Time that even the shortest utterance takes, given to every reply before it counts as too fast.
_GIVEN_S = 0.5


def check_reply(
    *,
    clip: Clip | None,
    transcript: str,
    text: str,
    wants_audio: bool,
    finish_reason: str,
    verbatim_of: str | None,
) -> tuple[Check, ...]:
    """The checks that a reply does not pass, in the order of `Check`; empty for a good one.

    Args:
        clip: the reply's sound as measured, None where none came.
        transcript: what the service says was said.
        text: the reply's text part.
        finish_reason: the service's; `length` means that it ran out of tokens.
        verbatim_of: the text that was to be read aloud, None where the model was to answer.
    """
    found: set[Check] = set()
    if finish_reason == "length":
        found.add(Check.TRUNCATED)
    words = transcript or text
    if words and is_refusal(words):
        found.add(Check.REFUSAL)
    if wants_audio and clip is None and text.strip():
        found.add(Check.TEXT_ONLY)
    if clip is not None:
        found |= _of_sound(clip)
        if not transcript.strip():
            found.add(Check.NO_TRANSCRIPT)
        elif _odd_rate(transcript, clip):
            found.add(Check.SPEECH_RATE)
    if verbatim_of is not None and words.strip() and not reads_like(verbatim_of, words):
        found.add(Check.NOT_VERBATIM)
    return tuple(check for check in Check if check in found)


def _of_sound(clip: Clip) -> set[Check]:
    if clip.peak_dbfs < SILENT_PEAK_DBFS:
        return {Check.SILENT}
    if clip.rms_dbfs < NEAR_SILENT_RMS_DBFS or clip.silence_share >= NEAR_SILENT_SHARE:
        return {Check.NEAR_SILENT}
    found: set[Check] = set()
    if clip.clipped_share >= CLIPPED_SHARE:
        found.add(Check.CLIPPED)
    if clip.ends_abruptly:
        found.add(Check.TRUNCATED)
    return found


def _odd_rate(transcript: str, clip: Clip) -> bool:
    """Whether so many characters cannot be this much speech."""
    chars: float = sum(char.isalnum() or char == " " for char in transcript)
    chars += (_WIDE_CHAR_WEIGHT - 1) * len(WIDE_CHARACTER.findall(transcript))
    chars += (_DIGIT_WEIGHT - 1) * sum(char.isdigit() for char in transcript)
    if chars > FASTEST_CHARS_PER_S * (clip.duration_s + _GIVEN_S):
        return True
    sounding_s = clip.duration_s * (1 - clip.silence_share)
    return sounding_s >= _SHORTEST_RATED_S and chars < SLOWEST_CHARS_PER_SOUNDING_S * sounding_s
