"""The most that one call can cost: what is set aside for it where a cost limit must never be passed.

Text is at most a token a byte (a byte-level tokeniser cannot do worse); sound 10 tokens a second, and a tenth more
for what is not documented; an earlier reply that is heard again what it took to speak it, or the longest that its
model gives. The reply is at most `max_completion_tokens`, which goes with every call where there is a limit.
"""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from audiobatch.config.prices import AUDIO_IN_TOKENS_PER_S, AUDIO_OUT_TOKENS_PER_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.prices import Price
    from audiobatch.config.targets import Target
    from audiobatch.model import Request, Usage

#: How long a reply may be where a cost limit holds and the job names no maximum: 3.4 minutes of speech.
BOUND_TOKENS = 4096
#: How long a reply can be that nothing bounds, by the beginning of its model's name; of others, the last.
#: Source: developers.openai.com/api/docs/models, "max output tokens" (2026-11-20).
_LONGEST_TOKENS = (
    ("gpt-realtime-2", 32_000),
    ("gpt-realtime", 4_096),
    ("gpt-audio", 16_384),
    ("gpt-4o", 16_384),
    ("", 32_000),
)
_PER_MESSAGE = 16
_AUDIO_MARGIN = 1.1
#: Tokens of a transcript a second of speech, at the very most: fast speech has four words in one.
_TRANSCRIPT_TOKENS_PER_S = 20
_MILLION = Decimal(1_000_000)


def bounded(request: Request) -> Request:
    """The request with a maximum for its reply."""
    if request.max_completion_tokens is not None:
        return request
    return replace(request, max_completion_tokens=BOUND_TOKENS)


def longest_reply(model: str) -> int:
    """Tokens of the longest reply that a model gives where nothing bounds it."""
    return next(longest for family, longest in _LONGEST_TOKENS if model.startswith(family))


def spoken_tokens(usage: Usage | None, duration_s: float | None) -> int | None:
    """What a spoken reply took to speak, and takes to be heard again; None: not known.

    Args:
        usage: of its call. Where it tells no audio from text, all of it counts.
        duration_s: of its sound as it was saved, which may be shorter than it came.
    """
    if usage is None:
        return None
    spoken = usage.output_audio_tokens or usage.output_text_tokens
    return max(spoken, math.ceil((duration_s or 0.0) * AUDIO_OUT_TOKENS_PER_S))


def worst_usd(request: Request, price: Price, *, model: str = "", hears_replies: bool = False) -> Decimal:
    """What a request costs at most.

    Args:
        request: not bounded, it is taken for one of the longest reply that the model gives.
        price: where it goes.
        model: there.
        hears_replies: in a session, which has heard its own replies and is billed for them again.
    """
    longest = request.max_completion_tokens or longest_reply(model)
    texts = [request.system, request.text, *(one.text for one in request.history)]
    spoken = 0
    for one in request.history:
        texts.append(one.reply.text)
        if one.reply.audio_id or hears_replies:
            known = one.reply.spoken_tokens
            spoken += longest_reply(model) if known is None else known
    text_in = sum(len(text.encode()) for text in texts) + _PER_MESSAGE * (2 + 2 * len(request.history))
    sounds = [request.audio, *(one.audio for one in request.history)]
    heard_s = sum(sound.duration_s for sound in sounds if sound is not None)
    audio_in = (
        math.ceil(heard_s * AUDIO_IN_TOKENS_PER_S * _AUDIO_MARGIN) + _PER_MESSAGE * len(sounds) + spoken
    )
    dearest_out = max(price.audio_out, price.text_out) if _may_speak(request) else price.text_out
    return (price.text_in * text_in + price.audio_in * audio_in + dearest_out * longest) / _MILLION


def transcription_usd(request: Request, price: Price | None) -> Decimal:
    """What the transcript of what is said costs at most, where the session makes one."""
    if price is None or request.audio is None:
        return Decimal(0)
    heard_s = request.audio.duration_s * _AUDIO_MARGIN
    heard, written = (math.ceil(heard_s * rate) for rate in (AUDIO_IN_TOKENS_PER_S, _TRANSCRIPT_TOKENS_PER_S))
    return (price.audio_in * (heard + _PER_MESSAGE) + price.text_out * (written + _PER_MESSAGE)) / _MILLION


def _may_speak(request: Request) -> bool:
    """A follow-up in text alone is asked for with sound where no sound is left on either side."""
    sound_in = request.audio is not None or any(one.audio is not None for one in request.history)
    return request.wants_audio or not sound_in


def worst_by_target(
    request: Request, targets: Iterable[Target], *, hears_replies: bool = False
) -> dict[str, Decimal]:
    """The worst case at each place where the call may go; `hears_replies` as in `worst_usd`."""
    return {
        one.name: worst_usd(request, one.price, model=one.model, hears_replies=hears_replies)
        + transcription_usd(request, one.transcription_price)
        for one in targets
        if one.price is not None
    }


def worst_unknown_usd(targets: Iterable[Target], spec: JobSpec) -> Decimal:
    """What one call of an earlier run is taken to have cost that has neither cost nor worst case on record.

    An earlier version made it, or one that knew no price: it is taken for a whole reply.

    Args:
        targets: where it may have gone.
        spec: the job; where it bounds its replies, or asks for text alone, no longer or dearer one is charged for.
    """
    longest, turns = spec.max_completion_tokens or BOUND_TOKENS, spec.turn_specs()
    # A follow-up in text is asked for with sound where none is left on either side.
    unasked = spec.transport == "chat" and len(turns) > 1
    speaks = unasked or any("audio" in (turn.modalities or ()) for turn in turns)
    prices = [one.price for one in targets if one.price is not None and not one.transcribes]
    rates = [max(price.audio_out, price.text_out) if speaks else price.text_out for price in prices]
    return max((rate * longest / _MILLION for rate in rates), default=Decimal(0))
