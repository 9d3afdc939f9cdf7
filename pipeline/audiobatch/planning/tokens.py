"""Estimate tokens: of the turns of an item that is planned, of a call before it is sent, of a reply without usage.

A later turn sends the earlier ones again:

| earlier in the conversation | input tokens of a later turn |
|---|---|
| a recording sent as one request | its audio |
| a recording sent in parts | none: the joined transcript is sent instead |
| a spoken reply whose audio id is valid | its audio |
| any other reply | its text |

Chat completions refuse a request without any audio, so that a text follow-up whose conversation has no audio is
sent as a spoken one (`transports/chat_request.py`), and billed as such.

A `Range` is an amount that is not known yet. `ReplySizes` estimates a call's tokens, which quotas are charged with
until the reply's usage is known. Sources of the rates: `prices.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from audiobatch.audio.measure import measure
from audiobatch.audio.split import PartCount
from audiobatch.audio.wav import pcm_to_wav
from audiobatch.config.prices import (
    AUDIO_IN_TOKENS_PER_S,
    AUDIO_OUT_TOKENS_PER_S,
    CHARACTERS_PER_TEXT_TOKEN,
    total_usd,
)
from audiobatch.inputs.sound_settings import part_count, part_count_is_exact, sent_s
from audiobatch.limits.limiter import CallTokens
from audiobatch.model import Usage
from audiobatch.planning.review_rules import text_of
from audiobatch.planning.worst_case import BOUND_TOKENS
from audiobatch.transports.chat_request import is_alive

if TYPE_CHECKING:
    from decimal import Decimal

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.model import Item, Outcome, Reply, Request, Turn

#: Seconds of a spoken reply before the job has replies of its own, and how much longer it is for each second of the
#: recording that it answers. Source: the sample jobs on the emulator.
FIRST_GUESS_AUDIO_S = 12.0
FIRST_GUESS_A_SECOND_OF_INPUT = 0.7
FIRST_GUESS_TEXT_TOKENS = 120.0
#: Characters of a second of speech. Source: the usual 150 to 160 words a minute.
CHARACTERS_PER_S = 15.0
MESSAGE_TOKENS = 8
#: Weight of the newest reply in the mean, so that about the last twenty replies decide.
_WEIGHT = 0.1


class ReplySizes:
    """The mean size of the job's replies so far, which is the next estimate."""

    def __init__(self) -> None:
        """Begin with the first guesses."""
        self.audio_s = FIRST_GUESS_AUDIO_S
        self.text_tokens = FIRST_GUESS_TEXT_TOKENS
        self._spoken = self._written = 0

    def add(self, outcome: Outcome) -> None:
        """Count a reply: the first ones have equal weight, then the newest a tenth; parts count with their mean."""
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
        """Estimate the seconds of a spoken reply to so many seconds of recording."""
        return self.audio_s if self._spoken else self.audio_s + FIRST_GUESS_A_SECOND_OF_INPUT * heard_s

    @property
    def unrequested_audio_s(self) -> float:
        """Estimate the seconds of a reply that is spoken although text was requested."""
        if not self._written:
            return self.audio_s
        return self.text_tokens * CHARACTERS_PER_TEXT_TOKEN / CHARACTERS_PER_S

    def call_tokens(self, request: Request, *, read_aloud: bool = False) -> CallTokens:
        """Estimate the tokens of a call."""
        tokens_in = input_tokens(request)
        return CallTokens(
            expected=tokens_in + self._reply_tokens(request, read_aloud=read_aloud),
            input=tokens_in,
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
    """Estimate the input tokens of a request, with earlier replies as audio."""
    texts = [request.system, request.text, *(exchange.text for exchange in request.history)]
    sound_s = sum(exchange.audio.duration_s for exchange in request.history if exchange.audio)
    sound_s += request.audio.duration_s if request.audio else 0.0
    earlier_s = sum(len(exchange.reply.text) / CHARACTERS_PER_S for exchange in request.history)
    return (
        sum(map(len, texts)) / CHARACTERS_PER_TEXT_TOKEN
        + MESSAGE_TOKENS * (2 + 2 * len(request.history))
        + (sound_s + earlier_s) * AUDIO_IN_TOKENS_PER_S
    )


#: The figures of a range, in the order in which they are shown.
FIGURES = ("low", "expected", "high")


@dataclass(frozen=True, slots=True)
class Range:
    """A lowest, an expected and a highest amount."""

    low: float = 0.0
    expected: float = 0.0
    high: float = 0.0

    @classmethod
    def exactly(cls, amount: float) -> Range:
        """Return the range of a known amount."""
        return cls(amount, amount, amount)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, by: Range | float) -> Range:
        """Multiply figure by figure."""
        factor = by if isinstance(by, Range) else Range.exactly(by)
        return Range(self.low * factor.low, self.expected * factor.expected, self.high * factor.high)

    def at_most(self, limit: float) -> Range:
        """Return the range with no figure above the limit."""
        return Range(min(self.low, limit), min(self.expected, limit), min(self.high, limit))


#: Length of a transcript, as a share of that of usual speech.
_TRANSCRIPT_SHARE = Range(0.0, 1.0, 2.0)


def transcript_tokens(audio_s: Range) -> Range:
    """Estimate the text tokens of a transcript of so many seconds."""
    return audio_s * (CHARACTERS_PER_S / CHARACTERS_PER_TEXT_TOKEN) * _TRANSCRIPT_SHARE


#: Audio input that is billed, as a share of that sent: silences may not count, a partial second may count whole.
BILLED_AUDIO_SHARE = Range(0.5, 1.0, 1.15)
_TEXT_SHARE = Range(0.7, 1.0, 1.4)
#: Text tokens around each message and each request. Source: OpenAI cookbook, "How to count tokens with tiktoken".
_PER_MESSAGE = Range(0.0, 4.0, 12.0)
_PER_REQUEST = Range(0.0, 3.0, 12.0)
#: Of a Realtime session without a system prompt, which gets instructions of the service's own.
_SERVICE_INSTRUCTIONS = Range(0.0, 30.0, 200.0)
_LEAST_SPOKEN_S = 0.3
_LEAST_TEXT_TOKENS = 1.0
#: Highest shares of audio and of text in the tokens of a spoken reply.
_MAX_AUDIO_SHARE, _MAX_TEXT_SHARE = 0.8, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTokens:
    """The tokens of all calls of a turn."""

    input_text_tokens: Range
    input_audio_tokens: Range
    output_text_tokens: Range
    output_audio_tokens: Range


@dataclass(slots=True)
class Conversation:
    """The turns of an item in order: `tokens` of each that is sent, then `add_reply`; `add_earlier` for the others.

    Attributes:
        now_s: the time in epoch seconds, at which audio ids of earlier replies are valid or not.
        parts: how many calls the first turn takes.
        heard_s: seconds of the recording that are sent; 0 where there is none.
    """

    item: Item
    sizes: ReplySizes
    spec: JobSpec
    now_s: float
    parts: PartCount = field(init=False)
    heard_s: float = field(init=False)
    _part_count_is_exact: bool = field(init=False)
    _characters: int = field(init=False)
    _reply_text: Range = field(default_factory=Range)
    _reply_audio: Range = field(default_factory=Range)
    _has_reply_audio: bool = False
    _audio_may_expire: bool = False

    def __post_init__(self) -> None:
        self.parts = part_count(self.item.source, self.spec)
        self._part_count_is_exact = part_count_is_exact(self.item.source, self.spec)
        self.heard_s = sent_s(self.item.source, self.spec)
        self._characters = len(self.item.system)

    def tokens(self, turn: Turn) -> TurnTokens:
        """Estimate the tokens of a turn after those that were added."""
        calls = self.calls(turn)
        messages = 2 * turn.number - (0 if self.item.system else 1)
        characters = self._characters + len(text_of(turn))
        text = _TEXT_SHARE * (characters / CHARACTERS_PER_TEXT_TOKEN) + _PER_MESSAGE * messages + _PER_REQUEST
        if self.spec.transport == "realtime" and not self.item.system:
            text += _SERVICE_INSTRUCTIONS
        reply_text, reply_audio = self._reply(turn)
        return TurnTokens(
            input_text_tokens=text * calls + self._reply_text,
            input_audio_tokens=self._recording(turn) + self._reply_audio,
            output_text_tokens=reply_text * calls,
            output_audio_tokens=reply_audio * calls,
        )

    def add_reply(self, turn: Turn, tokens: TurnTokens) -> None:
        """Add a turn that this run sends."""
        self._characters += len(turn.text)
        audio = tokens.output_audio_tokens
        joined = turn.number == 1 and self.parts.expected > 1
        if audio.expected and not joined:
            self._reply_audio += audio
            self._has_reply_audio = True
            return
        self._reply_text += tokens.output_text_tokens
        if not joined or not self._part_count_is_exact:
            self._reply_audio += Range(high=audio.high)

    def add_earlier(self, turn: Turn, outcome: Outcome) -> None:
        """Add a turn with a reply of an earlier run, whose audio id may expire before the next turn is sent."""
        self._characters += len(turn.text)
        text = _TEXT_SHARE * (len(outcome.transcript) / CHARACTERS_PER_TEXT_TOKEN)
        if outcome.audio_id and is_alive(outcome.audio_expires_at, self.now_s):
            spoken = outcome.usage.output_audio_tokens if outcome.usage else 0
            self._reply_audio += Range(0.0, spoken, spoken * BILLED_AUDIO_SHARE.high)
            self._reply_text += Range(high=text.high)
            self._audio_may_expire = True
        else:
            self._reply_text += text

    def reply_s(self, turn: Turn) -> float:
        """Estimate the seconds of a spoken reply, of all parts together."""
        return self._call_reply_s(turn) * self.calls(turn).expected

    def _call_reply_s(self, turn: Turn) -> float:
        if self.spec.read_aloud:
            return len(turn.text) / CHARACTERS_PER_S
        if not turn.wants_audio:
            return self.sizes.unrequested_audio_s
        return self.sizes.reply_s(
            self._recording(turn).expected / AUDIO_IN_TOKENS_PER_S / self.calls(turn).expected
        )

    def calls(self, turn: Turn) -> Range:
        """Return how many calls a turn takes."""
        parts = self.parts if turn.number == 1 else PartCount()
        return Range(parts.expected, parts.expected, parts.most)

    def _recording(self, turn: Turn) -> Range:
        """Return the tokens of the recording in a turn's input."""
        once = BILLED_AUDIO_SHARE * (self.heard_s * AUDIO_IN_TOKENS_PER_S)
        if turn.number == 1:
            return once + Range(high=self.parts.repeated_s * AUDIO_IN_TOKENS_PER_S)
        if self.parts.expected == 1:
            return once
        return Range() if self._part_count_is_exact else Range(high=once.high)

    def _reply(self, turn: Turn) -> tuple[Range, Range]:
        """Return the tokens of a call's reply: text and audio."""
        longest = self.item.max_completion_tokens or BOUND_TOKENS
        if not turn.wants_audio and not self._is_spoken_unrequested(turn):
            text = Range(_LEAST_TEXT_TOKENS, min(self.sizes.text_tokens, longest), longest)
            return text, Range(high=0.0 if self._has_audio(turn) else longest)
        reply_s = self._call_reply_s(turn)
        text_tokens = reply_s * CHARACTERS_PER_S / CHARACTERS_PER_TEXT_TOKEN
        audio_tokens = min(reply_s * AUDIO_OUT_TOKENS_PER_S, longest * _MAX_AUDIO_SHARE)
        return (
            Range(_LEAST_TEXT_TOKENS, text_tokens, longest * _MAX_TEXT_SHARE),
            Range(_LEAST_SPOKEN_S * AUDIO_OUT_TOKENS_PER_S, audio_tokens, longest),
        )

    def _is_spoken_unrequested(self, turn: Turn) -> bool:
        """Whether a text turn is sent as a spoken one, since the conversation has no audio."""
        return not self._has_audio(turn) and not self._audio_may_expire

    def _has_audio(self, turn: Turn) -> bool:
        """Whether the service surely accepts a turn with a text reply."""
        return self.spec.transport != "chat" or self._has_reply_audio or self._recording(turn).expected > 0


def estimated_usd(target: Target, request: Request, reply: Reply) -> Decimal | None:
    """Estimate the cost of a reply without usage: for people, never for a cost limit. CPU work for a thread.

    Returns:
        None where the price is not known.
    """
    cost_usd = target.cost_usd(_estimated_usage(request, reply))
    return total_usd((cost_usd, target.transcription_usd(reply.input_usage)))


def _estimated_usage(request: Request, reply: Reply) -> Usage:
    recordings = [request.audio, *(exchange.audio for exchange in request.history)]
    heard = round(sum(audio.duration_s for audio in recordings if audio) * AUDIO_IN_TOKENS_PER_S)
    text = reply.transcript or reply.text
    return Usage(
        input_audio_tokens=heard,
        input_text_tokens=max(0, round(input_tokens(request)) - heard),
        output_audio_tokens=round(_spoken_s(reply, text) * AUDIO_OUT_TOKENS_PER_S),
        output_text_tokens=round(len(text) / CHARACTERS_PER_TEXT_TOKEN),
    )


def _spoken_s(reply: Reply, text: str) -> float:
    """Measure the seconds of a reply's audio; estimate them by its text where the audio cannot be read."""
    if reply.audio is None:
        return 0.0
    audio, audio_format = reply.audio, reply.audio_format
    if audio_format == "pcm16":
        audio, audio_format = pcm_to_wav(audio), "wav"
    try:
        return measure(audio, audio_format).duration_s
    except ValueError:
        return len(text) / CHARACTERS_PER_S
