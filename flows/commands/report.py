"""`audiobatch report DIR`: the folder's reports made again from the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flows.commands.folders import folder_argument, opened

if TYPE_CHECKING:
    from pathlib import Path


@click.command(short_help="Make the manifest again from the ledger.")
@folder_argument
def report(folder: Path) -> int:
    """Make DIR's manifest again from its ledger. Nothing is sent."""
    from pipeline.reports.views import Views
    from pipeline.store.storage import LocalStorage

    with opened(folder) as found:
        views = Views(LocalStorage(folder), found.ledger, found.spec, run_id=None)
        views.write_all()
    click.echo(str(folder / Views.MANIFEST))
    return 0
