"""What a Realtime turn brought, as a reply like any other: encoded, counted, its limits under HTTP's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.audio.encode import encode_reply
from pipeline.model import Reply, Usage

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


def limits_as_headers(limits: list[Any]) -> dict[str, str]:
    """`rate_limits.updated` under the names that HTTP uses for the same."""
    headers: dict[str, str] = {}
    for limit in limits:
        if isinstance(limit, dict) and limit.get("name") in {"requests", "tokens"}:
            for ours, theirs in (("limit", "limit"), ("remaining", "remaining"), ("reset", "reset_seconds")):
                if limit.get(theirs) is not None:
                    headers[f"x-ratelimit-{ours}-{limit['name']}"] = str(limit[theirs])
    return headers
