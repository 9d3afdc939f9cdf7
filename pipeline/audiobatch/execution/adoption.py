"""A ledger that is older than its folder: detected before anything is bought again, and completed with `--adopt`.

A ledger from a backup knows nothing of the runs since. Its folder does: each run leaves its own list in `runs/`,
and results are where they would be written again. So a run does not begin where the folder has more than the
ledger; `--adopt` reads the lists, and records the rows whose files exist and match the lists.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from audiobatch.audio.measure import measure
from audiobatch.errors import ConfigError, InputError, StorageError, shown
from audiobatch.ledger.rows import Attempt, AttemptEnd
from audiobatch.model import Check, CostBasis, Outcome, SavedFile, Status, Usage
from audiobatch.planning.items import build_item
from audiobatch.reports.manifest import parse_csv
from audiobatch.storage.artifacts import result_paths
from audiobatch.storage.versions import UNRECORDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.storage.local import Storage

log = logging.getLogger(__name__)

_RUNS = "runs"
_MANIFEST = "manifest.csv"
#: Headers count encoders' padding.
_SLACK_S = 0.15
_COUNTS = (
    "input_text_tokens",
    "input_audio_tokens",
    "cached_tokens",
    "output_text_tokens",
    "output_audio_tokens",
)


@dataclass(slots=True)
class Adopted:
    """What was recorded from a folder's own lists.

    Attributes:
        taken: how many rows.
        left: the rows that could not be recorded, each with the reason.
    """

    taken: int = 0
    left: list[str] = field(default_factory=list)


def check_runs(storage: Storage, ledger: Ledger) -> None:
    """Check that the ledger knows each run that has left its list in the folder.

    Raises:
        ConfigError: it does not: it is older than the folder. Nothing was sent.
    """
    if strange := sorted(_listed_runs(storage) - ledger.reader.run_ids()):
        raise ConfigError(_older(storage, f"run {shown(strange[0])} ({_RUNS}/{shown(strange[0])}.csv)"))


def check_result_paths(storage: Storage, ledger: Ledger, spec: JobSpec) -> None:
    """Check that no file is where the result of an item would be written for which the ledger knows no call.

    Raises:
        ConfigError: there is one. Nothing was sent.
    """
    for path in _strange_files(storage, ledger, spec):
        raise ConfigError(_older(storage, f"{shown(path)}, a result"))


def adopt(storage: Storage, ledger: Ledger, spec: JobSpec, settings_key: str) -> Adopted:
    """Record the rows of the folder's lists whose files match; the others are made again.

    Raises:
        StorageError: the output or the ledger cannot be written.
    """
    adopted = Adopted()
    for row in _newest(_rows(storage)):
        known = ledger.reader.outcome(row["item_id"], _turn(row))
        if known is not None and known.status is Status.SUCCEEDED:
            continue
        try:
            outcome = _outcome_of(row, storage)
        except (InputError, StorageError) as refused:
            adopted.left.append(f"{shown(row['item_id'])} turn {_turn(row)}: {refused.message}")
            continue
        ledger.writer.adopt(*_call_of(outcome, settings_key), replace(outcome, settings_key=settings_key))
        adopted.taken += 1
    for run_id in sorted(_listed_runs(storage) - ledger.reader.run_ids()):
        ledger.writer.begin_run(
            run_id, spec=spec.model_dump_json(), settings_key=settings_key, settings_value="{}"
        )
        ledger.writer.end_run(run_id, "{}")
    return adopted


def move_strange_files(storage: Storage, ledger: Ledger, spec: JobSpec) -> int:
    """Move files without a row to `versions/unrecorded/`, since results will be written to their paths.

    Returns:
        How many files.
    """
    strange = list(_strange_files(storage, ledger, spec))
    for path in strange:
        storage.move(path, f"{UNRECORDED}/{path}")
    return len(strange)


def _older(storage: Storage, what: str) -> str:
    return (
        f"{shown(storage.root)}: holds {what} that its ledger does not know: the ledger is older than the folder, "
        "perhaps from a backup, and what was done since would be bought again. Put the newer ledger back; or add "
        "--adopt to record what the folder's lists and files show; or name another --output"
    )


def _listed_runs(storage: Storage) -> set[str]:
    return {PurePosixPath(path).stem for path in storage.walk(_RUNS) if path.endswith(".csv")}


def _strange_files(storage: Storage, ledger: Ledger, spec: JobSpec) -> Iterator[str]:
    """Yield files at the result paths of items without outcome or call."""
    if not any(next(storage.walk(folder), "") for folder in ("audio", "transcripts")):
        return
    for source in ledger.reader.sources_without_calls():
        try:
            item = build_item(source, spec)
        except InputError:  # refused: it has no result
            continue
        for path in result_paths(item):
            if storage.exists(path):
                yield path


def _rows(storage: Storage) -> Iterator[dict[str, str]]:
    """Yield the rows with a result, of every run's list and of the manifest."""
    lists = sorted(path for path in storage.walk(_RUNS) if path.endswith(".csv"))
    for path in (*lists, _MANIFEST):
        if not storage.exists(path):
            continue
        try:
            frame = parse_csv(storage.read(path), path)
        except InputError as refused:
            log.warning("%s", refused.message)
            continue
        if not {"item_id", "turn", "status"} <= set(frame.columns):
            continue
        for row in frame.to_dict("records"):
            if row["status"] == Status.SUCCEEDED.value and row["item_id"]:
                yield {str(name): str(value) for name, value in row.items()}


def _newest(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Return the row of each turn's last version; of the same version, the one that finished last."""
    newest: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        key = (row["item_id"], _turn(row))
        before = newest.get(key)
        if before is None or _age(before) <= _age(row):
            newest[key] = row
    return list(newest.values())


def _age(row: Mapping[str, str]) -> tuple[int, str]:
    return _whole(row.get("version")) or 1, row.get("finished_at", "")


def _turn(row: Mapping[str, str]) -> int:
    return _whole(row.get("turn")) or 1


def _outcome_of(row: Mapping[str, str], storage: Storage) -> Outcome:
    """Make an outcome of a row, with its files as they are.

    Raises:
        InputError: the row lacks a required value, or its files do not match it.
        StorageError: a file does not exist.
    """
    if not row.get("fingerprint") or not row.get("run_id"):
        raise InputError("its row has no fingerprint or run: the list leaves columns out")
    audio = transcript = None
    if path := row.get("audio_file", ""):
        data = storage.read(path)
        _check_sound(data, row)
        audio = SavedFile(path=path, size_bytes=len(data), sha256=storage.sha256(path))
    if path := row.get("transcript_file", ""):
        transcript = SavedFile(path=path, size_bytes=storage.size(path), sha256=storage.sha256(path))
    counts = {name: _whole(row.get(name)) for name in _COUNTS}
    return Outcome(
        item_id=row["item_id"],
        turn=_turn(row),
        fingerprint=row["fingerprint"],
        status=Status.SUCCEEDED,
        run_id=row["run_id"],
        started_at=_time(row.get("started_at")),
        finished_at=_time(row.get("finished_at")),
        version=_whole(row.get("version")) or 1,
        audio=audio,
        audio_duration_s=_number(row.get("audio_duration_s")),
        transcript_file=transcript,
        checks=tuple(Check(name) for name in row.get("checks", "").split() if name in set(Check)),
        attempts=_whole(row.get("attempts")) or 1,
        perhaps_billed=_whole(row.get("perhaps_billed")) or 0,
        latency_s=_number(row.get("latency_s")),
        usage=Usage(**{name: count or 0 for name, count in counts.items()}) if any(counts.values()) else None,
        cost_usd=_money(row.get("cost_usd")),
        cost_basis=CostBasis(basis) if (basis := row.get("cost_basis", "")) in set(CostBasis) else None,
        parts=_whole(row.get("parts")),
        trimmed_s=_number(row.get("trimmed_s")),
        word_error_rate=_number(row.get("word_error_rate")),
        prompt=row.get("prompt", ""),
        transcript=row.get("transcript", ""),
        input_transcript=row.get("input_transcript", ""),
        voice=row.get("voice", ""),
        format=row.get("format", ""),
        model=row.get("model", ""),
        deployment=row.get("deployment", ""),
        provider=row.get("provider", ""),
        transport=row.get("transport", ""),
        finish_reason=row.get("finish_reason", ""),
        request_id=row.get("request_id", ""),
        input_sha256=row.get("input_sha256", ""),
    )


def _check_sound(data: bytes, row: Mapping[str, str]) -> None:
    """Check a row's audio file.

    Raises:
        InputError: it cannot be decoded, or its duration is not the row's.
    """
    stated_s = _number(row.get("audio_duration_s"))
    encoding = "wav" if row.get("format") == "pcm16" else row.get("format") or "wav"
    try:
        clip = measure(data, encoding)
    except ValueError as failed:
        raise InputError(f"{shown(row['audio_file'])} cannot be decoded: {failed}") from failed
    if stated_s is None or abs(clip.duration_s - stated_s) > _SLACK_S:
        raise InputError(
            f"{shown(row['audio_file'])} lasts {clip.duration_s:.2f} s, and its row says "
            f"{row.get('audio_duration_s') or 'nothing'}"
        )


def _call_of(outcome: Outcome, settings_key: str) -> tuple[Attempt, AttemptEnd]:
    """Make the call of an outcome, so that its cost counts towards the folder's total."""
    identity = f"{outcome.run_id}-adopted-{outcome.item_id}-{outcome.turn}-{outcome.version}"
    attempt = Attempt(
        attempt_id=identity,
        item_id=outcome.item_id,
        turn=outcome.turn,
        fingerprint=outcome.fingerprint,
        run_id=outcome.run_id,
        number=outcome.attempts,
        started_at=outcome.started_at,
        deployment=outcome.deployment,
        provider=outcome.provider,
        transport=outcome.transport,
        model=outcome.model,
        voice=outcome.voice,
        format=outcome.format,
        prompt=outcome.prompt,
        input_sha256=outcome.input_sha256,
        settings_key=settings_key,
    )
    end = AttemptEnd(
        attempt_id=identity,
        state=Status.SUCCEEDED,
        finished_at=outcome.finished_at,
        request_id=outcome.request_id,
        cost_usd=outcome.cost_usd if outcome.cost_basis is not CostBasis.ESTIMATE else None,
    )
    return attempt, end


def _time(text: str | None) -> datetime:
    try:
        return datetime.fromisoformat(text or "").astimezone(UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _money(text: str | None) -> Decimal | None:
    try:
        return Decimal(text) if text else None
    except InvalidOperation:
        return None
