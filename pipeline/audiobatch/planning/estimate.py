"""How many tokens a call will take, before it is made: what quotas are charged until `usage` says.

Sources of the rates: `prices.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiobatch.config.prices import (
    AUDIO_IN_TOKENS_PER_S,
    AUDIO_OUT_TOKENS_PER_S,
    CHARACTERS_PER_TEXT_TOKEN,
)
from audiobatch.limits.token_charge import CallTokens

if TYPE_CHECKING:
    from audiobatch.model import Outcome, Request

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
