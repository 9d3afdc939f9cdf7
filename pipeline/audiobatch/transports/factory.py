"""The transport that a job asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from audiobatch.transports.chat import ChatTransport
from audiobatch.transports.realtime_words import Hearing

if TYPE_CHECKING:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.transports.auth import EntraTokens
    from audiobatch.transports.base import Transport


def open_transport(
    spec: JobSpec,
    *,
    endpoint: str | None,
    deployment: str,
    key: str | None,
    tokens: EntraTokens | None,
    transcribes: bool = False,
    most_sessions: int | None = None,
) -> Transport:
    """To one deployment; connections are made when they are needed.

    Args:
        transcribes: it writes down what is said, and makes no replies.
        most_sessions: realtime sessions that this process has room for; None: as many as the job wants.
    """
    provider: Literal["azure", "openai"] = "openai" if spec.provider == "openai" else "azure"
    if transcribes:
        from audiobatch.transports.transcriptions import TranscriptionTransport

        return TranscriptionTransport(
            provider=provider,
            endpoint=endpoint,
            api_version=spec.api_version,
            deployment=deployment,
            key=key,
            tokens=tokens,
            timeout_s=spec.timeout_s,
            most_reply_bytes=spec.max_reply_mb * 1_000_000,
        )
    if spec.transport == "realtime":
        from audiobatch.transports.realtime import RealtimeTransport

        return RealtimeTransport(
            provider=provider,
            endpoint=endpoint,
            deployment=deployment,
            key=key,
            tokens=tokens,
            timeout_s=spec.timeout_s,
            most_reply_bytes=spec.max_reply_mb * 1_000_000,
            hearing=Hearing(
                transcription_model=spec.transcription_model,
                voice_detection=spec.vad == "server_vad",
                threshold=spec.vad_threshold,
                prefix_padding_ms=spec.vad_prefix_padding_ms,
                silence_ms=spec.vad_silence_ms,
            ),
            max_sessions=min(spec.concurrency_ceiling, most_sessions or spec.concurrency_ceiling),
        )
    return ChatTransport(
        provider=provider,
        endpoint=endpoint,
        api_version=spec.api_version,
        deployment=deployment,
        key=key,
        tokens=tokens,
        timeout_s=spec.timeout_s,
        most_reply_bytes=spec.max_reply_mb * 1_000_000,
        stream=spec.stream,
    )
