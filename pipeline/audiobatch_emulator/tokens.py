"""How many tokens a request and a reply are.

Audio in is 10 tokens a second and audio out 20, as the realtime API's guide says; for chat completions no
statement was found, but captured replies fit (37 audio tokens for 1.85 s). Text is counted at four
characters a token, which is what such captures come to. A spoken earlier reply that is sent back by its id
becomes input at the rate at which it was output.

Source: developers.openai.com/api/docs/guides/realtime-costs; community.openai.com/t/1046769 (usage of real
replies); the Chat Completions reference for the names of the counts.
"""

import math
from dataclasses import dataclass
from typing import Any

AUDIO_IN_PER_S = 10
AUDIO_OUT_PER_S = 20
MOST_IN = 128_000
MOST_OUT = 16_384
_PER_MESSAGE = 4
_PER_REQUEST = 3
_PER_SPOKEN_REPLY = 8


def text_tokens(text: str) -> int:
    """Returns tokens of a text, at four characters each."""
    return max(1, round(len(text) / 4)) if text else 0


def audio_in_tokens(duration_s: float) -> int:
    """Returns tokens of a recording that is heard."""
    return math.ceil(duration_s * AUDIO_IN_PER_S)


def audio_out_tokens(duration_s: float) -> int:
    """Returns tokens of a reply that is spoken."""
    return math.ceil(round(duration_s * AUDIO_OUT_PER_S, 6))


def prompt_text_tokens(texts: list[str], *, messages: int) -> int:
    """Returns text tokens of all messages, with what their wrapping takes."""
    return _PER_REQUEST + _PER_MESSAGE * messages + sum(map(text_tokens, texts))


def reply_text_tokens(transcript: str, *, spoken: bool) -> int:
    """Returns text tokens of a reply; a spoken one has a few more than its words."""
    return text_tokens(transcript) + (_PER_SPOKEN_REPLY if spoken else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """The four counts that are priced."""

    input_text: int = 0
    input_audio: int = 0
    output_text: int = 0
    output_audio: int = 0

    def usage(self) -> dict[str, Any]:
        """Returns the `usage` object of a chat completion."""
        prompt = self.input_text + self.input_audio
        completion = self.output_text + self.output_audio
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "audio_tokens": self.input_audio,
                "text_tokens": self.input_text,
                "image_tokens": 0,
            },
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": self.output_audio,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
                "text_tokens": self.output_text,
            },
        }
