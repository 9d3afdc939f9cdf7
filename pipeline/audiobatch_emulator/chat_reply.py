"""A chat completion as the service writes it: one JSON body.

The audio is not put through the JSON encoder: the body is built with a marker in its place, and sent in
pieces around the base64 that the cache holds.

Source: a reply captured from gpt-4o-audio-preview (302ai-jp.apifox.cn/225241593e0); the Chat Completions
reference; learn.microsoft.com, "Content filtering" (Azure's additions).
"""

import hashlib
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import orjson

from audiobatch_emulator.audio_ids import Spoken
from audiobatch_emulator.config import FilterResults
from audiobatch_emulator.request_errors import filter_categories
from audiobatch_emulator.surface import Surface
from audiobatch_emulator.tokens import TokenCounts
from audiobatch_emulator.voicing import Voiced


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is answered, before it has a shape. `spoken` has one entry a choice where there is audio."""

    model: str
    counts: TokenCounts
    finish_reason: str = "stop"
    content: str | None = None
    refusal: str | None = None
    voiced: Voiced | None = None
    spoken: tuple[Spoken, ...] = ()
    choices: int = 1
    service_tier: str | None = None
    id: str = field(default_factory=lambda: "chatcmpl-" + secrets.token_urlsafe(21)[:29])
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: the same for the same model."""
        return "fp_" + hashlib.sha256(self.model.encode()).hexdigest()[:10]

    @property
    def was_filtered(self) -> bool:
        """True where the reply met the content filter."""
        return self.finish_reason == "content_filter"


def completion(reply: Reply, surface: Surface, *, filter_results: FilterResults) -> list[bytes]:
    """Returns the JSON body, in pieces."""
    marker = secrets.token_hex(16)
    body: dict[str, Any] = {
        "id": reply.id,
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [
            _choice(reply, index, marker, surface, filter_results=filter_results)
            for index in range(reply.choices)
        ],
        "usage": reply.counts.usage(),
        "system_fingerprint": reply.fingerprint,
    }
    if reply.service_tier is not None:
        body["service_tier"] = "default"
    if surface.is_azure and filter_results != "none":
        body["prompt_filter_results"] = prompt_filter_results(filter_results)
    encoded = orjson.dumps(body)
    if reply.voiced is None:
        return [encoded]
    first, *others = encoded.split(marker.encode())
    pieces = [first]
    for piece in others:
        pieces += [reply.voiced.data, piece]
    return pieces


def _choice(
    reply: Reply, index: int, marker: str, surface: Surface, *, filter_results: FilterResults
) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.content,
        "refusal": reply.refusal,
        "annotations": [],
    }
    if reply.voiced is not None:
        spoken = reply.spoken[index]
        message["audio"] = {
            "id": spoken.id,
            "data": marker,
            "expires_at": spoken.expires_at,
            "transcript": spoken.transcript,
        }
    choice: dict[str, Any] = {
        "index": index,
        "message": message,
        "logprobs": None,
        "finish_reason": reply.finish_reason,
    }
    if surface.is_azure and (filter_results != "none" or reply.was_filtered):
        choice["content_filter_results"] = choice_filter_results(reply, filter_results)
    return choice


def prompt_filter_results(filter_results: FilterResults) -> list[dict[str, Any]]:
    """Returns Azure's filter results for the prompt."""
    return [{"prompt_index": 0, "content_filter_results": _verdict(filter_results, blocked=None)}]


def choice_filter_results(reply: Reply, filter_results: FilterResults) -> dict[str, Any]:
    """Returns Azure's filter results for a choice."""
    return _verdict(filter_results, blocked="violence" if reply.was_filtered else None)


def _verdict(filter_results: FilterResults, *, blocked: str | None) -> dict[str, Any]:
    if filter_results == "down" and blocked is None:
        return {"error": {"code": "content_filter_error", "message": "The contents are not filtered"}}
    return dict(filter_categories(blocked))
