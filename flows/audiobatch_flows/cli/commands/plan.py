"""`audiobatch plan`: what `run` with the same arguments would send, take and cost. Nothing is sent."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from audiobatch_flows.cli.options import JobCommand, job_options, resolve_job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from audiobatch.planning.forecast import Forecast

_MOST_REASONS = 20


@click.command(cls=JobCommand, short_help="What a run would send, take and cost. Sends nothing.")
@job_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(inputs: tuple[str, ...], job_file: Path | None, *, as_json: bool, **flags: Any) -> int:
    """Find and probe the inputs, and say what `run` with the same arguments would send, take and cost.

    Nothing is sent and the output folder is not touched.
    """
    from audiobatch.planning.forecast import forecast

    found = forecast(resolve_job(inputs, job_file, flags).spec)
    if as_json:
        click.echo(json.dumps(found.as_json(), ensure_ascii=False))
        return 0
    for line in lines(found):
        click.echo(line)
    return 0


def lines(found: Forecast) -> Iterator[str]:
    """Return the plan as lines of text."""
    from audiobatch.errors import redacted
    from audiobatch.errors import shown as printable
    from audiobatch.planning.forecast import NEAR_DAYS
    from audiobatch.planning.tokens import FIGURES
    from audiobatch_flows.summary_text import counted, duration

    yield f"{counted(found.items, 'input')} → {found.output}"
    for name, count in (
        ("to send", found.to_send),
        ("done before", found.done),
        ("refused", len(found.refused)),
        ("failed for good", found.final),
        ("unknown", found.unknown),
        ("held back by --limit", found.held_back),
    ):
        if count or name == "to send":
            yield f"  {name:<22}{count:>10,}"
    for reason, count in Counter(found.refused.values()).most_common(_MOST_REASONS):
        first = next(item_id for item_id, why in found.refused.items() if why == reason)
        more = f" and {count - 1} more" if count > 1 else ""
        yield redacted(f"    {printable(first)}{more}: {reason}")
    yield f"  {'calls':<22}{found.calls:>10,}"
    if found.transcription_calls:
        yield f"  {'… to write words down':<22}{found.transcription_calls:>10,}"
    yield f"  {'audio to send':<22}{found.input_audio_s / 60:>10.1f} min"
    if found.trimmed_s:
        worth = f", saving {_dollars(found.trimmed_usd)}" if found.trimmed_usd is not None else ""
        yield f"  {'silence left out':<22}{found.trimmed_s / 60:>10.1f} min{worth}"
    yield ""
    yield f"  {'':<22}{'low':>14}{'expected':>14}{'high':>14}"
    for kind, of in found.tokens.items():
        yield f"  {kind.replace('_', ' '):<22}{of.low:>14,.0f}{of.expected:>14,.0f}{of.high:>14,.0f}"
    if found.cost_usd is None:
        yield f"  {'cost':<22}  unknown: a model below has no known price (--prices, or price in [[deployments]])"
    else:
        shown = "".join(f"{_dollars(found.cost_usd[name]):>14}" for name in FIGURES)
        yield f"  {'cost':<22}{shown}"
    rests_on = f"{found.earlier_replies} earlier replies" if found.earlier_replies else "a first guess"
    yield f"  Replies are expected by {rests_on}; high: each as long as it may be."
    yield ""
    time = "no quota is given (--rpm, --tpm): as fast as the service lets"
    yield f"  time   {duration(found.time_s) if found.time_s is not None else time}"
    free = "" if found.free_bytes is None else f" of {found.free_bytes / 1e9:.1f} GB free"
    yield f"  disk   {found.disk_bytes / 1e6:,.1f} MB{free}"
    for target in found.deployments:
        dates = ""
        if (
            target.retires is not None
            and target.retires_in_days is not None
            and target.retires_in_days <= NEAR_DAYS
        ):
            past = target.retires_in_days < 0
            dates = f" · {'was retired' if past else 'retires'} on {target.retires.isoformat()}"
        price = "" if target.price_known else " · price unknown"
        yield f"  deployment {target.name} ({target.model}, {target.provider}){price}{dates}"


def _dollars(amount: object) -> str:
    value = float(str(amount))
    return f"${value:,.2f}" if value >= 1 else f"${value:.4f}"
