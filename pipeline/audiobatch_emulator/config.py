"""Everything that can be set about the emulator, in one frozen value."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

CHAT_MODELS = (
    "gpt-4o-audio-preview",
    "gpt-4o-mini-audio-preview",
    "gpt-audio",
    "gpt-audio-mini",
    "gpt-audio-1.5",
)
REALTIME_MODELS = (
    "gpt-4o-realtime-preview",
    "gpt-4o-mini-realtime-preview",
    "gpt-realtime",
    "gpt-realtime-mini",
    "gpt-realtime-1.5",
    "gpt-realtime-2",
    "gpt-realtime-2.1",
    "gpt-realtime-2.1-mini",
)
#: `whisper` is Azure's name for what OpenAI calls `whisper-1`.
WHISPER_MODELS = ("whisper-1", "whisper")
TRANSCRIPTION_MODELS = (*WHISPER_MODELS, "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe")

FilterResults = Literal["none", "on", "down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one deployment may take in a minute; None is no limit."""

    rpm: int | None = None
    tpm: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("rpm", self.rpm), ("tpm", self.tpm)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


def _known_deployments() -> Mapping[str, str]:
    return MappingProxyType({name: name for name in CHAT_MODELS + REALTIME_MODELS + TRANSCRIPTION_MODELS})


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorConfig:
    """The emulator's settings.

    The known models are always there as deployments of their own name; `deployments` adds to them.
    Switches at the end are for what is not known for certain of the real service, or differs by region.
    """

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    port: int = 0
    tls_port: int = 0
    api_key: str = "emulator-key"
    deployments: Mapping[str, str] = field(default_factory=_known_deployments)
    quotas: Mapping[str, Quota] = field(default_factory=lambda: MappingProxyType({}))
    latency_s: float = 0.0
    faults: Path | None = None
    journal: Path | None = None
    speech: Literal["real", "tone"] = "real"
    seed: int = 0
    exit_on_stdin_close: bool = False
    token_life_s: float = 86_400.0
    audio_id_life_s: float = 3600.0
    session_life_s: float = 1800.0
    reply_audio_s: float | None = None
    """Makes every spoken reply this long, whatever its text: for load tests."""
    max_audio_bytes: int = 20 * 1024 * 1024
    unstated_max_tokens: int = 1000
    """What the token quota assumes of a request that names no maximum."""
    azure_first_chunk: bool = True
    azure_filter_results: FilterResults = "none"
    preview_voices_only: bool = False
    """The dated previews speak only alloy, echo and shimmer, as Azure's page of 2024-12-17 says."""
    block_prompt_word: str = "emulator_block_prompt"
    block_reply_word: str = "emulator_block_reply"
    refuse_word: str = "emulator_refuse"

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "deployments", MappingProxyType({**_known_deployments(), **self.deployments})
        )
        for model in self.deployments.values():
            if not model.isascii() or not model.isprintable():
                raise ValueError(f"a model's name is printable ASCII, not {model!r}")
        for name in ("port", "tls_port"):
            if not 0 <= getattr(self, name) <= 65_535:
                raise ValueError(f"{name} must be from 0 to 65535, not {getattr(self, name)}")
        for name in ("token_life_s", "audio_id_life_s", "session_life_s", "reply_audio_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number of seconds, not {value}")
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise ValueError(f"latency_s must be 0 or more, not {self.latency_s}")
        if not self.api_key or not self.api_key.isascii() or not self.api_key.isprintable():
            raise ValueError("api_key must be one or more printable ASCII characters")
