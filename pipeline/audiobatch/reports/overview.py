"""A folder's rows counted: by status, failures by kind, and a run's by what was said of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.model import Status
from audiobatch.redaction import shown
from audiobatch.reports.rows import manifest_rows

if TYPE_CHECKING:
    from decimal import Decimal

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Counts of manifest rows, most usual first, and what all calls of the folder's life have cost.

    Attributes:
        uncounted: calls whose cost is not known: in flight, of an unknown end, or without a price.
        at_most_usd: what those can have cost; None where one could be anything.
    """

    statuses: dict[str, int]
    error_types: dict[str, int]
    spent_usd: Decimal
    uncounted: int
    at_most_usd: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Rows of a run that have no result, for one and the same reason.

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
    """Why rows of a run failed, were refused, or are unknown; the most usual first."""
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for chunk in manifest_rows(ledger.recorded(touched_by=run_id), spec, run_id=run_id):
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
    """Count every row that the manifest has."""
    statuses: Counter[str] = Counter()
    error_types: Counter[str] = Counter()
    for chunk in manifest_rows(ledger.recorded(), spec):
        for row in chunk:
            statuses[row["status"]] += 1
            if row["status"] != Status.SUCCEEDED.value and row.get("error_type"):
                error_types[str(row["error_type"])] += 1
    calls, at_most_usd = ledger.uncounted()
    return Overview(
        statuses={status.value: statuses[status.value] for status in Status if statuses[status.value]},
        error_types=dict(error_types.most_common()),
        spent_usd=ledger.spent_usd(),
        uncounted=calls,
        at_most_usd=at_most_usd,
    )
