"""What the replies to one turn took, all its calls together: the manifest's tokens and cost are of these."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Self

from audiobatch.config.prices import total_usd
from audiobatch.model import CostBasis, basis_of, total_usage, weakest_basis

if TYPE_CHECKING:
    from audiobatch.model import Outcome, Usage


@dataclass(slots=True, kw_only=True)
class TurnCost:
    """A running sum.

    Attributes:
        usage: None while no reply told any.
        cost_usd: None where no reply came, or the cost of one of them is not known.
        basis: what that stands on, the weakest of all replies; None where no reply came.
    """

    usage: Usage | None = None
    cost_usd: Decimal | None = None
    basis: CostBasis | None = None
    _any: bool = False

    @classmethod
    def of(cls, outcome: Outcome | None) -> Self:
        """What a recorded reply took, which another one follows."""
        if outcome is None:
            return cls()
        return cls(usage=outcome.usage, cost_usd=outcome.cost_usd, basis=basis_of(outcome), _any=True)

    def add(self, usage: Usage | None, cost_usd: Decimal | None, basis: CostBasis) -> None:
        """Count one more reply; None: its tokens, or its cost, are not known."""
        before = self.cost_usd if self._any else Decimal(0)
        self.cost_usd = total_usd((before, cost_usd))
        self.usage = total_usage((self.usage, usage))
        self.basis = weakest_basis((self.basis, CostBasis.UNKNOWN if cost_usd is None else basis))
        self._any = True
