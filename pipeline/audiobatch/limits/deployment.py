"""One deployment of the pool: its limits, its condition, and when a call of it may be made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from audiobatch.limits.circuit_breaker import Circuit

if TYPE_CHECKING:
    from audiobatch.errors import DeploymentFatal
    from audiobatch.limits.limiter import Limiter


@dataclass(slots=True, eq=False)
class Deployment:
    """One place where calls can go, with its limits and its condition.

    Attributes:
        priority: lower goes first.
        out: why it can serve no call in this run.
        proven: a call of it has ended without a fatal error.
        served: calls that it has taken.
        named_only: takes only callers that are bound to it: it does something else, or was asked for by name.
    """

    name: str
    limiter: Limiter
    priority: int = 0
    out: DeploymentFatal | None = None
    parked_until_s: float = -math.inf
    proven: bool = False
    served: int = 0
    circuit: Circuit = field(default_factory=Circuit)
    named_only: bool = False

    def takes(self, only: str | None) -> bool:
        """Whether it serves callers that are bound to this deployment, or, with None, to none."""
        return not self.named_only if only is None else only == self.name

    def room_in_s(self, now_s: float) -> float:
        if not (self.proven and not self.circuit.half_open) and self.limiter.in_flight:
            return math.inf
        return max(self.circuit.wait_s(now_s), self.limiter.room_in_s(now_s))

    def usable(self, now_s: float) -> bool:
        return self.out is None and self.parked_until_s <= now_s

    def may_be_called(self, now_s: float) -> bool:
        """Whether a call that was let through may still be made."""
        return self.usable(now_s) and not self.circuit.wait_s(now_s)
