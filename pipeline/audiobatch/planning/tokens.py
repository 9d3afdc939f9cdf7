"""An item's turns as they will be asked: what each takes, and what it leaves for the next to carry along.

| what was said before goes along as | input tokens |
|---|---|
| a recording that went out at once | its sound, at each turn |
| a recording that went out in parts | not again: the joined words stand for it |
| a spoken reply whose audio id lives | its sound |
| any other reply | its words |

Chat completions refuse a request with sound on neither side, so that a follow-up in text is asked for with sound
where none is left (`transports/chat_request.py`): its reply is spoken, and paid for as such.

A `Range` is an amount that is not known yet. `ReplySizes` says how many tokens a call will take, before it is
made: what quotas are charged until `usage` says.

Sources of the rates: `prices.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from audiobatch.audio.split import PartCount
from audiobatch.config.prices import (
    AUDIO_IN_TOKENS_PER_S,
    AUDIO_OUT_TOKENS_PER_S,
    CHARACTERS_PER_TEXT_TOKEN,
)
from audiobatch.inputs.sound_settings import part_count, part_count_is_exact, sent_s
from audiobatch.limits.limiter import CallTokens
from audiobatch.planning.review_rules import text_of
from audiobatch.planning.worst_case import BOUND_TOKENS
from audiobatch.transports.chat_request import is_alive

if TYPE_CHECKING:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.model import Item, Outcome, Request, Turn

#: A spoken answer to a question of a sentence or two, before this job's own replies say better; and how much longer
#: it is for each second of a recording that it speaks of. Source: the sample jobs on the emulator.
FIRST_GUESS_AUDIO_S = 12.0
FIRST_GUESS_A_SECOND_HEARD = 0.7
FIRST_GUESS_TEXT_TOKENS = 120.0
#: Speech at a reader's pace. Source: the usual 150 to 160 words a minute.
CHARACTERS_PER_S = 15.0
MESSAGE_TOKENS = 8
#: How much the newest reply moves the mean: the last twenty or so decide.
_WEIGHT = 0.1


class ReplySizes:
    """What this job's replies have come to so far; its mean is the next estimate."""

    def __init__(self) -> None:
        self.audio_s = FIRST_GUESS_AUDIO_S
        self.text_tokens = FIRST_GUESS_TEXT_TOKENS
        self._spoken = self._written = 0

    def saw(self, outcome: Outcome) -> None:
        """Learn from a reply: the first ones count alike, then the newest a tenth; of parts, from their mean."""
        replies = outcome.parts or 1
        if outcome.audio_duration_s is not None:
            self._spoken += 1
            weight = max(_WEIGHT, 1 / self._spoken)
            self.audio_s += weight * (outcome.audio_duration_s / replies - self.audio_s)
        elif outcome.usage is not None:
            self._written += 1
            weight = max(_WEIGHT, 1 / self._written)
            self.text_tokens += weight * (outcome.usage.output_text_tokens / replies - self.text_tokens)

    def reply_s(self, heard_s: float) -> float:
        """How long a spoken reply is likely to be, to so many seconds of recording."""
        return self.audio_s if self._spoken else self.audio_s + FIRST_GUESS_A_SECOND_HEARD * heard_s

    @property
    def unasked_s(self) -> float:
        """How long a reply is likely to be that was wanted in text and is spoken all the same."""
        if not self._written:
            return self.audio_s
        return self.text_tokens * CHARACTERS_PER_TEXT_TOKEN / CHARACTERS_PER_S

    def call_tokens(self, request: Request, *, read_aloud: bool = False) -> CallTokens:
        """Input and output of one call."""
        into = input_tokens(request)
        return CallTokens(
            expected=into + self._reply_tokens(request, read_aloud=read_aloud),
            input=into,
            maximum=request.max_completion_tokens,
        )

    def _reply_tokens(self, request: Request, *, read_aloud: bool) -> float:
        if not request.wants_audio:
            tokens = self.text_tokens
        else:
            heard_s = request.audio.duration_s if request.audio else 0.0
            sound_s = len(request.text) / CHARACTERS_PER_S if read_aloud else self.reply_s(heard_s)
            tokens = sound_s * (AUDIO_OUT_TOKENS_PER_S + CHARACTERS_PER_S / CHARACTERS_PER_TEXT_TOKEN)
        return min(tokens, request.max_completion_tokens or tokens)


def input_tokens(request: Request) -> float:
    """What a request will be counted as; an earlier reply that is named by its id is heard again."""
    texts = [request.system, request.text, *(one.text for one in request.history)]
    sound_s = sum(one.audio.duration_s for one in request.history if one.audio)
    sound_s += request.audio.duration_s if request.audio else 0.0
    earlier_s = sum(len(one.reply.text) / CHARACTERS_PER_S for one in request.history)
    return (
        sum(map(len, texts)) / CHARACTERS_PER_TEXT_TOKEN
        + MESSAGE_TOKENS * (2 + 2 * len(request.history))
        + (sound_s + earlier_s) * AUDIO_IN_TOKENS_PER_S
    )


#: The figures of a range, in the order in which they are shown.
FIGURES = ("low", "expected", "high")


@dataclass(frozen=True, slots=True)
class Range:
    """The least, the likely and the most that something comes to."""

    low: float = 0.0
    expected: float = 0.0
    high: float = 0.0

    @classmethod
    def exactly(cls, amount: float) -> Range:
        """An amount that is known."""
        return cls(amount, amount, amount)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, by: Range | float) -> Range:
        """Figure by figure."""
        of = by if isinstance(by, Range) else Range.exactly(by)
        return Range(self.low * of.low, self.expected * of.expected, self.high * of.high)

    def at_most(self, limit: float) -> Range:
        """No figure above the limit."""
        return Range(min(self.low, limit), min(self.expected, limit), min(self.high, limit))


#: Words in a sound, as shares of what speech of its length usually has.
_WORDS = Range(0.0, 1.0, 2.0)


def tokens_of_words(sound_s: Range) -> Range:
    """Text tokens of what is said in so many seconds."""
    return sound_s * (CHARACTERS_PER_S / CHARACTERS_PER_TEXT_TOKEN) * _WORDS


#: Silences may be trimmed, and a second that was begun may be counted whole.
HEARD = Range(0.5, 1.0, 1.15)
_TEXT = Range(0.7, 1.0, 1.4)
#: Text tokens around each message and each request. Source: OpenAI cookbook, "How to count tokens with tiktoken".
_PER_MESSAGE = Range(0.0, 4.0, 12.0)
_PER_REQUEST = Range(0.0, 3.0, 12.0)
#: Of a Realtime session whose job has no system prompt: the service puts in instructions of its own.
_SERVICE_INSTRUCTIONS = Range(0.0, 30.0, 200.0)
_LEAST_SPOKEN_S = 0.3
_LEAST_TEXT_TOKENS = 1.0
#: Of a reply's tokens at most: the rest is the sound, or the words to it.
_MOST_SOUND, _MOST_WORDS = 0.8, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTokens:
    """What the calls of one turn take together."""

    input_text_tokens: Range
    input_audio_tokens: Range
    output_text_tokens: Range
    output_audio_tokens: Range


@dataclass(slots=True)
class Conversation:
    """One item's, turn by turn: `asked` for each, then `replied` or `stands`.

    Attributes:
        now_s: epoch seconds, to tell whether earlier replies' audio ids still live.
        parts: how many calls the first turn takes.
        heard_s: what is sent of the recording; 0 where there is none.
    """

    item: Item
    sizes: ReplySizes
    spec: JobSpec
    now_s: float
    parts: PartCount = field(init=False)
    heard_s: float = field(init=False)
    _parts_are_certain: bool = field(init=False)
    _characters: int = field(init=False)
    _words: Range = field(default_factory=Range)
    _spoken: Range = field(default_factory=Range)
    _sound_was_made: bool = False
    _sound_may_expire: bool = False

    def __post_init__(self) -> None:
        self.parts = part_count(self.item.source, self.spec)
        self._parts_are_certain = part_count_is_exact(self.item.source, self.spec)
        self.heard_s = sent_s(self.item.source, self.spec)
        self._characters = len(self.item.system)

    def asked(self, turn: Turn) -> TurnTokens:
        """What a turn takes, the earlier ones being as they are now."""
        calls = self.calls(turn)
        messages = 2 * turn.number - (0 if self.item.system else 1)
        characters = self._characters + len(text_of(turn))
        text = _TEXT * (characters / CHARACTERS_PER_TEXT_TOKEN) + _PER_MESSAGE * messages + _PER_REQUEST
        if self.spec.transport == "realtime" and not self.item.system:
            text += _SERVICE_INSTRUCTIONS
        words, sound = self._reply(turn)
        return TurnTokens(
            input_text_tokens=text * calls + self._words,
            input_audio_tokens=self._heard(turn) + self._spoken,
            output_text_tokens=words * calls,
            output_audio_tokens=sound * calls,
        )

    def replied(self, turn: Turn, tokens: TurnTokens) -> None:
        """The turn will have been asked in this run."""
        self._characters += len(turn.text)
        sound = tokens.output_audio_tokens
        joined = turn.number == 1 and self.parts.expected > 1
        if sound.expected and not joined:
            self._spoken += sound
            self._sound_was_made = True
            return
        self._words += tokens.output_text_tokens
        if not joined or not self._parts_are_certain:
            self._spoken += Range(high=sound.high)

    def stands(self, turn: Turn, outcome: Outcome) -> None:
        """The turn has its reply from an earlier run; its audio id may be gone before this one is made."""
        self._characters += len(turn.text)
        words = _TEXT * (len(outcome.transcript) / CHARACTERS_PER_TEXT_TOKEN)
        if outcome.audio_id and is_alive(outcome.audio_expires_at, self.now_s):
            spoken = outcome.usage.output_audio_tokens if outcome.usage else 0
            self._spoken += Range(0.0, spoken, spoken * HEARD.high)
            self._words += Range(high=words.high)
            self._sound_may_expire = True
        else:
            self._words += words

    def reply_s(self, turn: Turn) -> float:
        """How long a spoken reply is likely to be, of all parts together."""
        return self._reply_s_of_one(turn) * self.calls(turn).expected

    def _reply_s_of_one(self, turn: Turn) -> float:
        if self.spec.read_aloud:
            return len(turn.text) / CHARACTERS_PER_S
        if not turn.wants_audio:
            return self.sizes.unasked_s
        return self.sizes.reply_s(
            self._heard(turn).expected / AUDIO_IN_TOKENS_PER_S / self.calls(turn).expected
        )

    def calls(self, turn: Turn) -> Range:
        """How many calls a turn takes."""
        parts = self.parts if turn.number == 1 else PartCount()
        return Range(parts.expected, parts.expected, parts.most)

    def _heard(self, turn: Turn) -> Range:
        """Tokens of the recording, where it goes along."""
        once = HEARD * (self.heard_s * AUDIO_IN_TOKENS_PER_S)
        if turn.number == 1:
            return once + Range(high=self.parts.repeated_s * AUDIO_IN_TOKENS_PER_S)
        if self.parts.expected == 1:
            return once
        return Range() if self._parts_are_certain else Range(high=once.high)

    def _reply(self, turn: Turn) -> tuple[Range, Range]:
        """Tokens of one reply: its words, and its sound."""
        longest = self.item.max_completion_tokens or BOUND_TOKENS
        if not turn.wants_audio and not self._is_spoken_unasked(turn):
            words = Range(_LEAST_TEXT_TOKENS, min(self.sizes.text_tokens, longest), longest)
            return words, Range(high=0.0 if self._sound_is_sure(turn) else longest)
        reply_s = self._reply_s_of_one(turn)
        words_tokens = reply_s * CHARACTERS_PER_S / CHARACTERS_PER_TEXT_TOKEN
        sound_tokens = min(reply_s * AUDIO_OUT_TOKENS_PER_S, longest * _MOST_SOUND)
        return (
            Range(_LEAST_TEXT_TOKENS, words_tokens, longest * _MOST_WORDS),
            Range(_LEAST_SPOKEN_S * AUDIO_OUT_TOKENS_PER_S, sound_tokens, longest),
        )

    def _is_spoken_unasked(self, turn: Turn) -> bool:
        """Whether a turn in text is asked for with sound, since there is none otherwise."""
        return not self._sound_is_sure(turn) and not self._sound_may_expire

    def _sound_is_sure(self, turn: Turn) -> bool:
        """Whether a request in text needs no sound in its reply."""
        return self.spec.transport != "chat" or self._sound_was_made or self._heard(turn).expected > 0
