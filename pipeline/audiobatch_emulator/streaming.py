"""A chat completion as server-sent events.

Order: role and audio id; transcript and data in turns; `expires_at`; an empty delta with the finish reason;
usage where it was asked for; `[DONE]`. Azure may send a chunk without choices before all others.

Source: openai-python 3.51 (`ChoiceDeltaAudio`: id, or data, or transcript, and last `expires_at`); the Chat
Completions reference (`stream_options`). The order in which transcript and data alternate is not stated
anywhere.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import orjson

from audiobatch_emulator.chat_reply import Reply, choice_filter_results, prompt_filter_results
from audiobatch_emulator.config import EmulatorConfig
from audiobatch_emulator.surface import Surface

#: 0.25 s of pcm16 in base64.
DATA_CHARACTERS = 16_000
DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    """Returns one server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def completion_events(
    reply: Reply, surface: Surface, config: EmulatorConfig, *, include_usage: bool
) -> list[bytes]:
    """Returns all events of a reply, `[DONE]` at the end."""
    events = []
    if surface.is_azure and config.azure_first_chunk:
        first = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
        results = config.azure_filter_results
        events.append(event(first | {"prompt_filter_results": prompt_filter_results(results)}))
    head: dict[str, Any] = {
        "id": reply.id,
        "object": "chat.completion.chunk",
        "created": reply.created,
        "model": reply.model,
        "system_fingerprint": reply.fingerprint,
    }
    if reply.service_tier is not None:
        head["service_tier"] = "default"
    usage = {"usage": None} if include_usage else {}
    for index in range(reply.choices):
        for delta, finish_reason in _deltas(reply, index):
            choice: dict[str, Any] = {
                "index": index,
                "delta": delta,
                "logprobs": None,
                "finish_reason": finish_reason,
            }
            if surface.is_azure and (
                config.azure_filter_results != "none" or finish_reason == "content_filter"
            ):
                choice["content_filter_results"] = choice_filter_results(reply, config.azure_filter_results)
            events.append(event(head | {"choices": [choice]} | usage))
    if include_usage:
        events.append(event(head | {"choices": [], "usage": reply.counts.usage()}))
    return [*events, DONE]


def _deltas(reply: Reply, index: int) -> Iterator[tuple[dict[str, Any], str | None]]:
    if reply.voiced is not None:
        spoken = reply.spoken[index]
        yield {"role": "assistant", "refusal": None, "audio": {"id": spoken.id}}, None
        data = reply.voiced.data.decode("ascii")
        pieces = [data[start : start + DATA_CHARACTERS] for start in range(0, len(data), DATA_CHARACTERS)]
        for word, piece in itertools.zip_longest(_words(spoken.transcript), pieces):
            if word is not None:
                yield {"audio": {"transcript": word}}, None
            if piece is not None:
                yield {"audio": {"data": piece}}, None
        yield {"audio": {"expires_at": spoken.expires_at}}, None
    else:
        yield {"role": "assistant", "content": "", "refusal": None}, None
        for word in _words(reply.content or ""):
            yield {"content": word}, None
        for word in _words(reply.refusal or ""):
            yield {"refusal": word}, None
    yield {}, reply.finish_reason


def _words(text: str) -> list[str]:
    """Returns the text in words, each with the space before it: joined they are the text again."""
    words = text.split(" ")
    return [word if index == 0 else " " + word for index, word in enumerate(words)] if text else []
