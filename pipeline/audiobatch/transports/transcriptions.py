"""Transcribe recordings over HTTP: `POST …/audio/transcriptions` with a file, under the three URL forms.

Whisper models return times where the request asks for `verbose_json`; the GPT models refuse it and return text
only. A deployment's name need not tell which it is: the transport remembers the first refusal of the format.

Source: OpenAI API reference, "Create transcription"; learn.microsoft.com, Azure OpenAI "audio/transcriptions";
github.com/vercel/ai/issues/8214 (the refusal's message), checked 2026-11-20.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from audiobatch.config.prices import AUDIO_IN_TOKENS_PER_S
from audiobatch.errors import AuthenticationFailed, BadReply, RequestRejected
from audiobatch.model import Cue, Reply, Usage
from audiobatch.transports.error_mapping import request_id, translate
from audiobatch.transports.http import ServiceClient
from audiobatch.transports.rate_limit_headers import limits_in
from audiobatch.transports.reply_content import EVENT_NAMES, parse_json, seconds_of, usage_of
from audiobatch.transports.reply_memory import timing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audiobatch.model import Request
    from audiobatch.transports.base import ServiceAccess, Sink

#: In the names of the GPT models, which return no times: this saves a refused call.
_NO_TIMES = "transcribe"


class TranscriptionTransport:
    """Transcriptions of one deployment: a reply holds the text and the cues of a request's recording."""

    name = "transcription"
    streams = False

    def __init__(self, access: ServiceAccess) -> None:
        """Args: `access`: the deployment, and the credential for it."""
        self._deployment = access.deployment
        self._tokens = access.tokens
        self._timeout_s = access.timeout_s
        self._with_times = _NO_TIMES not in access.deployment
        self._client = ServiceClient(access)

    async def aclose(self) -> None:
        """Close connections and credentials."""
        await self._client.aclose()

    def end_item(self, item_id: str) -> None:
        """Do nothing: items have no sessions here."""

    async def send(self, request: Request, sink: Sink | None = None) -> Reply:
        """Transcribe one recording. A refused format or token is replaced once; neither call was billed."""
        used_token = self._tokens.current if self._tokens else ""
        try:
            return await self._call(request)
        except AuthenticationFailed:
            if self._tokens is None or not used_token:
                raise
            await self._tokens.renew(used_token)
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
        except Exception as error:
            raise translate(error) from error
        headers = {name.lower(): value for name, value in response.headers.items()}
        return decode(raw, headers, time.perf_counter() - started_s)


def decode(raw: bytes, headers: Mapping[str, str], latency_s: float) -> Reply:
    """Decode a body.

    Raises:
        BadReply: no JSON, or no text in it.
    """
    identity = request_id(headers)
    try:
        body, repaired = parse_json(raw)
        text = body["text"].strip()
        segments = body.get("segments")
        cues = tuple(filter(None, map(_cue, segments if isinstance(segments, list) else ())))
        usage = _usage(body)
    except Exception as error:  # of any kind: the body was paid for, and is stored
        raise BadReply(f"no transcript in the reply: {error!r}", raw=raw, request_id=identity) from error
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
        limits=limits_in(headers),
        cues=cues,
        raw=raw,
        repaired=repaired,
    )


def _cue(segment: Any) -> Cue | None:
    """Read a segment; None where it has no times: its words are in the text anyway."""
    if not isinstance(segment, dict) or not isinstance(text := segment.get("text"), str):
        return None
    start_s, end_s = seconds_of(segment.get("start")), seconds_of(segment.get("end"))
    return None if start_s is None or end_s is None else Cue(start_s=start_s, end_s=end_s, text=text.strip())


def _usage(body: Mapping[str, Any]) -> Usage | None:
    """Read the usage: tokens, or seconds for models that are billed by time, counted here as audio tokens."""
    counts = body.get("usage")
    if isinstance(counts, dict) and "input_tokens" in counts:
        return usage_of(counts, EVENT_NAMES, sent_audio=True, may_be_empty=True)
    seconds = seconds_of(counts.get("seconds") if isinstance(counts, dict) else body.get("duration"))
    return None if seconds is None else Usage(input_audio_tokens=round(seconds * AUDIO_IN_TOKENS_PER_S))
