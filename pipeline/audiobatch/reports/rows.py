"""Turn the ledger's records into manifest rows: one for each item and turn, in input order, pending ones too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from audiobatch.address import Address
from audiobatch.answer_schema import answer_fields
from audiobatch.errors import ErrorType, InputError
from audiobatch.inputs.sound_settings import why_unsuitable
from audiobatch.model import MEANT_COLUMNS, SourceKind, Status, basis_of
from audiobatch.planning.items import build_item
from audiobatch.reports.links import AUDIO_STAMP, INPUT_LINK, link_to_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from audiobatch.address import Location
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.reader import Recorded
    from audiobatch.model import Item, Outcome, Source

#: Columns that an `Outcome` has under the same name.
_OUTCOME_COLUMNS = (
    *("transcript", "audio_duration_s", "input_transcript", "version", "voice", "format", "model"),
    *("deployment", "provider", "transport", "attempts", "perhaps_billed", "latency_s", "cost_usd"),
    *("finish_reason", "error_type", "error_message", "request_id", "run_id", "started_at", "finished_at"),
    *("parts", "trimmed_s", "word_error_rate", "input_sha256", "fingerprint", "prompt"),
)
_USAGE = (
    *("input_text_tokens", "input_audio_tokens", "cached_tokens"),
    *("output_text_tokens", "output_audio_tokens"),
)


def manifest_rows(
    records: Iterable[Recorded],
    spec: JobSpec,
    *,
    run_id: str | None = None,
    output: Location | None = None,
    chunk: int = 1000,
) -> Iterator[list[dict[str, Any]]]:
    """Yield manifest rows in chunks.

    Args:
        records: in input order (`LedgerReader.recorded`).
        spec: the job, which says what inputs without a result will be asked.
        run_id: yield only this run's results and the inputs that it refused; None: all.
        output: where the reports will be: rows get a relative link to their recording (`INPUT_LINK`).
        chunk: rows in a chunk, approximately.
    """
    rows: list[dict[str, Any]] = []
    for record in records:
        rows.extend(
            row
            for row in _rows_of(record, spec, output)
            if run_id is None or row["run_id"] == run_id or row["status"] == Status.REFUSED.value
        )
        if len(rows) >= chunk:
            yield rows
            rows = []
    if rows:
        yield rows


def own_columns(row_texts: Iterable[str]) -> list[str]:
    """Return the `in.<name>` columns of all inputs, in the order in which they first appear.

    Args:
        row_texts: the inputs' table rows as JSON.
    """
    columns: dict[str, None] = {}
    for text in row_texts:
        columns.update(dict.fromkeys(_table_columns(orjson.loads(text))))
    return list(columns)


def _rows_of(record: Recorded, spec: JobSpec, output: Location | None) -> Iterator[dict[str, Any]]:
    refusal = record.source.refusal or ("" if record.outcomes else why_unsuitable(record.source, spec))
    item: Item | None = None
    fields, last = answer_fields(spec.fields), len(spec.turn_specs())
    is_complete = all(number in record.outcomes for number in range(1, last + 1))
    if not refusal and not is_complete:
        try:
            item = build_item(record.source, spec)
        except InputError as refused:
            refusal = refused.message
    turns = {turn.number: turn for turn in item.turns} if item else {}
    for number in sorted({*record.outcomes, *turns} or {1}):
        row = _input_columns(record.source, number)
        if output is not None and record.source.kind is SourceKind.RECORDING:
            row[INPUT_LINK] = link_to_input(output, record.source.root, record.source.path)
        if (review := record.reviews.get(number)) is not None:
            row |= {"review": review.review, "review_note": review.note}
        outcome = record.outcomes.get(number)
        if outcome is not None:
            row |= _outcome_columns(outcome)
            if isinstance(output, Address) and outcome.audio is not None:
                row[AUDIO_STAMP] = outcome.audio.sha256[:16]
            if fields and number == last and outcome.status is Status.SUCCEEDED:
                row |= fields.parse_leniently(outcome.transcript)
        elif refusal:
            row |= {
                "status": Status.REFUSED.value,
                "error_type": ErrorType.INPUT.value,
                "error_message": refusal,
                "prompt": record.source.text or None,
            }
        else:
            turn = turns[number]
            row |= {
                "status": Status.PENDING.value,
                "prompt": turn.text,
                "voice": turn.voice or None,
                "format": turn.format or None,
                "model": item.model if item else None,
                "fingerprint": turn.fingerprint,
            }
        yield row


def _input_columns(source: Source, number: int) -> dict[str, Any]:
    recording = source.kind is SourceKind.RECORDING
    return {
        "item_id": source.item_id,
        "turn": number,
        "run_id": None,
        "input": source.path if recording or source.path else None,
        "input_duration_s": source.media.duration_s if source.media and number == 1 else None,
        "input_sha256": source.sha256 or None,
        **_table_columns(source.row),
    }


def _table_columns(row: Mapping[str, str]) -> dict[str, str]:
    """Return a table row's cells as `in.<name>`, without the columns that are settings of the item."""
    return {f"in.{name}": value for name, value in row.items() if name not in MEANT_COLUMNS}


def _outcome_columns(outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {name: _none_if_empty(getattr(outcome, name)) for name in _OUTCOME_COLUMNS}
    row["status"] = outcome.status.value
    row["audio_file"] = outcome.audio.path if outcome.audio else None
    row["transcript_file"] = outcome.transcript_file.path if outcome.transcript_file else None
    row["checks"] = tuple(check.value for check in outcome.checks)
    basis = basis_of(outcome)
    row["cost_basis"] = basis.value if basis else None
    row |= {name: getattr(outcome.usage, name) if outcome.usage else None for name in _USAGE}
    return row


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value
