"""Checks on replies: a seeded corpus of good replies, near misses and defects, with precision and recall."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from audiobatch.audio.measure import Clip, check_reply, measure
from audiobatch.audio.wav import pcm_to_wav
from audiobatch.model import Check
from audiobatch_emulator.speech import SAMPLE_RATE_HZ, open_speech

VOICES = ("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar")
TEXTS = (
    "Yes.",
    "Good morning, everyone.",
    "The train to Leeds leaves at a quarter past nine.",
    "Please leave your message after the tone and we will call you back.",
    "Your number is 742913, and your table is 12.",
    "What a lovely day it is, isn't it?",
    "I heard a recording about gardening; the speaker is calm, and says sorry twice.",
    "In the beginning there was nothing but the sea and the sky above it, and no one to see either.",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, I can't identify the speaker from the audio.",
    "Sorry, I cannot assist with this request.",
    "Unfortunately, I am unable to process that recording.",
    "I can't help with that. Is there something else?",
    "As an AI language model, I cannot listen to that.",
    "I'm afraid I can't do that.",
    "I apologize, but I'm not able to transcribe this content.",
    "I'm really sorry, but I won't be able to continue with this conversation.",
)
NO_REFUSALS = (
    "I'm sorry to hear that you can't sleep. Try to read a little before you go to bed.",
    "Sorry, the shop is closed on Sundays.",
    "I can't wait to help you with that party!",
    "The speaker says: I'm sorry, I can't help with that.",
    "Unfortunately, the train was late, and we could not get there.",
    "I cannot recommend this book enough.",
    "I can't help but share this story with you.",
    "The caller apologizes and says that he cannot come.",
)


@dataclass(frozen=True)
class Reply:
    kind: str
    expected: frozenset[Check]
    pcm: np.ndarray | None
    transcript: str
    text: str = ""
    finish_reason: str = "stop"
    verbatim_of: str | None = None

    def found(self) -> frozenset[Check]:
        clip = None if self.pcm is None else measure(pcm_to_wav(self.pcm.astype("<i2").tobytes()), "wav")
        return frozenset(
            check_reply(
                clip=clip,
                transcript=self.transcript,
                text=self.text,
                wants_audio=True,
                finish_reason=self.finish_reason,
                verbatim_of=self.verbatim_of,
            )
        )


async def spoken() -> list[tuple[str, str, np.ndarray]]:
    speech = open_speech("real")
    try:
        return [
            (voice, text, np.frombuffer(await speech.say(text, voice), "<i2"))
            for voice in VOICES
            for text in TEXTS
        ]
    finally:
        await speech.aclose()


def loud_moment(pcm: np.ndarray, random: np.random.Generator) -> int:
    """A frame inside a vowel: where the 20 ms before it are as loud as the loudest quarter."""
    power = np.array([np.mean(pcm[at - 480 : at].astype(float) ** 2) for at in range(480, len(pcm), 240)])
    loud = np.flatnonzero(power >= np.percentile(power, 75))
    return 480 + 240 * int(random.choice(loud[loud > len(power) // 4]))


def replies(voices: list[tuple[str, str, np.ndarray]]) -> list[Reply]:
    """Good ones, near misses of every check, and every defect; the same ones every time."""
    random = np.random.default_rng(2026)
    every: list[Reply] = []

    def add(kind: str, pcm: np.ndarray | None, transcript: str, *expected: Check, **more: str) -> None:
        every.append(Reply(kind, frozenset(expected), pcm, transcript, **more))

    for number, (_, text, pcm) in enumerate(voices):
        loudest = np.abs(pcm.astype(int)).max()
        inside = np.flatnonzero(np.abs(pcm.astype(int)) > loudest / 100)
        tight = pcm[inside[0] : inside[-1] + 1] * np.minimum(
            1, np.arange(inside[-1] - inside[0], -1, -1) / 480
        )
        pause = np.zeros(SAMPLE_RATE_HZ // 2)
        add("good", pcm, text, verbatim_of=text)
        add("near: trimmed to the last word", tight, text)
        add("near: a peak at full scale", pcm * (32767 / loudest), text)
        add("near: soft", pcm * (10 ** (-12 / 20)), text)
        add("near: pauses around it", np.concatenate((pause, pcm, pause)), text)
        add("near: other punctuation", pcm, text.upper().replace(",", ""), verbatim_of=text)
        add("near: sorry, but no refusal", pcm, NO_REFUSALS[number % len(NO_REFUSALS)][: len(text) * 3 // 2])
        add("silence", pcm * 0, text, Check.SILENT)
        add("dither", random.integers(-2, 3, len(pcm)), text, Check.SILENT)
        add("nearly silent", pcm * (10 ** (-38 / 20)), text, Check.NEAR_SILENT)
        add("clipped", np.clip(pcm * 12.0 * 8000 / loudest, -32768, 32767), text, Check.CLIPPED)
        add("out of tokens", pcm, text, Check.TRUNCATED, finish_reason="length")
        add("no transcript", pcm, "", Check.NO_TRANSCRIPT)
        add("text only", None, "", Check.TEXT_ONLY, text=text)
        if len(pcm) > 1.5 * SAMPLE_RATE_HZ:
            cut = loud_moment(pcm, random)
            add("cut in a vowel", pcm[:cut], text[: max(1, len(text) * cut // len(pcm))], Check.TRUNCATED)
            add("words of another reply", pcm, " ".join([text] * 4), Check.SPEECH_RATE)
            rest = np.concatenate((pcm, *(voice for _, _, voice in voices[:4])))
            add("half of the words missing", rest, text[: len(text) // 4], Check.SPEECH_RATE)
            other = "I would say that this is a question of taste."
            add("an answer instead", pcm, other, Check.NOT_VERBATIM, verbatim_of=text)
    for refusal in REFUSALS:
        pcm = np.concatenate([voices[2][2]])
        add("refusal", pcm, refusal, Check.REFUSAL)
    return every


#: What is told from the sound and its words; a body that had to be repaired is the transports' to tell.
HEARD = [check for check in Check if check is not Check.REPAIRED]


def test_every_check_finds_its_defects_and_leaves_good_replies_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stats: dict[Check, Counter[str]] = {check: Counter() for check in HEARD}
    mistakes: Counter[str] = Counter()
    corpus = replies(asyncio.run(spoken()))
    for reply in corpus:
        found = reply.found()
        for checked in HEARD:
            outcome = ("miss" if checked in reply.expected else "") or "quiet"
            if checked in found:
                outcome = "hit" if checked in reply.expected else "false"
            stats[checked][outcome] += 1
            if outcome in ("miss", "false"):
                mistakes[f"{checked} {outcome}: {reply.kind}"] += 1
    with capsys.disabled():
        print(f"\n{len(corpus)} replies\n{'check':<14}{'precision':>10}{'recall':>8}{'defects':>9}")
        for check, count in stats.items():
            defects = count["hit"] + count["miss"]
            precision = count["hit"] / max(1, count["hit"] + count["false"])
            print(f"{check:<14}{precision:>10.3f}{count['hit'] / max(1, defects):>8.3f}{defects:>9}")
        for mistake, times in mistakes.items():
            print(f"  {mistake}: {times}")
    for check, count in stats.items():
        assert count["hit"] + count["miss"] >= 9, check
        assert count["hit"] / (count["hit"] + count["miss"]) >= 0.95, check
        assert count["hit"] / max(1, count["hit"] + count["false"]) >= 0.95, check


def clip(**changed: float | bool) -> Clip:
    good: dict[str, Any] = {
        "duration_s": 5.0,
        "sample_rate_hz": 24_000,
        "channels": 1,
        "peak_dbfs": -3.0,
        "rms_dbfs": -20.0,
        "clipped_share": 0.0,
        "silence_share": 0.3,
        "ends_abruptly": False,
    }
    return Clip(**{**good, **changed})


def checks(*, sound: Clip | None, transcript: str = "", **more: object) -> tuple[Check, ...]:
    given: dict[str, Any] = {
        "text": "",
        "wants_audio": True,
        "finish_reason": "stop",
        "verbatim_of": None,
        **more,
    }
    return check_reply(clip=sound, transcript=transcript, **given)


def test_a_text_reply_that_was_asked_for_is_no_defect() -> None:
    assert checks(sound=None, text="It is a dog.", wants_audio=False) == ()


def test_other_scripts_are_rated_by_their_own_density() -> None:
    assert checks(sound=clip(), transcript="明日の朝九時に駅の前で会いましょう。切符は私が買います") == ()
    assert checks(sound=clip(duration_s=60.0), transcript="明日の朝九時") == (Check.SPEECH_RATE,)


@pytest.mark.parametrize(
    ("wanted", "said", "good"),
    [
        ("Good morning, everyone!", "good morning everyone", True),
        ("Café", "Cafe\u0301", True),
        ("Stop.", "Okay, I will stop.", False),
        ("one two three four five six seven eight", "one two three four five six seven nine", True),
        ("one two three four five six seven eight", "one two five four three six seven eight", False),
        ("明日の朝、駅で。", "明日の朝駅で", True),
    ],
)
def test_reading_aloud_is_compared_word_by_word(wanted: str, said: str, good: bool) -> None:
    found = checks(sound=clip(duration_s=len(said) / 12 + 0.5), transcript=said, verbatim_of=wanted)
    assert (Check.NOT_VERBATIM not in found) is good


def test_checks_come_in_one_order() -> None:
    found = checks(
        sound=clip(clipped_share=0.5, ends_abruptly=True), finish_reason="length", transcript="", text="x"
    )
    assert found == (Check.CLIPPED, Check.TRUNCATED, Check.NO_TRANSCRIPT)
