"""What a Realtime turn brought, as a reply like any other: encoded, counted, its limits under HTTP's names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.audio.encode import encode_reply
from pipeline.model import Reply, Usage
from pipeline.prices import AUDIO_IN_TOKENS_PER_S

if TYPE_CHECKING:
    from pipeline.model import Request
    from pipeline.transports.turn_reply import TurnReply


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
    audio = encode_reply(bytes(found.pcm), wanted) if request.wants_audio and found.pcm else None
    return Reply(
        text=found.text if audio is None else "",
        transcript=found.transcript,
        audio=audio,
        audio_format=wanted,
        audio_id=None,
        audio_expires_at=None,
        finish_reason=found.finish_reason,
        usage=_usage(response.get("usage")),
        model=model,
        request_id=str(response.get("id") or "") or None,
        latency_s=latency_s,
        input_transcript=found.input_transcript,
        input_usage=_input_usage(request, found),
        limits=limits_as_headers(found.limits),
    )


def _usage(found: Any) -> Usage | None:
    """Token counts of `response.done`; where details are missing everything counts as text."""
    if not isinstance(found, dict):
        return None
    into = found.get("input_token_details") or {}
    out = found.get("output_token_details") or {}
    audio_in, audio_out = into.get("audio_tokens") or 0, out.get("audio_tokens") or 0
    return Usage(
        input_text_tokens=max(0, (found.get("input_tokens") or 0) - audio_in),
        input_audio_tokens=audio_in,
        cached_tokens=into.get("cached_tokens") or 0,
        output_text_tokens=max(0, (found.get("output_tokens") or 0) - audio_out),
        output_audio_tokens=audio_out,
    )


def _input_usage(request: Request, found: TurnReply) -> Usage | None:
    """What writing the input down took: as the service says, or by the recording's length where it did not."""
    if not found.heard_usage or request.audio is None:
        return None
    audio_tokens = text_tokens = 0
    for billed in found.heard_usage.values():
        if billed is None:
            return Usage(input_audio_tokens=math.ceil(request.audio.duration_s * AUDIO_IN_TOKENS_PER_S))
        if billed.get("type") == "duration":
            audio_tokens += math.ceil((billed.get("seconds") or 0) * AUDIO_IN_TOKENS_PER_S)
        else:
            audio_tokens += billed.get("input_tokens") or 0
            text_tokens += billed.get("output_tokens") or 0
    return Usage(input_audio_tokens=audio_tokens, output_text_tokens=text_tokens)


def limits_as_headers(limits: list[Any]) -> dict[str, str]:
    """`rate_limits.updated` under the names that HTTP uses for the same."""
    headers: dict[str, str] = {}
    for limit in limits:
        if isinstance(limit, dict) and limit.get("name") in {"requests", "tokens"}:
            for ours, theirs in (("limit", "limit"), ("remaining", "remaining"), ("reset", "reset_seconds")):
                if limit.get(theirs) is not None:
                    headers[f"x-ratelimit-{ours}-{limit['name']}"] = str(limit[theirs])
    return headers
