"""Compute the highest cost of a call, which is reserved so that a cost limit is never exceeded.

Text takes at most one token for each byte (a byte-level tokeniser needs no more); audio takes 10 tokens a second,
and a tenth more for what is not documented. An earlier reply that is sent again takes what it took to generate, or
the longest reply of its model. The reply is at most `max_completion_tokens`, which every call has where there is a
limit.
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

#: Tokens of the longest reply under a cost limit where the job sets no maximum: 3.4 minutes of speech.
BOUND_TOKENS = 4096
#: Tokens of the longest reply without a maximum, by the beginning of the model's name.
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
#: Tokens of a transcript for a second of speech, at most: fast speech has four words in a second.
_TRANSCRIPT_TOKENS_PER_S = 20
_MILLION = Decimal(1_000_000)


def bounded(request: Request) -> Request:
    """Return the request with a maximum for its reply."""
    if request.max_completion_tokens is not None:
        return request
    return replace(request, max_completion_tokens=BOUND_TOKENS)


def longest_reply(model: str) -> int:
    """Return the tokens of a model's longest reply without a maximum."""
    return next(longest for family, longest in _LONGEST_TOKENS if model.startswith(family))


def spoken_tokens(usage: Usage | None, duration_s: float | None) -> int | None:
    """Return the tokens of a spoken reply, which it takes again as input; None: not known.

    Args:
        usage: of its call. If it does not separate audio from text, all output counts.
        duration_s: of its audio as it was saved, which may be shorter than what the service sent.
    """
    if usage is None:
        return None
    spoken = usage.output_audio_tokens or usage.output_text_tokens
    return max(spoken, math.ceil((duration_s or 0.0) * AUDIO_OUT_TOKENS_PER_S))


def worst_usd(request: Request, price: Price, *, model: str = "", hears_replies: bool = False) -> Decimal:
    """Return the highest cost of a request.

    Args:
        request: without a maximum for its reply, the model's longest reply counts.
        price: at the deployment that it goes to.
        model: of that deployment.
        hears_replies: in a session, which has its own replies in its context and bills them again.
    """
    longest = request.max_completion_tokens or longest_reply(model)
    texts = [request.system, request.text, *(exchange.text for exchange in request.history)]
    spoken = 0
    for exchange in request.history:
        texts.append(exchange.reply.text)
        if exchange.reply.audio_id or hears_replies:
            known = exchange.reply.spoken_tokens
            spoken += longest_reply(model) if known is None else known
    text_in = sum(len(text.encode()) for text in texts) + _PER_MESSAGE * (2 + 2 * len(request.history))
    sounds = [request.audio, *(exchange.audio for exchange in request.history)]
    heard_s = sum(sound.duration_s for sound in sounds if sound is not None)
    audio_in = (
        math.ceil(heard_s * AUDIO_IN_TOKENS_PER_S * _AUDIO_MARGIN) + _PER_MESSAGE * len(sounds) + spoken
    )
    price_out = max(price.audio_out, price.text_out) if _may_speak(request) else price.text_out
    return (price.text_in * text_in + price.audio_in * audio_in + price_out * longest) / _MILLION


def transcription_usd(request: Request, price: Price | None) -> Decimal:
    """Return the highest cost of the transcript that a session makes of the request's audio."""
    if price is None or request.audio is None:
        return Decimal(0)
    heard_s = request.audio.duration_s * _AUDIO_MARGIN
    heard, written = (math.ceil(heard_s * rate) for rate in (AUDIO_IN_TOKENS_PER_S, _TRANSCRIPT_TOKENS_PER_S))
    return (price.audio_in * (heard + _PER_MESSAGE) + price.text_out * (written + _PER_MESSAGE)) / _MILLION


def _may_speak(request: Request) -> bool:
    """Whether the reply may be spoken: also to a text follow-up without audio, which the service refuses."""
    has_audio = request.audio is not None or any(exchange.audio is not None for exchange in request.history)
    return request.wants_audio or not has_audio


def worst_by_target(
    request: Request, targets: Iterable[Target], *, hears_replies: bool = False
) -> dict[str, Decimal]:
    """Return the highest cost at each target with a known price; `hears_replies` as in `worst_usd`."""
    return {
        target.name: worst_usd(request, target.price, model=target.model, hears_replies=hears_replies)
        + transcription_usd(request, target.transcription_price)
        for target in targets
        if target.price is not None
    }


def worst_unknown_usd(targets: Iterable[Target], spec: JobSpec) -> Decimal:
    """Return the assumed cost of an earlier call that the ledger has neither a cost nor a highest cost for.

    An earlier version made it, or a run that knew no price. It is assumed to have had the longest reply.

    Args:
        targets: where it may have gone.
        spec: the job, whose maximum and modalities bound the reply.
    """
    longest, turns = spec.max_completion_tokens or BOUND_TOKENS, spec.turn_specs()
    # A text follow-up is sent as a spoken one where the conversation has no audio.
    speaks_unasked = spec.transport == "chat" and len(turns) > 1
    speaks = speaks_unasked or any("audio" in (turn.modalities or ()) for turn in turns)
    prices = [target.price for target in targets if target.price is not None and not target.transcribes]
    rates = [max(price.audio_out, price.text_out) if speaks else price.text_out for price in prices]
    return max((rate * longest / _MILLION for rate in rates), default=Decimal(0))
