"""Count manifest rows, and format amounts for people.

`Totals` are what workbook and page show, counted while the rows are written. `overview` counts a folder's rows by
status and its failures by type; `reasons` groups a run's failures by message.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, TypeVar

from audiobatch.errors import shown
from audiobatch.model import Status
from audiobatch.reports.rows import manifest_rows

if TYPE_CHECKING:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger

Row = TypeVar("Row", bound=Mapping[str, object])
#: A deployment's name where a row has none.
NO_DEPLOYMENT = "(none)"


@dataclass(slots=True)
class Totals:
    """Sums and counts over rows; `add` each row once. Each distribution takes eight bytes a row."""

    rows: int = 0
    items: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    error_types: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)
    rows_by_deployment: Counter[str] = field(default_factory=Counter)
    cost_by_deployment: dict[str, Decimal] = field(default_factory=dict)
    cost_usd: Decimal = Decimal(0)
    rows_without_price: int = 0
    input_audio_s: float = 0.0
    output_audio_s: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    perhaps_billed: int = 0
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    durations_s: array[float] = field(default_factory=lambda: array("d"))
    first_started: datetime | None = None
    last_finished: datetime | None = None

    def add(self, row: Mapping[str, object]) -> None:
        """Count one manifest row of raw values."""
        self.rows += 1
        self.statuses[str(row.get("status") or "pending")] += 1
        first_turn = row.get("turn") in (None, 1)
        self.items += first_turn
        if error := row.get("error_type"):
            self.error_types[str(error)] += 1
        self.checks.update(check_names(row.get("checks")))
        if review := row.get("review"):
            self.reviews[str(review)] += 1
        self._add_money(row)
        if first_turn:  # later turns have the same recording
            self.input_audio_s += number(row.get("input_duration_s")) or 0.0
        if (duration_s := number(row.get("audio_duration_s"))) is not None:
            self.output_audio_s += duration_s
            self.durations_s.append(duration_s)
        if (latency_s := number(row.get("latency_s"))) is not None:
            self.latencies_s.append(latency_s)
        for name in ("input_text", "input_audio", "cached", "output_text", "output_audio"):
            self.tokens[name] += int(number(row.get(f"{name}_tokens")) or 0)
        self.perhaps_billed += int(number(row.get("perhaps_billed")) or 0)
        self._add_times(row.get("started_at"), row.get("finished_at"))

    def count(self, chunks: Iterable[Sequence[Row]]) -> Iterator[Sequence[Row]]:
        """Yield the chunks unchanged, and add their rows."""
        for chunk in chunks:
            for row in chunk:
                self.add(row)
            yield chunk

    def _add_money(self, row: Mapping[str, object]) -> None:
        cost = row.get("cost_usd")
        sent = bool(row.get("attempts")) or cost is not None
        if not sent:
            return
        deployment = str(row.get("deployment") or NO_DEPLOYMENT)
        self.rows_by_deployment[deployment] += 1
        if cost is None:
            self.rows_without_price += row.get("status") == "succeeded"
            return
        amount = cost if isinstance(cost, Decimal) else Decimal(str(cost))
        self.cost_usd += amount
        self.cost_by_deployment[deployment] = self.cost_by_deployment.get(deployment, Decimal(0)) + amount

    def _add_times(self, started: object, finished: object) -> None:
        if isinstance(started, datetime) and (self.first_started is None or started < self.first_started):
            self.first_started = started
        if isinstance(finished, datetime) and (self.last_finished is None or finished > self.last_finished):
            self.last_finished = finished


def number(value: object) -> float | None:
    """Return a raw cell as a number; None where it is not one."""
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return float(value)
    return None


def check_names(value: object) -> tuple[str, ...]:
    """Return the names in a `checks` cell, which is a tuple or a text with spaces."""
    if isinstance(value, str):
        return tuple(value.split())
    return tuple(map(str, value)) if isinstance(value, Iterable) else ()


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which `share` (0 to 1) of the values lie; None without values."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Counts of manifest rows, and what all calls of all runs on the folder cost.

    Attributes:
        uncounted: calls whose cost is not known: in flight, of an unknown end, or without a price.
        at_most_usd: what those cost at most; None where one of them has no known bound.
    """

    statuses: dict[str, int]
    error_types: dict[str, int]
    spent_usd: Decimal
    uncounted: int
    at_most_usd: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Rows of a run that have no result for the same reason.

    Attributes:
        first: the first such item.
    """

    status: str
    message: str
    count: int
    first: str

    def __str__(self) -> str:
        more = f" and {self.count - 1:,} more" if self.count > 1 else ""
        return f"{self.status}: {shown(self.first)}{more}: {self.message}"


_NO_RESULT = frozenset({Status.FAILED.value, Status.REFUSED.value, Status.UNKNOWN.value})


def reasons(ledger: Ledger, spec: JobSpec, run_id: str) -> list[Reason]:
    """Group the rows of a run that failed, were refused or are unknown; the most frequent reason first."""
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for chunk in manifest_rows(ledger.reader.recorded(touched_by=run_id), spec, run_id=run_id):
        for row in chunk:
            if row["status"] in _NO_RESULT:
                key = str(row["status"]), str(row.get("error_message") or row.get("error_type") or "")
                counts[key] += 1
                first.setdefault(key, str(row["item_id"]))
    return [
        Reason(status=status, message=message, count=count, first=first[status, message])
        for (status, message), count in counts.most_common()
    ]


def overview(ledger: Ledger, spec: JobSpec) -> Overview:
    """Count the rows of the manifest."""
    statuses: Counter[str] = Counter()
    error_types: Counter[str] = Counter()
    for chunk in manifest_rows(ledger.reader.recorded(), spec):
        for row in chunk:
            statuses[row["status"]] += 1
            if row["status"] != Status.SUCCEEDED.value and row.get("error_type"):
                error_types[str(row["error_type"])] += 1
    calls, at_most_usd = ledger.reader.uncounted()
    return Overview(
        statuses={status.value: statuses[status.value] for status in Status if statuses[status.value]},
        error_types=dict(error_types.most_common()),
        spent_usd=ledger.reader.spent_usd(),
        uncounted=calls,
        at_most_usd=at_most_usd,
    )


_MINUTE_S = 60
_HOUR_S = 3_600
_CENT = Decimal("0.01")


def duration_text(seconds: float) -> str:
    """Format a duration: `4.2 s`, `3:07 min`, `2:05 h`."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < _HOUR_S:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    minutes = int(seconds) // 60
    return f"{minutes // 60:,}:{minutes % 60:02d} h"


def money_text(usd: Decimal) -> str:
    """Format dollars, with more decimals for small amounts."""
    if not usd:
        return "$0"
    if usd >= 1:
        return f"${usd:,.2f}"
    return f"${usd:.3f}" if usd >= _CENT else f"${usd:.5f}"
