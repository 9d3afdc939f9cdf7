"""Words written down, over HTTP: `POST …/audio/transcriptions` with a file, under the three URL forms.

Whisper's models give times when they are asked for `verbose_json`; the GPT models refuse it and give the words
alone. What a deployment is, its name does not say: the first refusal of the format is remembered.

Source: OpenAI API reference, "Create transcription"; learn.microsoft.com, Azure OpenAI "audio/transcriptions";
github.com/vercel/ai/issues/8214 (the refusal's words), checked 2026-11-20.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from audiobatch.config.prices import AUDIO_IN_TOKENS_PER_S
from audiobatch.errors import AuthenticationFailed, BadReply, RequestRejected
from audiobatch.model import Cue, Reply, Usage
from audiobatch.transports.error_mapping import request_id, translate
from audiobatch.transports.http import ServiceClient
from audiobatch.transports.lenient_json import loads
from audiobatch.transports.reply_body import LARGEST_REPLY_BYTES
from audiobatch.transports.reply_fields import EVENT_NAMES, seconds_of, usage_of
from audiobatch.transports.reply_memory import timing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audiobatch.model import Request
    from audiobatch.transports.auth import EntraTokens
    from audiobatch.transports.base import Sink

#: Of the GPT models' names; they give no times, so that one refused call is saved.
_NO_TIMES = "transcribe"


class TranscriptionTransport:
    """One deployment that writes down words. A request's sound goes in; its reply's text and cues come out."""

    name = "transcription"
    streams = False

    def __init__(
        self,
        *,
        provider: Literal["azure", "openai"],
        endpoint: str | None,
        api_version: str,
        deployment: str,
        key: str | None,
        tokens: EntraTokens | None,
        timeout_s: float,
        most_reply_bytes: int = LARGEST_REPLY_BYTES,
    ) -> None:
        """Args: exactly one of `key` and `tokens` is given; `endpoint` None is OpenAI's own."""
        self._deployment = deployment
        self._tokens = tokens
        self._timeout_s = timeout_s
        self._with_times = _NO_TIMES not in deployment
        self._client = ServiceClient(
            provider=provider,
            endpoint=endpoint,
            api_version=api_version,
            deployment=deployment,
            key=key,
            tokens=tokens,
            timeout_s=timeout_s,
            most_reply_bytes=most_reply_bytes,
        )

    async def aclose(self) -> None:
        """Close connections and credentials."""
        await self._client.aclose()

    def end_item(self, item_id: str) -> None:
        """Nothing is kept between calls."""

    async def send(self, request: Request, sink: Sink | None = None) -> Reply:
        """One recording's words. A format that is refused, and a token, are put right once; neither was billed."""
        used = self._tokens.current if self._tokens else ""
        try:
            return await self._call(request)
        except AuthenticationFailed:
            if self._tokens is None or not used:
                raise
            await self._tokens.renew(used)
            return await self._call(request)
        except RequestRejected as refused:
            if not self._with_times or "response_format" not in refused.message:
                raise
            self._with_times = False
            return await self._call(request)

    async def _call(self, request: Request) -> Reply:
        assert request.audio is not None
        started_s = time.perf_counter()
        try:
            async with timing(self._timeout_s):
                response = await self._client.sdk.audio.transcriptions.with_raw_response.create(
                    file=(f"audio.{request.audio.format}", request.audio.data),
                    model=self._deployment,
                    response_format="verbose_json" if self._with_times else "json",
                )
                raw = response.content
        except Exception as failed:
            raise translate(failed) from failed
        headers = {name.lower(): value for name, value in response.headers.items()}
        return decode(raw, headers, time.perf_counter() - started_s)


def decode(raw: bytes, headers: Mapping[str, str], latency_s: float) -> Reply:
    """The body as a Reply.

    Raises:
        BadReply: no JSON, or no text in it.
    """
    identity = request_id(headers)
    try:
        body, repaired = loads(raw)
        text = body["text"].strip()
        segments = body.get("segments")
        cues = tuple(filter(None, map(_cue, segments if isinstance(segments, list) else ())))
        usage = _usage(body)
    except Exception as failed:  # whatever it is: the words were paid for, and the body is kept
        raise BadReply(f"no transcript in the reply: {failed!r}", raw=raw, request_id=identity) from failed
    return Reply(
        text=text,
        transcript="",
        audio=None,
        audio_format="",
        audio_id=None,
        audio_expires_at=None,
        finish_reason="stop",
        usage=usage,
        model="",
        request_id=identity,
        latency_s=latency_s,
        limits={name: value for name, value in headers.items() if name.startswith(("x-ratelimit", "retry-"))},
        cues=cues,
        raw=raw,
        repaired=repaired,
    )


def _cue(segment: Any) -> Cue | None:
    """A segment with its times; None where it has none: the words are in the text all the same."""
    if not isinstance(segment, dict) or not isinstance(text := segment.get("text"), str):
        return None
    start_s, end_s = seconds_of(segment.get("start")), seconds_of(segment.get("end"))
    return None if start_s is None or end_s is None else Cue(start_s=start_s, end_s=end_s, text=text.strip())


def _usage(body: Mapping[str, Any]) -> Usage | None:
    """Two shapes: tokens, or seconds for models that are billed by time, counted here as audio tokens."""
    found = body.get("usage")
    if isinstance(found, dict) and "input_tokens" in found:
        return usage_of(found, EVENT_NAMES, heard=True, may_be_empty=True)
    seconds = seconds_of(found.get("seconds") if isinstance(found, dict) else body.get("duration"))
    return None if seconds is None else Usage(input_audio_tokens=round(seconds * AUDIO_IN_TOKENS_PER_S))
