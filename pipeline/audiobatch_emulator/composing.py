"""From a checked request to the reply: hear, answer, speak, count, and cut to the maximum.

Nothing is random: the same request gets the same words and the same audio.
"""

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from audiobatch_emulator.answers import Heard, answer, shortened
from audiobatch_emulator.chat_reply import Reply
from audiobatch_emulator.chat_request import ChatRequest
from audiobatch_emulator.corruption import AUDIO_CORRUPTIONS, corrupted
from audiobatch_emulator.encode import SAMPLE_RATE_HZ
from audiobatch_emulator.faults import Fault
from audiobatch_emulator.recognition import Undecodable
from audiobatch_emulator.request_errors import (
    audio_not_found,
    invalid,
    prompt_blocked,
    undecodable_audio,
)
from audiobatch_emulator.service import Call, Service
from audiobatch_emulator.tokens import (
    AUDIO_OUT_PER_S,
    MOST_IN,
    MOST_OUT,
    TokenCounts,
    audio_in_tokens,
    audio_out_tokens,
    prompt_text_tokens,
    reply_text_tokens,
)

if TYPE_CHECKING:
    from audiobatch_emulator.hearing import Hearing

REFUSAL = "I'm sorry, but I can't help with that."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A reply, and how many seconds of audio were heard and spoken for it."""

    reply: Reply
    audio_s: float


async def compose(service: Service, call: Call, request: ChatRequest, *, model: str) -> Composed:
    """Composes the reply to a request.

    Raises:
        Refusal: an audio id is not known, a recording is no audio, the context is too long, or the prompt is
            blocked.
        EngineCrashed: an engine failed on this request.
    """
    turns, audio_in_s, input_audio = await _hear(service, request)
    input_text = prompt_text_tokens(request.texts, messages=len(request.messages))
    prompt = "\n".join(request.texts)
    counts = TokenCounts(input_text=input_text, input_audio=input_audio)
    service.count(call, counts)
    _check_context(input_text + input_audio)
    if service.config.block_prompt_word in prompt:
        raise prompt_blocked(call.surface)
    empty = Reply(model=model, counts=counts, choices=request.choices, service_tier=request.service_tier)
    if service.config.block_reply_word in prompt:
        return Composed(
            reply=dataclasses.replace(empty, finish_reason="content_filter", content=""), audio_s=audio_in_s
        )
    if service.config.refuse_word in prompt:
        text_tokens = reply_text_tokens(REFUSAL, spoken=False) * request.choices
        return Composed(
            reply=dataclasses.replace(
                empty, refusal=REFUSAL, counts=dataclasses.replace(counts, output_text=text_tokens)
            ),
            audio_s=audio_in_s,
        )
    words = answer(turns)
    most = min(request.max_tokens or MOST_OUT, MOST_OUT)
    if not request.spoken or call.fault.do.corrupt == "text_only":
        reply = _written(empty, words, most)
        return Composed(reply=reply, audio_s=audio_in_s)
    reply, audio_out_s = await _spoken(service, request, empty, words, most=most, fault=call.fault)
    return Composed(reply=reply, audio_s=audio_in_s + audio_out_s)


async def _hear(service: Service, request: ChatRequest) -> tuple[tuple[Heard, ...], float, int]:
    """Returns the conversation as it was heard, the seconds of recordings in it, and its audio tokens."""
    recordings = [recording for message in request.messages for recording in message.recordings]
    # Ids first: they cost nothing, and a request that names a lost one is refused before it is listened to.
    recalled = {}
    for index, message in enumerate(request.messages):
        if message.audio_id is not None:
            spoken = service.memory.recall(message.audio_id)
            if spoken is None:
                raise audio_not_found(message.audio_id, index)
            recalled[index] = spoken
    try:
        hearings = iter(await asyncio.gather(*map(service.recognizer.hear, recordings)))
    except Undecodable:
        raise undecodable_audio() from None
    turns, audio_s, tokens = [], 0.0, 0
    for index, message in enumerate(request.messages):
        heard: tuple[Hearing, ...] = tuple(next(hearings) for _ in message.recordings)
        audio_s += sum(hearing.duration_s for hearing in heard)
        tokens += sum(audio_in_tokens(hearing.duration_s) for hearing in heard)
        text = "\n".join(message.texts)
        if index in recalled:
            text = recalled[index].transcript
            tokens += audio_out_tokens(recalled[index].duration_s)
        turns.append(Heard(role=message.role, text=text, hearings=heard))
    return tuple(turns), audio_s, tokens


def _check_context(tokens: int) -> None:
    """Refuses too long a conversation with 400. It is charged, like a prompt that the filter refuses.

    Source: MicrosoftDocs, articles/ai-services/openai/how-to/manage-costs.md ("a 400 error due to a content
    filter or input limit").
    """
    if tokens > MOST_IN:
        refusal = invalid(
            f"This model's maximum context length is {MOST_IN} tokens. However, your messages resulted in "
            f"{tokens} tokens. Please reduce the length of the messages.",
            "messages",
            "context_length_exceeded",
        )
        refusal.billed = True
        raise refusal


def _written(empty: Reply, words: str, most: int) -> Reply:
    tokens = reply_text_tokens(words, spoken=False)
    finish_reason = "stop"
    if tokens > most:
        words, tokens, finish_reason = shortened(words, most / tokens), most, "length"
    counts = dataclasses.replace(empty.counts, output_text=tokens * empty.choices)
    return dataclasses.replace(empty, content=words, finish_reason=finish_reason, counts=counts)


async def _spoken(
    service: Service, request: ChatRequest, empty: Reply, words: str, *, most: int, fault: Fault
) -> tuple[Reply, float]:
    voiced = await service.voicing.voice(words, request.voice, request.audio_format)
    transcript, finish_reason = words, "stop"
    text_tokens = reply_text_tokens(words, spoken=True)
    audio_tokens = audio_out_tokens(voiced.duration_s)
    if text_tokens + audio_tokens > most:
        share = most / (text_tokens + audio_tokens)
        transcript, finish_reason = shortened(words, share), "length"
        text_tokens = int(text_tokens * share)
        audio_tokens = most - text_tokens
    if finish_reason == "length" or fault.do.corrupt in AUDIO_CORRUPTIONS:
        pcm = await service.voicing.pcm(words, request.voice)
        if finish_reason == "length":
            pcm = pcm[: 2 * round(audio_tokens / AUDIO_OUT_PER_S * SAMPLE_RATE_HZ)]
        voiced = await corrupted(pcm, request.audio_format, fault)
    counts = dataclasses.replace(
        empty.counts,
        output_text=text_tokens * empty.choices,
        output_audio=audio_tokens * empty.choices,
    )
    reply = dataclasses.replace(empty, finish_reason=finish_reason, counts=counts)
    if fault.do.corrupt != "no_audio":
        spoken = tuple(service.memory.keep(transcript, voiced.duration_s) for _ in range(empty.choices))
        reply = dataclasses.replace(reply, voiced=voiced, spoken=spoken)
    return reply, voiced.duration_s
