"""Open the transport that a job asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiobatch.transports.base import ServiceAccess
from audiobatch.transports.chat import ChatTransport
from audiobatch.transports.realtime_request import InputAudioSettings

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
    """Open a transport to one deployment; it connects when it is first used.

    Args:
        transcribes: the deployment transcribes recordings, and makes no replies.
        most_sessions: realtime sessions that this process may open; None: as many as the job allows.
    """
    access = ServiceAccess(
        provider="openai" if spec.provider == "openai" else "azure",
        endpoint=endpoint,
        deployment=deployment,
        api_version=spec.api_version,
        key=key,
        tokens=tokens,
        timeout_s=spec.timeout_s,
        largest_reply_bytes=spec.max_reply_mb * 1_000_000,
    )
    if transcribes:
        from audiobatch.transports.transcriptions import TranscriptionTransport

        return TranscriptionTransport(access)
    if spec.transport == "realtime":
        from audiobatch.transports.realtime import RealtimeTransport

        return RealtimeTransport(
            access,
            input_audio=InputAudioSettings(
                transcription_model=spec.transcription_model,
                voice_detection=spec.vad == "server_vad",
                threshold=spec.vad_threshold,
                prefix_padding_ms=spec.vad_prefix_padding_ms,
                silence_ms=spec.vad_silence_ms,
            ),
            max_sessions=min(spec.concurrency_ceiling, most_sessions or spec.concurrency_ceiling),
        )
    return ChatTransport(access, stream=spec.stream)
