"""`audiobatch review DIR`: what a reviewer marked, taken in from a file, and the approved clips handed out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from audiobatch.errors import ExitCode, redacted, shown
from audiobatch_flows.cli.commands.folders import alone, folder_argument, opened
from audiobatch_flows.summary_text import counted

if TYPE_CHECKING:
    from audiobatch.address import Location
    from audiobatch.reports.review import ReviewFile
    from audiobatch_flows.cli.commands.folders import Folder

_MOST_SHOWN = 50


@click.command(short_help="Take in a reviewer's marks; hand out the approved clips.")
@folder_argument
@click.option(
    "--apply",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Take the marks from this file: manifest.xlsx, manifest.csv, or the page's review.csv.",
)
@click.option(
    "--export",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Copy the approved clips to this folder.",
)
@click.option("--dry-run", is_flag=True, help="With --apply: show what would change, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def review(folder: Location, *, file: Path | None, export: Path | None, dry_run: bool, as_json: bool) -> int:
    """Show which rows of DIR are marked ok, redo or reject; or take marks from a file; or export what is ok.

    What was applied last holds. Rows that cannot be taken are named with the reason, and the rest is applied
    (exit code 3). `audiobatch retry DIR --review redo` then makes the marked ones again.
    """
    from audiobatch.errors import ConfigError

    if file and export:
        raise ConfigError("give either --apply or --export")
    if dry_run and not file:
        raise ConfigError("--dry-run goes with --apply")
    with opened(folder) as found:
        if file:
            return _apply(found, file, dry_run=dry_run, as_json=as_json)
        if export:
            return _export(found, export, as_json=as_json)
        return _show(found, as_json=as_json)


def _apply(found: Folder, file: Path, *, dry_run: bool, as_json: bool) -> int:
    from audiobatch.reports.review import read_review_file, record_marks
    from audiobatch.reports.views import Views

    if dry_run:
        reading = read_review_file(file, found.ledger, found.spec)
    else:
        with alone(found, "review"):
            reading = read_review_file(file, found.ledger, found.spec)
            views = Views(found.storage, found.ledger, found.spec, run_id=None)
            record_marks(reading, found.ledger)
            views.settle(reading.rows)
            for note in views.write_all(drawing_s=Views.DRAWING_S):
                click.echo(f"audiobatch: {note}", err=True)
    for refused in reading.refused:
        click.echo(redacted(f"refused: {refused}"), err=True)
    if as_json:
        click.echo(json.dumps(_as_json(found.path, reading, applied=not dry_run), ensure_ascii=False))
    else:
        _print_marks(found.path, reading, dry_run=dry_run)
    return ExitCode.PARTIAL if reading.refused else ExitCode.DONE


def _print_marks(folder: Location, reading: ReviewFile, *, dry_run: bool) -> None:
    for change in reading.changed[:_MOST_SHOWN]:
        note = " ".join(change.mark.note.split())
        click.echo(f"  {change}{f' ({note})' if note else ''}")
    if len(reading.changed) > _MOST_SHOWN:
        click.echo(f"  … and {len(reading.changed) - _MOST_SHOWN:,} more")
    done = "would change" if dry_run else "changed"
    same = len(reading.marks) - len(reading.changed)
    refused = f", {len(reading.refused):,} refused" if reading.refused else ""
    click.echo(f"{counted(len(reading.changed), 'row')} {done}, {same:,} as they were{refused}")
    click.echo(f"marked: {_counts(dict(reading.counts_after))}")
    if reading.counts_after.get("redo") and not dry_run:
        click.echo(f"next: audiobatch retry {folder} --review redo  (--with-notes sends the notes along)")


def _as_json(folder: Location, reading: ReviewFile, *, applied: bool) -> dict[str, object]:
    return {
        "output": str(folder),
        "applied": applied,
        "changed": [
            {
                "item_id": change.mark.item_id,
                "turn": change.mark.turn,
                "was": change.before.review,
                "review": change.mark.review,
                "review_note": change.mark.note,
            }
            for change in reading.changed
        ],
        "unchanged": len(reading.marks) - len(reading.changed),
        "refused": [
            {"where": row.where, "item_id": row.item_id, "reason": row.reason} for row in reading.refused
        ],
        "marks": dict(reading.counts_after),
    }


def _export(found: Folder, target: Path, *, as_json: bool) -> int:
    from audiobatch.answer_schema import answer_fields
    from audiobatch.reports.approved import export_approved
    from audiobatch.reports.rows import manifest_rows, own_columns

    fields = answer_fields(found.spec.fields)
    exported = export_approved(
        manifest_rows(found.ledger.reader.recorded(), found.spec),
        found.storage,
        target,
        extra_columns=[*own_columns(found.ledger.reader.row_texts()), *(fields.columns if fields else ())],
    )
    for item_id in exported.missing:
        click.echo(
            redacted(f"audiobatch: {shown(item_id)}: its clip is not in {found.path} any more"), err=True
        )
    if as_json:
        result = {
            "clips": exported.clips,
            "manifest": str(exported.manifest),
            "missing": list(exported.missing),
        }
        click.echo(json.dumps(result, ensure_ascii=False))
    else:
        click.echo(f"{counted(exported.clips, 'approved clip')} in {target}")
        click.echo(str(exported.manifest))
    return ExitCode.PARTIAL if exported.missing else ExitCode.DONE


def _show(found: Folder, *, as_json: bool) -> int:
    from audiobatch.reports.review import recorded_marks

    known = recorded_marks(found.ledger, found.spec)
    marked = [(key, standing) for key, standing in known.items() if standing.review or standing.note]
    counts: dict[str, int] = {}
    for _, standing in marked:
        counts[standing.review or "note"] = counts.get(standing.review or "note", 0) + 1
    if as_json:
        rows = [
            {"item_id": item_id, "turn": turn, "review": standing.review, "review_note": standing.note}
            for (item_id, turn), standing in marked
        ]
        click.echo(json.dumps({"output": str(found.path), "marks": counts, "rows": rows}, ensure_ascii=False))
        return ExitCode.DONE
    click.echo(f"{found.path}: {counted(len(known), 'row')}; marked: {_counts(counts)}")
    for (item_id, turn), standing in marked[:_MOST_SHOWN]:
        note = " ".join(standing.note.split())
        turns = f" turn {turn}" if turn > 1 else ""
        comment = f" ({shown(note)})" if note else ""
        click.echo(redacted(f"  {standing.review or 'note':<7} {shown(item_id)}{turns}{comment}"))
    if len(marked) > _MOST_SHOWN:
        click.echo(f"  … and {len(marked) - _MOST_SHOWN:,} more")
    return ExitCode.DONE


def _counts(marks: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in marks.items()) or "nothing"
