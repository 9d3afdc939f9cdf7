"""Money that may be spent: each call's worst case is set aside before it is sent, so no cap is ever passed.

What a call really cost replaces its reservation when that is known. A call with an unknown end, or a reply that
was bought and could not be read, keeps its worst case: it was perhaps billed. Amounts are `Decimal`, in USD.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

NOTHING = Decimal(0)


@dataclass(slots=True)
class Spending:
    """One run's account.

    Attributes:
        run_cap: the most that this run may cost; None: no cap.
        total_cap: the most that the folder's runs together may cost.
        spent_before: by earlier runs, perhaps-billed calls included.
        spent: by this run, the same way.
        reserved: the worst case of calls that are in flight.
    """

    run_cap: Decimal | None = None
    total_cap: Decimal | None = None
    spent_before: Decimal = NOTHING
    spent: Decimal = NOTHING
    reserved: Decimal = field(default=NOTHING)

    @property
    def is_capped(self) -> bool:
        return self.run_cap is not None or self.total_cap is not None

    @property
    def left(self) -> Decimal | None:
        """What may still be reserved; None: no cap."""
        taken = self.spent + self.reserved
        rooms = []
        if self.run_cap is not None:
            rooms.append(self.run_cap - taken)
        if self.total_cap is not None:
            rooms.append(self.total_cap - self.spent_before - taken)
        return min(rooms) if rooms else None

    def fits(self, worst: Decimal) -> bool:
        """Whether a call may be made that costs at most this."""
        left = self.left
        return left is None or worst <= left

    def reserve(self, worst: Decimal) -> None:
        """Set aside the worst case of a call that fits."""
        self.reserved += worst

    def settle(self, worst: Decimal, actual: Decimal) -> None:
        """A call has ended: what it cost takes the place of its reservation."""
        self.reserved -= worst
        self.spent += actual

    def words(self, worst: Decimal) -> str:
        """Why a call of this worst case is not made."""
        which = []
        if self.run_cap is not None and self.spent + self.reserved + worst > self.run_cap:
            which.append(f"--max-cost {self.run_cap}")
        total = self.spent_before + self.spent
        if self.total_cap is not None and total + self.reserved + worst > self.total_cap:
            which.append(f"--max-total-cost {self.total_cap} (this folder has cost up to ${total:.4f})")
        return (
            f"the next call could cost up to ${worst:.4f} and pass {' and '.join(which) or 'the limit'}; "
            f"this run has cost up to ${self.spent:.4f}"
        )
