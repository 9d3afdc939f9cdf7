"""What a Realtime turn brought, as a reply like any other: encoded, counted, its limits under HTTP's names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from audiobatch.config.prices import AUDIO_IN_TOKENS_PER_S
from audiobatch.model import Reply, Usage
from audiobatch.transports.reply_audio import encoded
from audiobatch.transports.reply_fields import EVENT_NAMES, count_of, seconds_of, usage_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audiobatch.model import Request
    from audiobatch.transports.realtime_protocol import TurnReply


def reply_of(request: Request, found: TurnReply, model: str, latency_s: float) -> Reply:
    """A turn's `Reply`, encoded in the request's format. CPU work for a thread.

    Args:
        request: what was asked.
        found: what the turn brought.
        model: as the session names it.
        latency_s: from the call's beginning to its end, the session's opening included.
    """
    response = found.response
    wanted = request.format or "wav"
    audio = encoded(bytes(found.pcm), wanted) if request.wants_audio and found.pcm else None
    return Reply(
        text=found.text if audio is None else "",
        transcript=found.transcript,
        audio=audio,
        audio_format=wanted,
        audio_id=None,
        audio_expires_at=None,
        finish_reason=found.finish_reason,
        usage=usage_of(
            response.get("usage"), EVENT_NAMES, heard=request.audio is not None, spoken=bool(found.pcm)
        ),
        model=model,
        request_id=str(response.get("id") or "") or None,
        latency_s=latency_s,
        input_transcript=found.input_transcript,
        input_usage=_input_usage(request, found),
        limits=limits_as_headers(found.limits),
    )


def _input_usage(request: Request, found: TurnReply) -> Usage | None:
    """What writing the input down took: as the service says, or by the recording's length where it did not."""
    if not found.heard_usage or request.audio is None:
        return None
    audio_tokens = text_tokens = 0
    for billed in found.heard_usage.values():
        counts = _heard_tokens(billed)
        if counts is None:
            return Usage(input_audio_tokens=math.ceil(request.audio.duration_s * AUDIO_IN_TOKENS_PER_S))
        audio_tokens += counts[0]
        text_tokens += counts[1]
    return Usage(input_audio_tokens=audio_tokens, output_text_tokens=text_tokens)


def _heard_tokens(billed: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Audio tokens in, text tokens out; None where the service does not say."""
    if billed is None:
        return None
    if billed.get("type") == "duration":
        seconds = seconds_of(billed.get("seconds") or 0)
        return None if seconds is None else (math.ceil(seconds * AUDIO_IN_TOKENS_PER_S), 0)
    audio, text = count_of(billed.get("input_tokens")), count_of(billed.get("output_tokens"))
    return None if audio is None or text is None else (audio, text)


def limits_as_headers(limits: list[Any]) -> dict[str, str]:
    """`rate_limits.updated` under the names that HTTP uses for the same."""
    headers: dict[str, str] = {}
    for limit in limits:
        if isinstance(limit, dict) and limit.get("name") in {"requests", "tokens"}:
            for ours, theirs in (("limit", "limit"), ("remaining", "remaining"), ("reset", "reset_seconds")):
                if limit.get(theirs) is not None:
                    headers[f"x-ratelimit-{ours}-{limit['name']}"] = str(limit[theirs])
    return headers
