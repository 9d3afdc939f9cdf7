"""What is said, and when a text is read as it stands."""

import pytest

from audiobatch_emulator.answers import Heard, answer, quote, reads_verbatim, shortened
from audiobatch_emulator.hearing import Hearing


def hearing(text: str = "good morning", confidence: float = 0.9, pitch_hz: float | None = 120.0) -> Hearing:
    return Hearing(
        text=text,
        confidence=confidence,
        duration_s=2.5,
        level_dbfs=-20.4,
        silence_share=0.31,
        pitch_hz=pitch_hz,
        words=(),
    )


def user(text: str, *hearings: Hearing) -> Heard:
    return Heard(role="user", text=text, hearings=hearings)


@pytest.mark.parametrize(
    "instruction",
    [
        "Read the user's text aloud, word for word.",
        "Speak the text word-for-word.",
        "Repeat it word by word",
        "Read the following text verbatim",
        "Say exactly what the user wrote.",
        "You are a voice. Speak exactly the text that you are given; add nothing.",
        "Please read the message out loud",
        "Read aloud.",
        "Speak the user's message exactly as written.",
    ],
)
def test_instructions_to_read_aloud_are_understood(instruction: str) -> None:
    assert reads_verbatim(instruction)


@pytest.mark.parametrize(
    "instruction",
    [
        "",
        "Answer briefly.",
        "You are exactly as helpful as needed.",
        "Do not repeat the question word for word.",
        "Read the question and think.",
    ],
)
def test_other_instructions_are_not(instruction: str) -> None:
    assert not reads_verbatim(instruction)


def test_a_prompt_is_mentioned_in_the_answer() -> None:
    assert "Is a dog a pet?" in answer((user("Is a dog a pet?"),))


def test_only_the_system_can_ask_for_reading() -> None:
    system = Heard(role="developer", text="Read it verbatim.")
    assert answer((system, user("  Mind the gap  "))) == "Mind the gap"
    assert answer((user("Read this verbatim: x"),)) != "Read this verbatim: x"
    assert "good morning" in answer((system, user("", hearing())))


def test_a_recording_is_described_by_what_was_heard_and_measured() -> None:
    said = answer((user("Describe it.", hearing()),))
    assert "Describe it." in said
    assert "good morning" in said
    assert "2.5 seconds" in said
    assert "120 hertz" in said
    assert "20 decibels below full scale" in said
    assert "31 percent" in said
    assert "not sure" not in said


def test_doubt_and_silence_are_said() -> None:
    assert "not sure of every word" in answer((user("", hearing(confidence=0.2)),))
    silent = answer((user("", hearing(text="", confidence=0.0, pitch_hz=None)),))
    assert "no words" in silent
    assert "hertz" not in silent


def test_a_follow_up_knows_what_was_heard_and_said() -> None:
    turns = (user("Describe it.", hearing()), Heard(role="assistant", text="A voice."), user("Whose?"))
    said = answer(turns)
    assert all(words in said for words in ("Whose?", "good morning", "A voice."))


def test_without_a_user_there_is_nothing_to_answer() -> None:
    assert answer((Heard(role="system", text="Be kind."),)) == "Nothing was asked yet."


def test_quotes_are_one_sentence() -> None:
    assert quote("a\n b") == "a b."
    assert quote("Why?") == "Why?"
    assert quote("  ") == "nothing."
    assert quote("word " * 50).endswith("word, and so on.")


def test_shortening_keeps_whole_words() -> None:
    assert shortened("one two three four", 0.5) == "one two"
    assert shortened("one two", 0) == ""
    assert shortened("one two", 5) == "one two"
