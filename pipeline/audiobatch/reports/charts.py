"""The page's charts as plain shares and labels; the template draws them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from audiobatch.reports.totals import Totals, duration_text, money_text, quantile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

#: Statuses in the order in which a person wants them: good, then what needs attention, then what is to come.
STATUS_ORDER = ("succeeded", "failed", "refused", "unknown", "pending")
_MOST_BARS = 6
_BINS = 16
_OUTLIERS = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: `share` of the longest (0 to 100) is its length, `start` where a stacked one begins."""

    label: str
    value: str
    share: float
    start: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of equal slices from `low` to `high`; what lies above is in the last one (`open_end`)."""

    heights: tuple[float, ...]
    counts: tuple[int, ...]
    labels: tuple[str, ...]
    low: str
    high: str
    open_end: bool
    median: str


def status_bars(totals: Totals) -> list[Bar]:
    """The statuses as parts of one whole."""
    bars, start = [], 0.0
    known = [name for name in STATUS_ORDER if totals.statuses[name]]
    for name in [*known, *sorted(set(totals.statuses) - set(STATUS_ORDER))]:
        share = 100 * totals.statuses[name] / max(1, totals.rows)
        bars.append(Bar(label=name, value=f"{totals.statuses[name]:,}", share=share, start=start))
        start += share
    return bars


def cost_bars(totals: Totals) -> list[Bar]:
    """What each deployment cost, the dearest first; the small ones together."""
    costs = sorted(totals.cost_by_deployment.items(), key=lambda pair: -pair[1])
    if len(costs) > _MOST_BARS:
        rest: Decimal = sum((cost for _, cost in costs[_MOST_BARS - 1 :]), start=costs[0][1] * 0)
        costs = [*costs[: _MOST_BARS - 1], (f"{len(costs) - _MOST_BARS + 1} others", rest)]
    most = max((cost for _, cost in costs), default=None) or 1
    return [
        Bar(label=name, value=money_text(cost), share=float(100 * cost / most))
        for name, cost in costs
        if cost
    ]


def histogram(values: Sequence[float]) -> Histogram | None:
    """How values in seconds are spread; None where there are none."""
    high = quantile(values, _OUTLIERS)
    median = quantile(values, 0.5)
    if high is None or median is None:
        return None
    top = max(values)
    low = min(values)
    if high <= low:
        high = top if top > low else low + 1
    width = (high - low) / _BINS
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, int((value - low) / width))] += 1
    most = max(counts)
    edges = [low + width * place for place in range(_BINS + 1)]
    return Histogram(
        heights=tuple(100 * count / most for count in counts),
        counts=tuple(counts),
        labels=tuple(f"{duration_text(start)} to {duration_text(end)}" for start, end in pairwise(edges)),
        low=duration_text(low),
        high=duration_text(high),
        open_end=top > high,
        median=duration_text(median),
    )
