"""Sources and outcomes as the ledger's rows, and back. Nothing is lost on the way.

An attempt is a call: recorded before it is sent, and again when its end is known. A part is a call below an item's
turn: a stretch of a long recording, or a transcription. Each is recorded when its reply is on disk, so that none
is paid for again when the run ends before the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

from audiobatch.errors import ErrorType
from audiobatch.model import (
    Check,
    CostBasis,
    Cue,
    Media,
    Outcome,
    PartKind,
    RowSettings,
    SavedFile,
    Source,
    SourceKind,
    Status,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import RowMapping

#: Columns that are the same on both sides.
_PLAIN_OUTCOME = (
    *("item_id", "turn", "version", "fingerprint", "run_id", "prompt", "error_message", "transcript"),
    *("input_transcript", "audio_duration_s", "voice", "format", "model", "deployment", "provider"),
    *("transport", "attempts", "perhaps_billed", "latency_s", "finish_reason", "request_id", "audio_id"),
    *("audio_expires_at", "parts", "trimmed_s", "word_error_rate", "input_sha256", "settings_key"),
    "kept_as",
)
_PLAIN_SOURCE = (
    *("item_id", "position", "root", "path", "text", "size_bytes", "mtime_ns", "sha256", "refusal"),
)
_FILES = ("audio", "transcript_file", "raw_reply")
_USAGE = tuple(Usage.__slots__)
_MEDIA = tuple(Media.__slots__)
_SETTINGS = tuple(RowSettings.__slots__)
_NO_SETTINGS = RowSettings()


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def source_to_row(source: Source, queue_id: str) -> dict[str, Any]:
    """Return the row of an input, seen by the run of this queue."""
    row: dict[str, Any] = {name: getattr(source, name) for name in _PLAIN_SOURCE}
    row["kind"] = source.kind.value
    row["row"] = _json(dict(source.row)) if source.row else ""
    row["settings"] = (
        ""
        if source.settings == _NO_SETTINGS
        else _json(
            {name: value for name in _SETTINGS if (value := getattr(source.settings, name)) is not None}
        )
    )
    row["media"] = media_to_text(source.media)
    row["seen_run"] = queue_id
    return row


def source_from_row(row: RowMapping) -> Source:
    """Return the input of a row."""
    return Source(
        kind=SourceKind(row["kind"]),
        row=orjson.loads(row["row"]) if row["row"] else {},
        settings=RowSettings(**orjson.loads(row["settings"])) if row["settings"] else _NO_SETTINGS,
        media=media_from_text(row["media"]),
        **{name: row[name] for name in _PLAIN_SOURCE},
    )


def media_to_text(media: Media | None) -> str:
    """Return a probed recording as JSON; empty without one."""
    return "" if media is None else _json({name: getattr(media, name) for name in _MEDIA})


def media_from_text(text: str) -> Media | None:
    """Return the probed recording of `media_to_text`."""
    if not text:
        return None
    values = orjson.loads(text)
    values["notes"] = tuple(values.get("notes", ()))
    return Media(**values)


def outcome_to_row(outcome: Outcome) -> dict[str, Any]:
    """Return the row of an outcome."""
    row: dict[str, Any] = {name: getattr(outcome, name) for name in _PLAIN_OUTCOME}
    row["status"] = outcome.status.value
    row["started_at"] = outcome.started_at.astimezone(UTC).isoformat(timespec="milliseconds")
    row["finished_at"] = outcome.finished_at.astimezone(UTC).isoformat(timespec="milliseconds")
    row["error_type"] = outcome.error_type.value if outcome.error_type else ""
    row["checks"] = " ".join(check.value for check in outcome.checks)
    row["cost_usd"] = None if outcome.cost_usd is None else str(outcome.cost_usd)
    row["cost_basis"] = outcome.cost_basis.value if outcome.cost_basis else ""
    usage = outcome.usage
    row["usage"] = "" if usage is None else _json({name: getattr(usage, name) for name in _USAGE})
    for name in _FILES:
        saved: SavedFile | None = getattr(outcome, name)
        row[name] = "" if saved is None else _json([saved.path, saved.size_bytes, saved.sha256])
    return row


def outcome_from_row(row: RowMapping | Mapping[str, Any]) -> Outcome:
    """Return the outcome of a row."""
    return Outcome(
        status=Status(row["status"]),
        started_at=datetime.fromisoformat(row["started_at"]),
        finished_at=datetime.fromisoformat(row["finished_at"]),
        error_type=ErrorType(row["error_type"]) if row["error_type"] else None,
        checks=tuple(Check(name) for name in row["checks"].split()),
        cost_usd=None if row["cost_usd"] is None else Decimal(row["cost_usd"]),
        cost_basis=CostBasis(row["cost_basis"]) if row["cost_basis"] else None,
        usage=Usage(**orjson.loads(row["usage"])) if row["usage"] else None,
        audio=_file(row["audio"]),
        transcript_file=_file(row["transcript_file"]),
        raw_reply=_file(row["raw_reply"]),
        **{name: row[name] for name in _PLAIN_OUTCOME},
    )


def _file(text: str) -> SavedFile | None:
    if not text:
        return None
    path, size_bytes, sha256 = orjson.loads(text)
    return SavedFile(path=path, size_bytes=size_bytes, sha256=sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One call, as written down before it is sent.

    Attributes:
        part: that of a long recording, from 1.
        worst_usd: what it costs at most; None: its price is not known.
    """

    attempt_id: str
    item_id: str
    turn: int
    fingerprint: str
    run_id: str
    number: int
    started_at: datetime
    deployment: str
    provider: str
    transport: str
    model: str
    voice: str
    format: str
    prompt: str
    input_sha256: str
    settings_key: str
    part: int | None = None
    worst_usd: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How a call ended: `succeeded`, `failed` (not billed, or billed and useless), or `unknown`.

    Attributes:
        cost_usd: 0 where it was certainly not billed; None: not known, so its worst case counts.
    """

    attempt_id: str
    state: Status
    finished_at: datetime
    error_type: ErrorType | None = None
    request_id: str = ""
    cost_usd: Decimal | None = None


#: The transport of calls that write words down: the manifest's rows are not made of them.
TRANSCRIPTION = "transcription"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOutcome:
    """What became of one part.

    Attributes:
        part: 1 for the first; 0 is the whole, put together, of words that are written down.
        start_s, end_s: where it lies in the recording: a recorded part stands for that stretch and no other.
        cues: the words with their times in the recording, where the service gives any.
        outcome: of this call; its item, turn and version are those of the whole.
    """

    kind: PartKind
    part: int
    start_s: float
    end_s: float
    outcome: Outcome
    cues: tuple[Cue, ...] = ()

    def is_of(self, fingerprint: str, start_s: float, end_s: float) -> bool:
        """Whether it answers the same question about the same stretch, to the hundredth of a second."""
        same = abs(self.start_s - start_s) < 0.01 and abs(self.end_s - end_s) < 0.01
        return same and self.outcome.fingerprint == fingerprint


def part_to_row(part: PartOutcome) -> dict[str, Any]:
    """Return the row of a part."""
    return outcome_to_row(part.outcome) | {
        "kind": part.kind.value,
        "part": part.part,
        "start_s": part.start_s,
        "end_s": part.end_s,
        "cues": orjson.dumps(cues_to_json(part.cues)).decode() if part.cues else "",
    }


def part_from_row(row: RowMapping | Mapping[str, Any]) -> PartOutcome:
    """Return the part of a row."""
    return PartOutcome(
        kind=PartKind(row["kind"]),
        part=row["part"],
        start_s=row["start_s"],
        end_s=row["end_s"],
        outcome=outcome_from_row(row),
        cues=cues_from_json(orjson.loads(row["cues"])) if row["cues"] else (),
    )


def cues_to_json(cues: Iterable[Cue]) -> list[list[Any]]:
    """Return cues as JSON values: start, end, text."""
    return [[cue.start_s, cue.end_s, cue.text] for cue in cues]


def cues_from_json(found: Iterable[Sequence[Any]]) -> tuple[Cue, ...]:
    """Return the cues of `cues_to_json`."""
    return tuple(Cue(start_s=start_s, end_s=end_s, text=text) for start_s, end_s, text in found)
