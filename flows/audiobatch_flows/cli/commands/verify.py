"""`audiobatch verify DIR`: is every result there, and is it what was recorded?"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import click

from audiobatch.errors import ExitCode
from audiobatch_flows.cli.commands.folders import alone, at_work, folder_argument, opened
from audiobatch_flows.summary_text import counted

if TYPE_CHECKING:
    from audiobatch.address import Location
    from audiobatch.maintenance.verify import Verified

#: Of one kind, so many are shown; `--json` has them all.
_SHOWN = 20


@click.command(short_help="Check that every result is there and is what was recorded.")
@folder_argument
@click.option("--repair", is_flag=True, help="Put right what can be without sending: reports, left-overs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every finding.")
def verify(folder: Location, *, repair: bool, as_json: bool) -> int:
    """Read every file that DIR's ledger names, compare sizes and hashes, and the manifest with the ledger.

    Nothing is sent and, without --repair, nothing is changed. --repair makes the reports again, deletes temporary
    files, puts back files of a redo that was killed, and moves files that belong to no recorded result to
    versions/unrecorded. A result whose file is gone stays so; mark its row `redo`, and `retry DIR --review redo`
    makes it again.

    \b
    Exit codes: 0 all is well · 2 no folder of ours, or in use · 3 something is wrong
    """  # noqa: D301 - click's mark for lines as they are
    from audiobatch.maintenance.verify import Verification

    with opened(folder) as found, alone(found, "verify") if repair else contextlib.nullcontext():
        holder = "" if repair else at_work(found)
        seen = Verification(
            storage=found.storage,
            ledger=found.ledger,
            spec=found.spec,
            spool=found.spool,
            repair=repair,
            running=bool(holder),
        ).run()
    if holder:
        click.echo(f"Note: {holder} is at work; files alone were checked.", err=True)
    if as_json:
        click.echo(json.dumps(_as_json(folder, seen), ensure_ascii=False))
    else:
        _print(folder, seen)
    return ExitCode.PARTIAL if seen.wrong else ExitCode.DONE


def _as_json(folder: Location, seen: Verified) -> dict[str, object]:
    return {
        "output": str(folder),
        "outcomes": seen.outcomes,
        "files": seen.files,
        "size_bytes": seen.size_bytes,
        "wrong": len(seen.wrong),
        "findings": [
            {
                "trouble": finding.trouble.value,
                "where": finding.where,
                "what": finding.what,
                "repaired": finding.repaired,
            }
            for finding in seen.findings
        ],
    }


def _print(folder: Location, seen: Verified) -> None:
    shown: dict[str, int] = {}
    for finding in seen.findings:
        shown[finding.trouble] = shown.get(finding.trouble, 0) + 1
        if shown[finding.trouble] <= _SHOWN:
            repaired = " (repaired)" if finding.repaired else ""
            where = finding.where if finding.where.isprintable() else ascii(finding.where)
            click.echo(f"{finding.trouble.value}: {where}: {finding.what}{repaired}")
    for trouble, count in shown.items():
        if count > _SHOWN:
            click.echo(f"{trouble}: {count - _SHOWN:,} more")
    wrong = len(seen.wrong)
    words = (
        f"{counted(wrong, 'thing')} {'is' if wrong == 1 else 'are'} wrong" if wrong else "nothing is wrong"
    )
    checked = f"{counted(seen.outcomes, 'outcome')} and {counted(seen.files, 'file')} checked"
    click.echo(f"{folder}: {checked}; {words}")
