"""What a reply without token counts is likely to have cost: for people, never for a limit of cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiobatch.audio.measure import measure
from audiobatch.audio.wav import pcm_to_wav
from audiobatch.config.prices import (
    AUDIO_IN_TOKENS_PER_S,
    AUDIO_OUT_TOKENS_PER_S,
    CHARACTERS_PER_TEXT_TOKEN,
)
from audiobatch.model import Usage
from audiobatch.planning.tokens import CHARACTERS_PER_S, input_tokens

if TYPE_CHECKING:
    from decimal import Decimal

    from audiobatch.config.targets import Target
    from audiobatch.model import Reply, Request


def estimated_usd(target: Target, request: Request, reply: Reply) -> Decimal | None:
    """By the sound that was heard and spoken, 10 and 20 tokens a second, and by its words. CPU work for a thread.

    Returns:
        None where no price is known.
    """
    cost, heard = (
        target.cost_usd(estimated_usage(request, reply)),
        target.transcription_usd(reply.input_usage),
    )
    return None if cost is None or heard is None else cost + heard


def estimated_usage(request: Request, reply: Reply) -> Usage:
    """The counts that such a call usually has."""
    sounds = [request.audio, *(one.audio for one in request.history)]
    heard = round(sum(sound.duration_s for sound in sounds if sound) * AUDIO_IN_TOKENS_PER_S)
    words = reply.transcript or reply.text
    return Usage(
        input_audio_tokens=heard,
        input_text_tokens=max(0, round(input_tokens(request)) - heard),
        output_audio_tokens=round(_spoken_s(reply, words) * AUDIO_OUT_TOKENS_PER_S),
        output_text_tokens=round(len(words) / CHARACTERS_PER_TEXT_TOKEN),
    )


def _spoken_s(reply: Reply, words: str) -> float:
    """How long its sound is, in seconds; by its words where it cannot be read."""
    if reply.audio is None:
        return 0.0
    sound, form = reply.audio, reply.audio_format
    if form == "pcm16":
        sound, form = pcm_to_wav(sound), "wav"
    try:
        return measure(sound, form).duration_s
    except ValueError:
        return len(words) / CHARACTERS_PER_S
