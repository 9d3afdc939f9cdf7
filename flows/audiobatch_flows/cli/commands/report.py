"""`audiobatch report DIR`: the folder's reports made again from the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from audiobatch_flows.cli.commands.folders import folder_argument, opened

if TYPE_CHECKING:
    from audiobatch.address import Location


@click.command(short_help="Make the manifest, the workbook and the page again from the ledger.")
@folder_argument
@click.option("--jsonl", is_flag=True, help="Write manifest.jsonl too: one JSON object a row.")
@click.option("--parquet", is_flag=True, help="Write manifest.parquet too (needs pyarrow).")
@click.option(
    "--manifest-columns", metavar="NAMES", help="Only these columns, in this order; in.*, reply.*, -name."
)
@click.option(
    "--parts",
    type=click.IntRange(min=1),
    metavar="ROWS",
    help="Write only manifest-parts/00001.csv, 00002.csv, …, of so many rows each; with --parquet, as Parquet too.",
)
def report(
    folder: Location, *, jsonl: bool, parquet: bool, manifest_columns: str | None, parts: int | None
) -> int:
    """Make DIR's manifest, workbook and page again from its ledger. Nothing is sent."""
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.reports.views import Views

    with opened(folder) as found:
        values = found.spec.model_dump()
        asked = [name for name, wanted in (("jsonl", jsonl), ("parquet", parquet)) if wanted]
        values["reports"] = (*dict.fromkeys((*found.spec.reports, *asked)),)
        if manifest_columns is not None:
            values["manifest_columns"] = manifest_columns
        views = Views(found.storage, found.ledger, JobSpec.model_validate(values), run_id=None)
        views.check()
        if parts is not None:
            click.echo("\n".join(str(folder / name) for name in views.write_parts(parts, parquet=parquet)))
            return 0
        for note in views.write_all(again=True):
            click.echo(f"audiobatch: {note}", err=True)
    click.echo("\n".join(str(folder / path.name) for path in views.paths()))
    return 0
