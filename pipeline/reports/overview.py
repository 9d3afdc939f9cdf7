"""A folder's rows counted: by status, and failures by kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.model import Status
from pipeline.reports.rows import manifest_rows

if TYPE_CHECKING:
    from decimal import Decimal

    from pipeline.jobspec import JobSpec
    from pipeline.store.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Counts of manifest rows, most usual first, and what all calls of the folder's life have cost."""

    statuses: dict[str, int]
    error_types: dict[str, int]
    spent_usd: Decimal


def overview(ledger: Ledger, spec: JobSpec) -> Overview:
    """Count every row that the manifest has."""
    statuses: Counter[str] = Counter()
    error_types: Counter[str] = Counter()
    for chunk in manifest_rows(ledger.recorded(), spec):
        for row in chunk:
            statuses[row["status"]] += 1
            if row["status"] != Status.SUCCEEDED.value and row.get("error_type"):
                error_types[str(row["error_type"])] += 1
    return Overview(
        statuses={status.value: statuses[status.value] for status in Status if statuses[status.value]},
        error_types=dict(error_types.most_common()),
        spent_usd=ledger.spent_usd(),
    )
