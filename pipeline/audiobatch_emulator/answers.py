"""What the emulator says.

There is no model here. The answer is made of what was asked, of what was heard and measured, and of what was
said before; the same conversation always gets the same answer. Where a system message asks for a word-for-
word reading, the answer is the user's text itself.
"""

import re
from dataclasses import dataclass

from audiobatch_emulator.hearing import Hearing
from audiobatch_emulator.json_answer import asks_for_json, json_answer

MOST_WORDS_QUOTED = 40
CONFIDENT = 0.5

_VERBATIM = re.compile(
    r"""
    \b word [\s\-\u2010-\u2015]* (for|by) [\s\-\u2010-\u2015]* word \b
    | \b verbatim \b
    | \b (read | speak | say | repeat | recite) \b [^.!?\n]{0,80} \b (aloud | out \s loud)
    | \b (read | speak | say | repeat | recite) \b [^.!?\n]{0,80} \b exactly \b
    | \b exactly \s+ (as (\s it \s is)? \s+ (written|given) | the (se)? \s+ (words|text) | what \s the \s user)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_NEGATED = re.compile(r"\b(do\s+not|don['\u2019]t|never|not)\b[^.!?\n]{0,30}$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A turn of the conversation as the emulator understands it."""

    role: str
    text: str
    hearings: tuple[Hearing, ...] = ()


def reads_verbatim(instruction: str) -> bool:
    """Returns whether an instruction asks that the user's text be spoken as it stands."""
    return any(not _NEGATED.search(instruction[: match.start()]) for match in _VERBATIM.finditer(instruction))


def answer(turns: tuple[Heard, ...]) -> str:
    """Returns the reply to the last user turn, in plain sentences."""
    system = "\n".join(turn.text for turn in turns if turn.role in ("system", "developer"))
    talk = [turn for turn in turns if turn.role in ("user", "assistant")]
    last = next((turn for turn in reversed(talk) if turn.role == "user"), None)
    if last is None:
        return "Nothing was asked yet."
    if reads_verbatim(system) and last.text.strip():
        return last.text.strip()
    if asks_for_json(f"{system}\n{last.text}"):
        heard = [hearing.text for turn in talk for hearing in turn.hearings]
        said = [turn.text for turn in talk if turn is not last and turn.role == "assistant"]
        return json_answer(f"{system}\n{last.text}", " ".join([*heard, *said]))
    if last.hearings:
        return _of_recordings(last)
    earlier = talk[: talk.index(last)]
    if earlier:
        return _follow_up(last, earlier)
    return (
        f"You asked: {quote(last.text)} This is a short answer from a local stand-in for the model, which "
        "knows no more than your question."
    )


def _of_recordings(turn: Heard) -> str:
    asked = f"You asked: {quote(turn.text)} " if turn.text.strip() else ""
    return asked + " ".join(map(describe, turn.hearings))


def _follow_up(last: Heard, earlier: list[Heard]) -> str:
    recordings = [hearing for turn in earlier for hearing in turn.hearings]
    said = next((turn.text for turn in reversed(earlier) if turn.role == "assistant" and turn.text), "")
    basis = f"Earlier I said: {quote(said)}" if said else "I had said nothing yet."
    if recordings:
        basis = f"{describe(recordings[-1])} {basis}"
    return f"You now ask: {quote(last.text)} {basis}"


def describe(hearing: Hearing) -> str:
    """Returns what was heard in a recording, and the measured facts of it."""
    length = f"The recording lasts {hearing.duration_s:.1f} seconds"
    level = f"Its level is {hearing.level_dbfs:.0f} decibels below full scale".replace("-", "")
    silence = f"{100 * hearing.silence_share:.0f} percent of it is silence"
    if not hearing.text.strip():
        return f"{length}. I could make out no words in it. {level}, and {silence}."
    pitch = f" in a voice of about {hearing.pitch_hz:.0f} hertz" if hearing.pitch_hz else ""
    doubt = "" if hearing.confidence >= CONFIDENT else " I am not sure of every word."
    return f"{length}. I heard{pitch}: {quote(hearing.text)}{doubt} {level}, and {silence}."


def quote(words: str) -> str:
    """Returns a text as part of a sentence: on one line, not too long, with a mark at its end."""
    kept = words.split()
    if not kept:
        return "nothing."
    cut = " ".join(kept[:MOST_WORDS_QUOTED])
    if len(kept) > MOST_WORDS_QUOTED:
        return cut.rstrip(".,;:!?") + ", and so on."
    return cut if cut[-1] in ".!?" else cut + "."


def shortened(text: str, share: float) -> str:
    """Returns the first words of a text, about `share` (0 to 1) of it."""
    words = text.split(" ")
    return " ".join(words[: int(len(words) * min(max(share, 0.0), 1.0))])
