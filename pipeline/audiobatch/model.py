"""What travels through the pipeline: Source → Item → Turn → Request → Reply → Outcome.

All are frozen. Names carry units: `_s` seconds, `_hz` hertz, `_bytes`, `_usd` US dollars, `_dbfs` decibels
below full scale. Text that came from a model or a user is data and is never used as a path or a command.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from audiobatch.errors import redacted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from decimal import Decimal

    from audiobatch.answer_schema import AnswerFields
    from audiobatch.errors import ErrorType

Modality = Literal["text", "audio"]


class SourceKind(StrEnum):
    """What an input is."""

    RECORDING = "recording"
    PROMPT = "prompt"


class Status(StrEnum):
    """The manifest's `status`. `refused`: a bad input, not sent. `unknown`: sent, its end is unknown."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    PENDING = "pending"


class PartKind(StrEnum):
    """What a part's row in the ledger records.

    `reply`: the reply to a part of a recording. `input`: the transcript of a recording. `speech`: the transcript
    of a spoken reply. `answer`: an answer without the required fields, until it is repaired.
    """

    REPLY = "reply"
    INPUT = "input"
    SPEECH = "speech"
    ANSWER = "answer"


class Check(StrEnum):
    """A flaw of a reply that a listener wants to know before listening; thresholds in `audio/measure.py`."""

    SILENT = "silent"
    NEAR_SILENT = "near_silent"
    CLIPPED = "clipped"
    TRUNCATED = "truncated"
    TEXT_ONLY = "text_only"
    NO_TRANSCRIPT = "no_transcript"
    REFUSAL = "refusal"
    NOT_VERBATIM = "not_verbatim"
    SPEECH_RATE = "speech_rate"
    REPAIRED = "repaired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """A recording as probed: measured from its samples where that is possible, not from its header.

    Attributes:
        container: what the bytes are, whatever the name says: `wav`, `mp3`, `flac`, …
        codec: how the samples are stored: `pcm_s16le`, `pcm_mulaw`, `mp3`, …
        level_dbfs: RMS level, None where it was not measured.
        silence_share: share of the duration below the silence threshold, 0 to 1; None: not measured.
        notes: what a person should know (`extension says .wav, content is mp3`).
        trimmable_s: seconds by which it gets shorter when its long silences are cut; None: not measured.
        mix_channel: the channel, from 0, to send where the mean of all would cancel them out; None: send the mean.
    """

    container: str
    codec: str
    duration_s: float
    sample_rate_hz: int
    channels: int
    level_dbfs: float | None = None
    silence_share: float | None = None
    notes: tuple[str, ...] = ()
    trimmable_s: float | None = None
    mix_channel: int | None = None

    def __post_init__(self) -> None:
        if self.duration_s < 0 or self.sample_rate_hz <= 0 or self.channels <= 0:
            raise ValueError(f"not a recording: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """What one row of a prompt table sets for itself; None leaves the job's setting."""

    filename: str | None = None
    voice: str | None = None
    format: str | None = None
    system: str | None = None
    deployment: str | None = None
    temperature: float | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None


#: The columns of a prompt table with a meaning of their own; all others are the user's data.
MEANT_COLUMNS = frozenset({"id", "prompt", *RowSettings.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One input as discovered: a recording on disk, or a text prompt.

    Attributes:
        item_id: stable across runs, unique in the job.
        position: in input order; changes when inputs are added before it.
        root: the folder (or file's folder) that `path` is relative to; empty for stdin.
        path: POSIX path of the file it came from, relative to `root`.
        text: the prompt's text; empty for a recording without one of its own.
        row: the user's own columns of the prompt table, as text, and all others that the job's prompts may name.
        sha256: of the recording's bytes, or of the prompt text as UTF-8.
        refusal: why it cannot be sent; empty when it can.
    """

    item_id: str
    kind: SourceKind
    position: int
    root: str
    path: str
    text: str = ""
    row: Mapping[str, str] = field(default_factory=dict)
    settings: RowSettings = RowSettings()
    size_bytes: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    media: Media | None = None
    refusal: str = ""

    def __post_init__(self) -> None:
        if not self.item_id:
            raise ValueError("a source needs an item_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One exchange of an item, with its settings resolved.

    Attributes:
        number: 1 for the first.
        text: what the user says in text; empty when the recording stands alone.
        fingerprint: SHA-256 over all that decides the reply, the earlier turns included.
        answer: the fields that the reply's text must hold as JSON.
        note: what a reviewer wants changed, in a redo that follows a note.
        kept_as: the fingerprint that this turn has without its note; empty where there is none.
    """

    number: int
    text: str
    modalities: tuple[Modality, ...]
    voice: str
    format: str
    fingerprint: str
    answer: AnswerFields | None = None
    note: str = ""
    kept_as: str = ""

    @property
    def wants_audio(self) -> bool:
        """Whether a spoken reply is requested."""
        return "audio" in self.modalities


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A source with its turns and the settings of its requests."""

    source: Source
    turns: tuple[Turn, ...]
    system: str
    model: str
    deployment: str | None = None
    temperature: float | None = None
    seed: int | None = None
    max_completion_tokens: int | None = None
    read_aloud: bool = False

    @property
    def item_id(self) -> str:
        """The source's id."""
        return self.source.item_id


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioPart:
    """Encoded audio as it is sent: a whole `wav` or `mp3` file's bytes."""

    data: bytes = field(repr=False)
    format: Literal["wav", "mp3"]
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorReply:
    """An earlier reply that a follow-up names: by its audio id while that is valid, else by its text.

    Attributes:
        spoken_tokens: audio tokens of the reply; 0: it was not spoken, None: unknown.
    """

    audio_id: str | None
    audio_expires_at: float | None
    text: str
    spoken_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """An earlier turn: the user's message, and the reply."""

    text: str
    audio: AudioPart | None
    reply: PriorReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One turn, ready for a transport; the same for every deployment."""

    item_id: str
    turn: int
    system: str
    history: tuple[Exchange, ...]
    text: str
    audio: AudioPart | None
    modalities: tuple[Modality, ...]
    voice: str
    format: str
    temperature: float | None = None
    seed: int | None = None
    max_completion_tokens: int | None = None

    @property
    def wants_audio(self) -> bool:
        """Whether a spoken reply is requested."""
        return "audio" in self.modalities


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens as the service counted them. Input counts include the cached ones."""

    input_text_tokens: int = 0
    input_audio_tokens: int = 0
    cached_tokens: int = 0
    output_text_tokens: int = 0
    output_audio_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """All tokens, input and output."""
        return (
            self.input_text_tokens
            + self.input_audio_tokens
            + self.output_text_tokens
            + self.output_audio_tokens
        )

    def __add__(self, other: Usage) -> Usage:
        """Add the tokens of two calls."""
        names = [field.name for field in fields(self)]
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in names})


def total_usage(usages: Iterable[Usage | None]) -> Usage | None:
    """Add the tokens of several calls, without those that state none; None where no call states any."""
    known = [usage for usage in usages if usage is not None]
    return sum(known[1:], known[0]) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """A passage of a transcript with its times, in seconds from the beginning of the recording."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Reply:
    """A reply, decoded: bytes are bytes, times are seconds, whatever the transport.

    Attributes:
        text: `message.content`; the answer where text alone was requested.
        transcript: of the reply's audio.
        audio: encoded in `audio_format`; None when the service sent none.
        audio_expires_at: epoch seconds until which `audio_id` may be named by a follow-up.
        input_transcript: of the user's audio, where the transport gives one.
        input_usage: tokens of that transcript, which is billed beside the reply; None where none was made.
        limits: the service's rate-limit headers, lower case.
        repaired: it was malformed, and could be read all the same.
        cues: passages of a transcription with their times, where the service gives any.
        raw: the body as it came, in case it turns out to be wrong.
    """

    text: str
    transcript: str
    audio: bytes | None = field(repr=False)
    audio_format: str
    audio_id: str | None
    audio_expires_at: float | None
    finish_reason: str
    usage: Usage | None
    model: str
    request_id: str | None
    latency_s: float
    input_transcript: str = ""
    input_usage: Usage | None = None
    repaired: bool = False
    limits: Mapping[str, str] = field(default_factory=dict)
    cues: tuple[Cue, ...] = ()
    raw: bytes = field(default=b"", repr=False)

    @property
    def transcript_or_text(self) -> str:
        """The transcript, or the text where no audio came."""
        return self.transcript or self.text

    def without_secrets(self) -> Reply:
        """Remove credentials that the service repeats in its text; sound and `raw` stay as they are."""
        names = ("text", "transcript", "input_transcript", "audio_id", "finish_reason", "model", "request_id")
        texts = {name: value for name in names if (value := getattr(self, name))}
        clean: dict[str, Any] = {name: redacted(value) for name, value in texts.items()}
        cues = tuple(replace(cue, text=redacted(cue.text)) for cue in self.cues)
        if clean == texts and cues == self.cues:
            return self
        return replace(self, **clean, cues=cues)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFile:
    """A file in the output folder: POSIX path relative to it, size, and SHA-256 of its bytes."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A reviewer's mark on what is recorded of a turn now: `ok`, `redo`, `reject`, or a note alone."""

    review: str
    note: str = ""


class CostBasis(StrEnum):
    """How a cost is known: from the service's own counts, by our estimate, or not at all."""

    USAGE = "usage"
    ESTIMATE = "estimate"
    UNKNOWN = "unknown"


def weakest_basis(bases: Iterable[CostBasis | None]) -> CostBasis | None:
    """Return the basis of a sum of costs, the weakest of theirs; None for those that cost nothing."""
    known = set(bases)
    return next((basis for basis in reversed(CostBasis) if basis in known), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one turn of one item ended; final once recorded.

    Attributes:
        kept_as: another fingerprint that it counts for: the one asked for today where `--keep` accepted it, the
            one without the note where a note steered it.
        cost_basis: None where nothing was bought, or an earlier version recorded it.
    """

    item_id: str
    turn: int
    fingerprint: str
    status: Status
    run_id: str
    started_at: datetime
    finished_at: datetime
    version: int = 1
    prompt: str = ""
    error_type: ErrorType | None = None
    error_message: str = ""
    transcript: str = ""
    input_transcript: str = ""
    audio: SavedFile | None = None
    audio_duration_s: float | None = None
    transcript_file: SavedFile | None = None
    raw_reply: SavedFile | None = None
    checks: tuple[Check, ...] = ()
    voice: str = ""
    format: str = ""
    model: str = ""
    deployment: str = ""
    provider: str = ""
    transport: str = ""
    attempts: int = 0
    perhaps_billed: int = 0
    latency_s: float | None = None
    usage: Usage | None = None
    cost_usd: Decimal | None = None
    cost_basis: CostBasis | None = None
    finish_reason: str = ""
    request_id: str = ""
    audio_id: str | None = None
    audio_expires_at: float | None = None
    parts: int | None = None
    trimmed_s: float | None = None
    word_error_rate: float | None = None
    input_sha256: str = ""
    settings_key: str = ""
    kept_as: str = ""


def basis_of(outcome: Outcome) -> CostBasis | None:
    """Return the basis of an outcome's cost, also of one that an earlier version recorded without it."""
    if outcome.cost_basis is not None:
        return outcome.cost_basis
    if outcome.cost_usd is not None:
        return CostBasis.USAGE
    return CostBasis.UNKNOWN if outcome.status is Status.SUCCEEDED or outcome.perhaps_billed else None


def next_version(before: Outcome | None) -> int:
    """Return the version of the outcome that replaces this one: a success stays as a version of its own."""
    return before.version + (before.status is Status.SUCCEEDED) if before else 1
