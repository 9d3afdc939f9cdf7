"""What a job is: one schema for the job file, the command line's flags, and Prefect's parameter form.

`JobSpec` holds no secret, ever: it is written to `job.json`, shown in Prefect's pages, and logged. Where a
value came from (flag, file, environment) is `pipeline/settings.py`'s business.
"""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from pipeline.model import Modality

Provider = Literal["azure", "openai", "local"]
AudioFormat = Literal["wav", "mp3", "flac", "opus", "aac", "pcm16"]

#: The voices that are documented today; the list grows, so another one is a warning, not an error.
#: Source: OpenAI API reference, chat completions, `audio.voice` (2026-11).
KNOWN_VOICES = (
    *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"),
    *("marin", "nova", "onyx", "sage", "shimmer", "verse"),
)
DEFAULT_MODEL = "gpt-audio-1.5"
DEFAULT_MAX_FAILURES = "20%"
_MAX_FAILURES = re.compile(r"\d+(\.\d+)?%?")
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^\W\d][\w .-]*)\}")


def _modalities(value: object) -> object:
    """`text`, `audio` and `text,audio` as one writes them; the service wants `text` beside `audio`."""
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    if isinstance(parts, (list, tuple)) and set(parts) == {"audio"}:
        return ("text", "audio")
    return parts


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Modalities = Annotated[tuple[Modality, ...], BeforeValidator(_modalities), Field(min_length=1, max_length=2)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]


class TurnSpec(BaseModel):
    """One exchange of a several-turn job. What is left out comes from the job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(default="", description="What to say in this turn; {column} is filled from a table")
    modalities: Modalities | None = Field(
        default=None, description="text, or text,audio; a follow-up's default is text"
    )
    voice: str | None = Field(default=None, description="Voice of this turn's reply")
    format: AudioFormat | None = Field(default=None, description="Audio format of this turn's reply")


class JobSpec(BaseModel):
    """Everything that decides a run, but no secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="audiobatch job")

    inputs: Texts = Field(
        default=(),
        description="Folders of recordings or .txt prompts, single files, prompt tables (.csv .xlsx .jsonl)",
    )
    output: str | None = Field(
        default=None, description="Folder for results; default outputs/<name of the input>"
    )
    provider: Provider = Field(
        default="azure", description="Where calls go; local is the emulator and needs no account"
    )
    endpoint: str | None = Field(
        default=None, description="Service address (AZURE_OPENAI_ENDPOINT or OPENAI_BASE_URL)"
    )
    api_version: str = Field(
        default="v1", description="Azure: v1, or a dated version such as 2025-01-01-preview"
    )
    deployment: str | None = Field(default=None, description="Deployment name (AZURE_OPENAI_DEPLOYMENT_NAME)")
    model: str = Field(default=DEFAULT_MODEL, description="Model behind the deployment: prices go by it")
    auth: Literal["key", "entra"] | None = Field(
        default=None, description="Which credential to use when both are there"
    )

    prompt: Texts = Field(default=(), description="What to say beside each input; again for a follow-up turn")
    turns: tuple[TurnSpec, ...] = Field(default=(), description="Turns with settings of their own")
    system: str | None = Field(default=None, description="System prompt")
    read_aloud: bool = Field(default=False, description="Speak each prompt word for word, do not answer it")
    modalities: Modalities = Field(
        default=("text", "audio"), description="What the first turn asks for: text, or text,audio"
    )
    voice: str = Field(default="alloy", min_length=1, description="Voice of the replies")
    format: AudioFormat = Field(default="wav", description="Audio format of the replies")
    temperature: float | None = Field(default=None, ge=0, le=2, description="Sampling temperature, 0 to 2")
    seed: int | None = Field(default=None, description="Best-effort repeatability")
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="Longest reply, in tokens (audio: 20 a second, text on top)"
    )

    one_prompt_per_line: bool = Field(
        default=False, description="Each line of a .txt file is a prompt of its own"
    )
    limit: int | None = Field(default=None, ge=1, description="Send at most this many items in this run")
    stop_at: str | None = Field(default=None, description="Stop orderly at this local time, HH:MM")
    max_failures: str = Field(
        default=DEFAULT_MAX_FAILURES,
        description="Stop after this many failures, a number or a share (20%) once 20 calls were made",
    )
    max_concurrency: int = Field(default=16, ge=1, le=1000, description="Calls in flight at once")
    rpm: int | None = Field(default=None, ge=1, description="Requests a minute that the quota allows")
    tpm: int | None = Field(default=None, ge=1, description="Tokens a minute that the quota allows")
    on_unknown: Literal["retry", "skip"] = Field(
        default="retry", description="Calls whose end was not seen: send again (at most twice), or leave"
    )
    retry_text_only: bool = Field(
        default=False, description="Ask once more when the reply came without the audio asked for"
    )
    redo: bool = Field(default=False, description="Make results again whose job settings changed")
    keep: bool = Field(default=False, description="Keep results as they are though job settings changed")
    timeout_s: float = Field(default=600, gt=0, description="Longest time for one call, in seconds")
    drain_timeout_s: float = Field(
        default=20, ge=0, le=600, description="After Ctrl-C: seconds that calls in flight may take"
    )

    @field_validator("max_failures", mode="before")
    @classmethod
    def _failures_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("max_failures")
    @classmethod
    def _failures(cls, value: str) -> str:
        if not _MAX_FAILURES.fullmatch(value.strip()):
            raise ValueError("give a number (50) or a share (20%)")
        return value.strip()

    @field_validator("stop_at")
    @classmethod
    def _clock(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                time.fromisoformat(value)
            except ValueError:
                raise ValueError("give a time of day as HH:MM") from None
        return value

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.match(r"https?://[^/\s@]+", value):
            raise ValueError("give an address that begins with https://, without a user name or key")
        loopback = re.match(r"http://(127\.\d+\.\d+\.\d+|localhost|\[::1\])([:/]|$)", value)
        if value.startswith("http://") and not loopback:
            raise ValueError("plain http goes only to this machine; give an https:// address")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.prompt and self.turns:
            raise ValueError("give either prompt (one text a turn) or [[turns]], not both")
        if self.redo and self.keep:
            raise ValueError("redo and keep exclude each other")
        return self

    def turn_specs(self) -> tuple[TurnSpec, ...]:
        """The turns with modalities filled in: the job's for the first, text for a follow-up."""
        given = self.turns or tuple(TurnSpec(prompt=text) for text in self.prompt) or (TurnSpec(),)
        return tuple(
            turn
            if turn.modalities
            else turn.model_copy(update={"modalities": self.modalities if number == 0 else ("text",)})
            for number, turn in enumerate(given)
        )

    def stop_time(self, now: datetime) -> datetime | None:
        """The next moment at or after `now` (local, aware) that `stop_at` names."""
        if self.stop_at is None:
            return None
        clock = time.fromisoformat(self.stop_at)
        today = now.replace(hour=clock.hour, minute=clock.minute, second=clock.second, microsecond=0)
        return today if today > now else today + timedelta(days=1)

    def failure_limit(self, calls: int) -> float:
        """How many failures `calls` calls may have; infinite while a share has too few calls to mean much."""
        if not self.max_failures.endswith("%"):
            return float(self.max_failures)
        return float("inf") if calls < 20 else calls * float(self.max_failures[:-1]) / 100


def placeholders(template: str) -> list[str]:
    """The column names a prompt template asks for. `{{` and `}}` stand for literal braces."""
    return [match[1] for match in _PLACEHOLDER.finditer(template) if match[1]]


def fill(template: str, row: dict[str, Any]) -> str:
    """The template with its placeholders filled.

    Raises:
        KeyError: the row has no such column.
    """

    def one(match: re.Match[str]) -> str:
        return str(row[match[1]]) if match[1] else match[0][0]

    return _PLACEHOLDER.sub(one, template)
