"""What a job is: one schema for the job file, the command line's flags, and forms made from its JSON schema.

A `JobSpec` never contains a secret, since it is written to `job.json`, shown and logged. `config/settings.py` knows
where each value came from (flag, file, environment).

A `[[deployments]]` entry of a job file is a deployment that calls can go to, with its quota, priority and price.
What an entry leaves out comes from the job: provider, endpoint, API version, model, auth.
"""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from ipaddress import ip_address
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from audiobatch.address import checked, checked_ledger
from audiobatch.answer_schema import AnswerField, load_fields
from audiobatch.model import Check, Modality

#: The service does not offer the last two: audiobatch encodes them itself.
AudioFormat = Literal["wav", "mp3", "flac", "opus", "aac", "pcm16", "m4a", "ogg"]
#: Voices that are documented today. The list grows, so that another voice is a warning, not an error.
#: Source: OpenAI API reference, chat completions, `audio.voice` (2026-11).
KNOWN_VOICES = (
    *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"),
    *("marin", "nova", "onyx", "sage", "shimmer", "verse"),
)
DEFAULT_MODEL = "gpt-audio-1.5"
DEFAULT_REALTIME_MODEL = "gpt-realtime"
#: Loudness of spoken replies where `normalize` gives none: AES TD1008 recommends it for speech that is streamed or
#: downloaded; broadcasters require -23 (EBU R 128).
#: Source: radioworld.com, "Streaming Audio Loudness Guidelines Explained" (on TD1008), checked 2026-11-20.
DEFAULT_LUFS = -18.0
MIN_LUFS = -40.0
MAX_LUFS = -5.0
DEFAULT_TRANSCRIPTION_MODEL = "gpt-4o-mini-transcribe"
#: Fields in which `true` means a default value, and `false` none.
TRUE_MEANS_DEFAULT = ("normalize", "verify_speech")
DEFAULT_MAX_FAILURES = "20%"
#: Calls in flight at most, where the job does not limit them: they grow with what the service accepts.
DEFAULT_MAX_CONCURRENCY = 512
_MAX_FAILURES = re.compile(r"\d+(\.\d+)?%?")
_CHECK_ACTION = re.compile(r"flag|redo(?::([1-9]))?")
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^\W\d][\w .-]*)\}")


def _modalities(value: object) -> object:
    """Read `text`, `audio` and `text,audio`; the service requires `text` with `audio`."""
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    if isinstance(parts, (list, tuple)) and set(parts) == {"audio"}:
        return ("text", "audio")
    return parts


def _title(name: str, _info: object) -> str:
    """Return a field's title in the JSON schema: `timeout_s` → `Timeout (seconds)`."""
    for ending, unit in (("_ms", " (milliseconds)"), ("_s", " (seconds)")):
        if name.endswith(ending):
            return name.removesuffix(ending).replace("_", " ").capitalize() + unit
    return {"rpm": "Requests a minute", "tpm": "Tokens a minute"}.get(
        name, name.replace("_", " ").capitalize()
    )


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Modalities = Annotated[tuple[Modality, ...], BeforeValidator(_modalities), Field(min_length=1, max_length=2)]


def _default_for_true(default: object) -> BeforeValidator:
    """Read `true` (or a flag without a value) as the default, and `false` as none."""
    return BeforeValidator(
        lambda value: {True: default, False: None}[value] if isinstance(value, bool) else value
    )


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


def _split_at_commas(value: object) -> object:
    parts = (value,) if isinstance(value, str) else value
    if isinstance(parts, (list, tuple)):
        return tuple(name.strip() for part in parts for name in str(part).split(",") if name.strip())
    return value


def _reports(value: object) -> object:
    """Read `xlsx,html`, or `none` for the CSV alone."""
    parts = _split_at_commas(value)
    return () if parts == ("none",) else parts


Columns = Annotated[tuple[str, ...], BeforeValidator(_split_at_commas)]
Reports = Annotated[
    tuple[Literal["xlsx", "html", "jsonl", "parquet"], ...], BeforeValidator(_reports), Field(max_length=4)
]
AnswerFieldList = Annotated[tuple[AnswerField, ...], BeforeValidator(load_fields)]


class TurnSpec(BaseModel):
    """A turn of a job with several. What it leaves out comes from the job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(default="", description="What to say in this turn; {column} is filled from a table")
    modalities: Modalities | None = Field(
        default=None, description="text, or text,audio; a follow-up's default is text"
    )
    voice: str | None = Field(default=None, description="Voice of this turn's reply")
    format: AudioFormat | None = Field(default=None, description="Audio format of this turn's reply")


class JobSpec(BaseModel):
    """Everything that decides a run, without secrets."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        title="audiobatch job",
        hide_input_in_errors=True,
        field_title_generator=_title,
    )

    inputs: Texts = Field(
        default=(),
        description="Folders of recordings or .txt prompts, single files, prompt tables (.csv .xlsx .jsonl); "
        "also az://container/prefix and s3://bucket/prefix",
    )
    output: str | None = Field(
        default=None,
        description="Folder for results, az://container/prefix or s3://bucket/prefix (with a ledger elsewhere); "
        "default outputs/<name of the input>",
    )
    ledger: str | None = Field(
        default=None,
        description="The job's ledger: a file, or a PostgreSQL database that several machines share "
        "(postgresql+psycopg://USER@HOST/DATABASE); default <output>/ledger.db",
    )
    lease_s: float = Field(
        default=60,
        ge=1,
        le=3600,
        description="PostgreSQL ledger: seconds until other runs take over the items of a run that went silent",
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
    model: str = Field(
        default=DEFAULT_MODEL,
        description="Model behind the deployment: prices go by it; default with transport realtime: gpt-realtime",
    )
    transport: Literal["chat", "realtime"] = Field(
        default="chat", description="chat completions over HTTP, or Realtime sessions over WebSockets"
    )
    stream: bool = Field(
        default=False, description="Stream chat replies: long ones are written to disk as they arrive"
    )
    transcription_model: str | None = Field(
        default=None,
        min_length=1,
        description="Realtime: model that transcribes each recording in its session, such as whisper-1",
    )
    vad: Literal["none", "server_vad"] = Field(
        default="none",
        description="Realtime: send recordings whole, or let the service detect the speech in them",
    )
    vad_threshold: float = Field(
        default=0.5, ge=0, le=1, description="Realtime: how loud speech must be, 0 to 1"
    )
    vad_prefix_padding_ms: int = Field(
        default=300, ge=0, le=10_000, description="Realtime: milliseconds of audio before speech to include"
    )
    vad_silence_ms: int = Field(
        default=500, ge=20, le=10_000, description="Realtime: milliseconds of silence that end speech"
    )
    auth: Literal["key", "entra"] | None = Field(
        default=None, description="Which credential to use when both are set up"
    )

    prompt: Texts = Field(
        default=(), description="Prompt to send with each input; repeat for follow-up turns"
    )
    turns: tuple[TurnSpec, ...] = Field(default=(), description="Turns with settings of their own")
    system: str | None = Field(default=None, description="System prompt")
    read_aloud: bool = Field(
        default=False, description="Read each prompt aloud word for word, do not answer it"
    )
    modalities: Modalities = Field(
        default=("text", "audio"), description="Modalities of the first reply: text, or text,audio"
    )
    voice: str = Field(default="alloy", min_length=1, description="Voice of the replies")
    format: AudioFormat = Field(default="wav", description="Audio format of the replies")
    normalize: Annotated[float | None, _default_for_true(DEFAULT_LUFS)] = Field(
        default=None,
        ge=MIN_LUFS,
        le=MAX_LUFS,
        description=f"Bring replies to this loudness, in LUFS; {DEFAULT_LUFS:g} if no value is given",
    )
    trim_reply_silence: bool = Field(default=False, description="Cut silence before and after replies")
    fade_s: float = Field(
        default=0, ge=0, le=10, description="Fade replies in and out over this many seconds"
    )
    temperature: float | None = Field(default=None, ge=0, le=2, description="Sampling temperature, 0 to 2")
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1, description="Best-effort repeatability")
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="Longest reply, in tokens (audio: 20 a second, text on top)"
    )

    include: Texts = Field(
        default=(), description="Take only files of a folder that match, such as '*.m4a' or 'calls/*'"
    )
    exclude: Texts = Field(default=(), description="Leave out files of a folder that match")
    send_silent: bool = Field(default=False, description="Also send recordings without speech")
    channels: Literal["mix", "left", "right", "split"] = Field(
        default="mix",
        description="Channels of a stereo recording: mixed, one of them, or each as its own item",
    )
    trim_silence: bool = Field(
        default=False, description="Shorten long silences of recordings before sending"
    )
    max_part: float | None = Field(
        default=None,
        ge=0.1,
        le=180,
        description="Longest part of a recording to send in one request, in minutes",
    )
    on_check: Texts = Field(
        default=(),
        description="CHECK=redo[:N] requests a reply with this flaw again; CHECK=flag only marks it",
    )
    transcribe_inputs: str | None = Field(
        default=None, min_length=1, description="Model (Azure: deployment) that transcribes recordings"
    )
    verify_speech: Annotated[str | None, _default_for_true(DEFAULT_TRANSCRIPTION_MODEL)] = Field(
        default=None,
        min_length=1,
        description="Transcribe spoken replies and count the words that differ; optionally, with this model",
    )
    fields: AnswerFieldList = Field(
        default=(),
        description="A fields.json: request a JSON answer in the last turn, a reply.<name> column for each field",
    )

    one_prompt_per_line: bool = Field(
        default=False, description="Each line of a .txt file is a separate prompt"
    )
    limit: int | None = Field(default=None, ge=1, description="Send at most this many items in this run")
    stop_at: str | None = Field(
        default=None, description="Stop at this local time, HH:MM, after the calls in flight"
    )
    max_failures: str = Field(
        default=DEFAULT_MAX_FAILURES,
        description="Stop after this many failures: a number, or a share (20%) once 20 items have ended",
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Calls in flight at once; default: as many as the service accepts",
    )
    rpm: int | None = Field(default=None, ge=1, description="Requests a minute that the quota allows")
    tpm: int | None = Field(default=None, ge=1, description="Tokens a minute that the quota allows")
    deployments: tuple[DeploymentSpec, ...] = Field(
        default=(), description="Several deployments, each with quota and priority; job file only"
    )
    max_cost: Usd | None = Field(default=None, description="Highest cost of this run, in US dollars")
    max_total_cost: Usd | None = Field(
        default=None, description="Highest cost of all runs on this output folder together, in US dollars"
    )
    prices: str | None = Field(
        default=None, description="Your own price table: an edited copy of prices.toml"
    )
    wait: bool = Field(
        default=False,
        description="Wait as long as the service asks for; default: stop after a wait of 15 minutes",
    )
    on_unknown: Literal["retry", "skip"] = Field(
        default="retry",
        description="Calls whose end was not seen: send them again (at most twice), or skip them",
    )
    retry_text_only: bool = Field(
        default=False, description="Send again once when the reply lacks the requested audio"
    )
    redo: bool = Field(default=False, description="Send items again whose job settings changed")
    keep: bool = Field(default=False, description="Keep results as they are although job settings changed")
    adopt: bool = Field(
        default=False,
        description="Record results that the folder has and its ledger, an older one, lacks",
    )
    force: bool = Field(default=False, description="Let redo also send items again that a reviewer approved")
    manifest_columns: Columns = Field(
        default=(), description="Columns of the manifest, in this order; in.*, reply.* and -name work too"
    )
    reports: Reports = Field(
        default=("xlsx", "html"),
        description="Reports beside manifest.csv: xlsx, html, jsonl, parquet; or none",
    )
    timeout_s: float = Field(
        default=600, gt=0, le=86_400, allow_inf_nan=False, description="Longest time for one call, in seconds"
    )
    max_reply_mb: int = Field(
        default=128, ge=1, le=4096, description="Largest reply to accept, in megabytes after decompression"
    )
    drain_timeout_s: float = Field(
        default=20, ge=0, le=600, description="After Ctrl-C: seconds for calls in flight to finish"
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

    @field_validator("on_check")
    @classmethod
    def _check_actions(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            check_action(value)
        return values

    @field_validator("stop_at")
    @classmethod
    def _clock(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                time.fromisoformat(value)
            except ValueError:
                raise ValueError("give a time of day as HH:MM") from None
        return value

    @field_validator("inputs")
    @classmethod
    def _inputs(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked(value) for value in values)

    @field_validator("output")
    @classmethod
    def _output(cls, value: str | None) -> str | None:
        return None if value is None else checked(value)

    @field_validator("ledger")
    @classmethod
    def _ledger(cls, value: str | None) -> str | None:
        return checked_ledger(value)

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        return checked_endpoint(value)

    @model_validator(mode="before")
    @classmethod
    def _model_of_transport(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("transport") == "realtime" and not values.get("model"):
            return {**values, "model": DEFAULT_REALTIME_MODEL}
        return values

    @model_validator(mode="before")
    @classmethod
    def _model_of_deployments(cls, values: Any) -> Any:
        """Where only entries name a model, take the first one as the job's."""
        given = values.get("deployments") if isinstance(values, dict) else None
        if not isinstance(given, (list, tuple)) or values.get("model"):
            return values
        models = [
            entry.get("model") if isinstance(entry, dict) else getattr(entry, "model", None)
            for entry in given
        ]
        named = [model for model in models if model]
        return {**values, "model": named[0]} if named else values

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        labels = [deployment.label for deployment in self.deployments]
        if repeated := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two [[deployments]] are called {repeated[0]}; give each a different name")
        if self.deployments and self.deployment and self.deployment not in labels:
            raise ValueError(
                f"deployment {self.deployment!r} is not one of the [[deployments]]: leave it out"
            )
        return self

    @property
    def concurrency_ceiling(self) -> int:
        """The most calls that may be in flight at once, on all deployments together."""
        if self.max_concurrency is not None:
            return self.max_concurrency
        limits = [deployment.max_concurrency or 0 for deployment in self.deployments]
        if limits and all(limits):
            return sum(limits)
        return DEFAULT_MAX_CONCURRENCY

    @model_validator(mode="after")
    def _check_transport(self) -> Self:
        if self.transport == "chat":
            if self.transcription_model or self.vad != "none":
                raise ValueError("transcription_model and vad are settings of transport realtime")
            return self
        if self.stream:
            raise ValueError("stream is a setting of transport chat; realtime replies are always streamed")
        if self.temperature is not None or self.seed is not None:
            raise ValueError("the Realtime API has no temperature and no seed; leave them out")
        if self.provider == "azure" and self.api_version != "v1":
            raise ValueError(
                f"on Azure, the Realtime API exists only at api_version v1, not {self.api_version}; "
                "set api_version to v1 (OPENAI_API_VERSION=v1)"
            )
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.prompt and self.turns:
            raise ValueError("give either prompt (one text a turn) or [[turns]], not both")
        if self.redo and self.keep:
            raise ValueError("give either redo or keep, not both")
        if self.fields and "audio" in (self.turn_specs()[-1].modalities or ()):
            raise ValueError(
                "fields are answered in text: use modalities text, or ask for them in a follow-up prompt"
            )
        return self

    def turn_specs(self) -> tuple[TurnSpec, ...]:
        """Return the turns with modalities filled in: the job's for the first, text for a follow-up."""
        return _turns_with_modalities(self.turns, self.prompt, self.modalities)

    def as_parameter(self) -> dict[str, Any]:
        """Return as JSON values what differs from the defaults, and always inputs, output, provider and model.

        `model_validate` restores the same job from it: a missing model would be derived from other fields.
        """
        always = {"inputs": list(self.inputs), "output": self.output}
        always |= {"provider": self.provider, "model": self.model}
        return {**always, **self.model_dump(mode="json", exclude_defaults=True)}

    def stop_time(self, now: datetime) -> datetime | None:
        """Return the next time after `now` (local, aware) that `stop_at` names; None where it names none."""
        if self.stop_at is None:
            return None
        clock = time.fromisoformat(self.stop_at)
        today = now.replace(hour=clock.hour, minute=clock.minute, second=clock.second, microsecond=0)
        return today if today > now else today + timedelta(days=1)

    def failure_limit(self, items: int) -> float:
        """Return how many of so many items may fail; infinite where a share of few items would mean little."""
        if not self.max_failures.endswith("%"):
            return float(self.max_failures)
        return float("inf") if items < 20 else items * float(self.max_failures[:-1]) / 100


@lru_cache(maxsize=16)  # called for every item
def _turns_with_modalities(
    turns: tuple[TurnSpec, ...], prompt: tuple[str, ...], modalities: tuple[Modality, ...]
) -> tuple[TurnSpec, ...]:
    given = turns or tuple(TurnSpec(prompt=text) for text in prompt) or (TurnSpec(),)
    return tuple(
        turn
        if turn.modalities
        else turn.model_copy(update={"modalities": modalities if number == 0 else ("text",)})
        for number, turn in enumerate(given)
    )


def check_action(text: str) -> tuple[Check, int]:
    """Read `truncated=redo:2`: the check, and how often a reply that fails it is requested again; 0: never.

    Raises:
        ValueError: there is no such check, or no such action.
    """
    name, _, action = text.partition("=")
    match = _CHECK_ACTION.fullmatch(action.strip())
    if match is None:
        raise ValueError(f"{text!r}: give CHECK=redo, CHECK=redo:N (N from 1 to 9) or CHECK=flag")
    try:
        check = Check(name.strip())
    except ValueError:
        raise ValueError(f"{name!r} is not a check; the checks are: {', '.join(Check)}") from None
    return check, int(match[1] or 1) if action.strip() != "flag" else 0


def placeholders(template: str) -> list[str]:
    """Return the column names in a prompt template; `{{` and `}}` are literal braces."""
    return [match[1] for match in _PLACEHOLDER.finditer(template) if match[1]]


def fill(template: str, row: dict[str, Any]) -> str:
    """Fill the placeholders of a template.

    Raises:
        KeyError: the row has no such column.
    """

    def value(match: re.Match[str]) -> str:
        return str(row[match[1]]) if match[1] else match[0][0]

    return _PLACEHOLDER.sub(value, template)


Provider = Literal["azure", "openai", "local"]


def as_decimal(value: object) -> object:
    """Turn a float of a TOML file into the decimal that was written: 0.1 is exactly 0.1."""
    return Decimal(repr(value)) if isinstance(value, float) else value


Usd = Annotated[Decimal, BeforeValidator(as_decimal), Field(ge=0, allow_inf_nan=False)]


def checked_endpoint(value: str | None) -> str | None:
    """Return a service address without its last slash.

    Raises:
        ValueError: it is not https (or http to this machine), or contains a secret.
    """
    if value is None:
        return None
    if re.search(r"[\s\x00-\x1f\x7f\\\\]", value):
        raise ValueError("give an address without spaces and backslashes")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("give an address with a host name, and a port from 0 to 65535 if any") from None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        raise ValueError("give an address that begins with https://, without a user name or key")
    if parts.query or parts.fragment or "?" in value or "#" in value:
        raise ValueError("give the address without '?' or '#' and what follows them")
    if parts.scheme == "http" and not _is_this_machine(host):
        raise ValueError("plain http is allowed only for this machine; give an https:// address")
    return value.rstrip("/")


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class PriceSpec(BaseModel):
    """The price of a deployment's tokens, in US dollars per million, instead of the price table's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_in: Usd
    text_out: Usd
    audio_in: Usd
    audio_out: Usd
    cached_in: Usd | None = None


class DeploymentSpec(BaseModel):
    """A `[[deployments]]` entry: one of several deployments that serve a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployment: str = Field(min_length=1, description="Deployment name (OpenAI: the model's)")
    name: str | None = Field(
        default=None,
        min_length=1,
        description="Its name in the manifest, if two have the same deployment name",
    )
    provider: Provider | None = Field(default=None, description="Its provider; default the job's")
    endpoint: str | None = Field(default=None, description="Service address; default the job's")
    api_version: str | None = Field(default=None, description="Azure: v1, or a dated version")
    model: str | None = Field(default=None, min_length=1, description="Model behind it; default the job's")
    auth: Literal["key", "entra"] | None = Field(default=None, description="Which credential to use")
    key_variable: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable of its key, if not the usual one",
    )
    rpm: int | None = Field(default=None, ge=1, description="Requests a minute that its quota allows")
    tpm: int | None = Field(default=None, ge=1, description="Tokens a minute that its quota allows")
    max_concurrency: int | None = Field(default=None, ge=1, le=1000, description="Calls in flight at once")
    priority: int = Field(
        default=0, description="Lower goes first; higher takes what the lower ones have no capacity for"
    )
    price: PriceSpec | None = Field(default=None, description="US dollars per million tokens")

    @property
    def label(self) -> str:
        """Its name in the manifest, on the progress line, and in a table's `deployment` column."""
        return self.name or self.deployment

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        return checked_endpoint(value)
