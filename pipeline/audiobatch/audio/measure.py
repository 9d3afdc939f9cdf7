"""Measure a reply's sound from its samples, and check its sound and transcript.

The service's headers do not hold the true duration.

Checks tell what a listener would want to know before listening. Each threshold names its source. A check is a flag
for a person: a wrong flag costs a look, a missed one costs a bad file in the product. The limits therefore lean
towards flagging, as far as clean replies allow. The transcript is checked for refusals, and for whether it is the
text that was to be read aloud.
"""

from __future__ import annotations

import io
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from audiobatch.audio.decode import NotAudio, open_sound
from audiobatch.audio.levels import LevelMeter, Levels, to_dbfs
from audiobatch.audio.wav import is_wav, read_layout
from audiobatch.model import Check

#: `pcm16` as the service sends it, without a header.
PCM16_RATE_HZ = 24_000
#: Windows measured at a time: the float32 copy of 5 s at 24 kHz stays in the processor's cache.
_WINDOWS_A_BLOCK = 256
#: The sound stops at full level: its last 20 ms, and its last 5, are within this of the level while speaking. A
#: word's own end falls by 30 dB and more; one that was trimmed closely and faded over 20 ms passes by the last 5.
#: Measured on the ten local voices: of cuts at random moments 60 to 67 % end so (the others fall into pauses
#: and soft consonants), of whole replies none, of replies cut hard after their last sound, without a fade, 34 %.
#: A rule that asks for a fall before the end as well (3 to 12 dB in 60 to 200 ms) spares such replies, and misses
#: as many cuts more.
ABRUPT_WITHIN_DB = 12.0
#: ... and are themselves loud: below this an end is heard as an end.
ABRUPT_ABOVE_DBFS = -36.0
_SPEAKING_PERCENTILE = 75

#: No sample is above this: digital silence, or the dither of an encoder. Noise of 16 bits peaks near -90 dBFS,
#: and codecs leave less than -70 where the input was silent.
SILENT_PEAK_DBFS = -60.0
#: There is sound, but no speech that a listener would hear: spoken replies measure -30 to -15 dBFS RMS, and
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
#: Time that even the shortest utterance takes, added to every reply before it counts as too fast.
_GRACE_S = 0.5

#: Han, kana and hangul: a character is a syllable or a word.
WIDE_CHARACTER = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
#: Share of words that may differ between a text and its reading. Numbers and abbreviations that are spelt out make
#: a few; an answer instead of a reading differs in nearly all.
NOT_VERBATIM_SHARE = 0.15
#: A text of up to this many words must agree in every letter: one different word is already a third of it.
_SHORT_TEXT_WORDS = 4
#: Refusals come at the beginning: a reply may quote or describe one later.
_REFUSAL_LOOKED_AT_CHARS = 240
_GREETING = r"\W*(?:(?:oh|hi|hello|hey|well|thank you[^.!?]*|thanks[^.!?]*)[\s,.!-]+)?"
_APOLOGY = (
    r"(?:(?:(?:i|we)(?: am| are|'m|'re) (?:so |very |really |truly |afraid )?)?sorry"
    r"|(?:i|we) apologi[sz]e|my apologies|unfortunately|regrettably|i(?:'m| am) afraid)"
)
_CANNOT = (
    r"(?:i|we)(?: (?:really|simply|just))?"
    r"(?: can't| cannot| can not| won't| will not| must decline to| have to decline to"
    r"|(?: am|'m| are|'re) (?:not able to|unable to|not comfortable)| don't feel comfortable)"
    r"(?! wait| help (?:but|feeling|thinking|wondering|noticing))"
)
_HELP = (
    r"(?:help|assist|comply|do that|fulfill?|provide|continue|discuss|engage|support|share|create|generate"
    r"|answer|identify|participate|process|transcribe|listen|hear|read|say|speak)(?:ing)?"
)
_REFERENCE = r"(?:with )?(?:that|this|it|those|your|the (?:request|content|speaker|person|audio|recording))"
REFUSAL = re.compile(
    rf"{_GREETING}(?:"
    rf"{_APOLOGY}\b[^.!?]{{0,40}}?\b{_CANNOT} (?:\w+ ){{0,3}}?{_HELP}\b"
    rf"|{_APOLOGY}\b[^.!?]{{0,20}}?\bunable to {_HELP}\b"
    rf"|{_CANNOT} (?:\w+ ){{0,2}}?{_HELP}\b(?: \w+){{0,3}}? {_REFERENCE}\b"
    rf"|as an ai\b[^.!?]{{0,40}}?\b{_CANNOT}\b"
    r")",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What the samples of a reply show.

    Attributes:
        clipped_share: share of samples within a run of three or more at full scale, 0 to 1.
        silence_share: share of 20 ms windows below -50 dBFS, 0 to 1.
        ends_abruptly: the last 20 ms are about as loud as the speech before them.
    """

    duration_s: float
    sample_rate_hz: int
    channels: int
    peak_dbfs: float
    rms_dbfs: float
    clipped_share: float
    silence_share: float
    ends_abruptly: bool


def measure(data: bytes, format: str) -> Clip:  # noqa: A002 - the service's own word for it
    """Decode a reply and measure it.

    Args:
        data: an encoded file; for `pcm16` bare samples at 24 kHz, one channel.
        format: the requested format; it identifies `pcm16` only, content identifies the others.

    Raises:
        ValueError: the bytes cannot be decoded, or hold no samples.
    """
    if format == "pcm16" and not is_wav(data[:12]):
        return _measure_int16(data, 0, len(data) // 2, PCM16_RATE_HZ, 1)
    if is_wav(data[:12]):
        layout = read_layout(io.BytesIO(data), len(data))
        if layout.codec == "pcm_s16le":
            return _measure_int16(
                data, layout.data_offset, layout.frames, layout.sample_rate_hz, layout.channels
            )
    with open_sound(io.BytesIO(data), len(data)) as sound:
        meter = LevelMeter(sound.sample_rate_hz)
        for block in sound.blocks():
            meter.add(block)
        return _clip(meter.result(), sound.channels)


def _measure_int16(data: bytes, offset: int, frames: int, sample_rate_hz: int, channels: int) -> Clip:
    """Measure 16-bit samples in place; only a block at a time becomes float32."""
    samples = np.frombuffer(data, "<i2", frames * channels, offset).reshape(frames, channels)
    meter = LevelMeter(sample_rate_hz)
    step = meter.hop_frames * _WINDOWS_A_BLOCK
    for start in range(0, frames, step):
        meter.add(samples[start : start + step] * np.float32(1 / 32768))
    return _clip(meter.result(), channels)


def _clip(levels: Levels, channels: int) -> Clip:
    if not levels.frames:
        raise NotAudio("it holds no samples")
    return Clip(
        duration_s=levels.duration_s,
        sample_rate_hz=levels.sample_rate_hz,
        channels=channels,
        peak_dbfs=levels.peak_dbfs,
        rms_dbfs=levels.rms_dbfs,
        clipped_share=levels.clipped_share,
        silence_share=levels.silence_share,
        ends_abruptly=_ends_abruptly(levels),
    )


def _ends_abruptly(levels: Levels) -> bool:
    last_dbfs = min(to_dbfs(levels.last_power), to_dbfs(levels.end_power))
    if last_dbfs < ABRUPT_ABOVE_DBFS:
        return False
    speaking_dbfs = to_dbfs(float(np.percentile(levels.power, _SPEAKING_PERCENTILE)))
    return last_dbfs >= speaking_dbfs - ABRUPT_WITHIN_DB


def check_reply(
    *,
    clip: Clip | None,
    transcript: str,
    text: str,
    wants_audio: bool,
    finish_reason: str,
    verbatim_of: str | None,
) -> tuple[Check, ...]:
    """Return the checks that a reply does not pass, in the order of `Check`; empty for a good one.

    Args:
        clip: the reply's sound as measured, None where there is none.
        transcript: the service's transcript of the reply's sound.
        text: the reply's text part.
        finish_reason: the service's; `length` means that it ran out of tokens.
        verbatim_of: the text that was to be read aloud, None where the model was to answer.
    """
    found: set[Check] = set()
    if finish_reason == "length":
        found.add(Check.TRUNCATED)
    spoken = transcript or text
    if spoken and is_refusal(spoken):
        found.add(Check.REFUSAL)
    if wants_audio and clip is None and text.strip():
        found.add(Check.TEXT_ONLY)
    if clip is not None:
        found |= _sound_checks(clip)
        if not transcript.strip():
            found.add(Check.NO_TRANSCRIPT)
        elif _has_odd_rate(transcript, clip):
            found.add(Check.SPEECH_RATE)
    if verbatim_of is not None and spoken.strip() and not reads_like(verbatim_of, spoken):
        found.add(Check.NOT_VERBATIM)
    return tuple(check for check in Check if check in found)


def _sound_checks(clip: Clip) -> set[Check]:
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


def _has_odd_rate(transcript: str, clip: Clip) -> bool:
    """Whether the transcript is too long or too short for this much speech."""
    chars: float = sum(char.isalnum() or char == " " for char in transcript)
    chars += (_WIDE_CHAR_WEIGHT - 1) * len(WIDE_CHARACTER.findall(transcript))
    chars += (_DIGIT_WEIGHT - 1) * sum(char.isdigit() for char in transcript)
    if chars > FASTEST_CHARS_PER_S * (clip.duration_s + _GRACE_S):
        return True
    sounding_s = clip.duration_s * (1 - clip.silence_share)
    return sounding_s >= _SHORTEST_RATED_S and chars < SLOWEST_CHARS_PER_SOUNDING_S * sounding_s


def is_refusal(transcript: str) -> bool:
    """Whether a reply begins as the models' refusals do (English only)."""
    return REFUSAL.match(" ".join(_plain(transcript)[:_REFUSAL_LOOKED_AT_CHARS].split())) is not None


def reads_like(wanted: str, said: str) -> bool:
    """Whether `said` is `wanted` read aloud: at most `NOT_VERBATIM_SHARE` of the words differ.

    Case, punctuation, spacing and how accents are encoded do not count.
    """
    want, have = spoken_words(wanted), spoken_words(said)
    if "".join(want) == "".join(have):
        return True
    if len(want) <= _SHORT_TEXT_WORDS:
        return False
    most = int(NOT_VERBATIM_SHARE * len(want))
    return word_distance(want, have, at_most=most) <= most


def spoken_words(text: str) -> list[str]:
    """Split a text into its words as spoken: no case, no punctuation; a wide character is a word."""
    apart = WIDE_CHARACTER.sub(r" \g<0> ", _plain(text).casefold())
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", apart)


def word_distance(want: list[str], have: list[str], *, at_most: int) -> int:
    """Return the least number of words changed, removed or added; `at_most + 1` where it is more than `at_most`.

    Only the band that can still give `at_most` is computed: cost is words x band, memory one row.
    """
    start = 0
    while start < min(len(want), len(have)) and want[start] == have[start]:
        start += 1
    stop = 0
    while stop < min(len(want), len(have)) - start and want[-1 - stop] == have[-1 - stop]:
        stop += 1
    want, have = want[start : len(want) - stop], have[start : len(have) - stop]
    over = at_most + 1
    if abs(len(want) - len(have)) > at_most:
        return over
    row = [min(j, over) for j in range(len(have) + 1)]
    for i, wanted in enumerate(want, 1):
        first, last = max(1, i - at_most), min(len(have), i + at_most)
        corner, row[first - 1] = row[first - 1], i if first == 1 else over
        for j in range(first, last + 1):
            above = row[j] if j < i + at_most else over
            cost = corner if wanted == have[j - 1] else 1 + min(corner, above, row[j - 1])
            corner, row[j] = row[j], min(cost, over)
    return row[len(have)]


def _plain(text: str) -> str:
    """Normalize a text: one encoding for each letter, one kind of apostrophe."""
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'").strip()
