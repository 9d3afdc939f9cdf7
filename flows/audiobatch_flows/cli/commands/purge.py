"""`audiobatch purge DIR`: take personal data out of a folder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from audiobatch_flows.cli.commands.folders import alone, folder_argument, opened
from audiobatch_flows.summary_text import counted

if TYPE_CHECKING:
    from audiobatch.address import Location


@click.command(short_help="Take out sound, transcripts and texts; keep counts and costs.")
@folder_argument
@click.option("--item", "item_ids", multiple=True, metavar="ID", help="Only this item; again for more.")
@click.option("--older-than", metavar="30d", help="Only items whose results are older: hours, days, weeks.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(folder: Location, *, item_ids: tuple[str, ...], older_than: str | None, yes: bool) -> int:
    """Delete what DIR's items said and were told: audio, transcripts, earlier versions, texts in the ledger.

    What was sent and when, how it ended, tokens and costs stay, and nothing is sent again for it. Inputs are not
    touched, and a later run that still finds them notes their texts anew; nor are copies that were exported.
    """
    from audiobatch.errors import ConfigError
    from audiobatch.maintenance.purge import parse_age, select_items
    from audiobatch.maintenance.purge import purge as take_out

    oldest = parse_age(older_than) if older_than is not None else None
    with opened(folder) as found, alone(found, "purge"):
        wanted = select_items(found.ledger, item_ids=item_ids, older_than=oldest)
        if wanted and not yes:
            if not sys.stdin.isatty():
                raise ConfigError(
                    f"this would delete the results of {counted(len(wanted), 'item')} for good; say --yes"
                )
            click.confirm(
                f"Delete the results of {counted(len(wanted), 'item')} in {folder} for good?", abort=True
            )
        gone = take_out(found.storage, found.ledger, found.spool, found.spec, wanted)
    click.echo(f"{folder}: {counted(gone.items, 'item')} purged, {counted(gone.files, 'file')} deleted")
    return 0
