"""`audiobatch status DIR`: what a folder holds, also while a run works on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from audiobatch_flows.cli.commands.folders import at_work, folder_argument, opened

if TYPE_CHECKING:
    from audiobatch.address import Location


@click.command(short_help="What a folder holds: done, failed, pending, spent.")
@folder_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(folder: Location, *, as_json: bool) -> int:
    """Count what DIR holds: rows by status, failures by kind, what was spent, and who works on it now."""
    from datetime import UTC, datetime, timedelta

    from audiobatch.reports.totals import overview
    from audiobatch_flows import summary_text

    with opened(folder) as found:
        holder = at_work(found)
        seen = overview(found.ledger, found.spec)
        at = datetime.now(UTC)
        now = found.ledger.reader.progress(at - timedelta(minutes=1)) if holder else None
        rate = now.per_minute(at) if now else 0.0
        waiting = sum(1 for _ in found.spool.entries())
    if as_json:
        counts = {
            "output": str(folder),
            "running": holder or None,
            "statuses": seen.statuses,
            "error_types": seen.error_types,
            "spent_usd": float(seen.spent_usd),
            "calls_of_unknown_cost": seen.uncounted,
            "their_cost_at_most_usd": float(seen.at_most_usd) if seen.at_most_usd is not None else None,
            "kept_elsewhere": waiting,
            "run": None
            if now is None
            else {
                "queued": now.queued,
                "ended": now.ended,
                "in_flight": now.in_flight,
                "rate_per_min": round(rate, 1),
            },
        }
        click.echo(json.dumps(counts, ensure_ascii=False))
        return 0
    click.echo(f"{folder}: {'a run is at work: ' + holder if holder else 'no run is at work'}")
    if now is not None:
        left = max(0, now.queued - now.ended)
        pace = f", {rate:,.0f}/min" if rate else ""
        if left and rate:
            pace += f", {summary_text.duration(60 * left / rate)} left"
        click.echo(
            f"  {now.ended:,} of its {now.queued:,} items ended, {now.in_flight} calls in flight{pace}"
        )
    if waiting:
        click.echo(
            f"  {waiting} paid replies wait in the spool, outside this folder; the next run replays them"
        )
    for name, count in seen.statuses.items():
        click.echo(f"  {name:<10} {count:>8,}")
    for name, count in seen.error_types.items():
        click.echo(f"    {name:<16} {count:>6,}")
    more = ""
    if seen.uncounted:
        most = f", at most {summary_text.money(seen.at_most_usd)}" if seen.at_most_usd is not None else ""
        more = f", and {summary_text.counted(seen.uncounted, 'call')} whose cost is not known{most}"
    click.echo(f"  spent so far {summary_text.money(seen.spent_usd)}{more}")
    return 0
