"""The request to stop a run, which everything that sends watches.

It has three levels: *soft* (send nothing more; calls in flight may end), *hurried* (a person or a program waits
for the end: calls in flight have `drain_timeout_s`) and *hard* (give up calls in flight at once). Each is only
ever set, never unset, so that readers need no lock. All reasons are remembered: the most severe decides the exit
code.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING

from audiobatch.errors import BY_SEVERITY, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable


class StopReason(StrEnum):
    """Why a run ended before its work did; the summary's `stopped_by`."""

    SIGINT = "sigint"
    SIGTERM = "sigterm"
    CANCELLED = "cancelled"
    NO_DEPLOYMENT = "no_deployment"
    STORAGE = "storage"
    MAX_COST = "max_cost"
    MAX_FAILURES = "max_failures"
    STOP_AT = "stop_at"
    PARKED = "parked"
    OUTAGE = "outage"
    INTERNAL = "internal"
    UNFINISHED = "unfinished"


#: How the process ends for each reason.
EXIT_CODES = {
    StopReason.INTERNAL: ExitCode.INTERNAL,
    StopReason.UNFINISHED: ExitCode.INTERNAL,
    StopReason.STORAGE: ExitCode.USAGE,
    StopReason.NO_DEPLOYMENT: ExitCode.NO_DEPLOYMENT,
    StopReason.MAX_COST: ExitCode.LIMIT,
    StopReason.MAX_FAILURES: ExitCode.LIMIT,
    StopReason.PARKED: ExitCode.PARKED,
    StopReason.STOP_AT: ExitCode.PARKED,
    StopReason.OUTAGE: ExitCode.PARKED,
    StopReason.SIGINT: ExitCode.SIGINT,
    StopReason.SIGTERM: ExitCode.SIGTERM,
    StopReason.CANCELLED: ExitCode.SIGINT,
}
#: Reasons after which a person or a program waits for the process to end.
HURRIED = frozenset({StopReason.SIGINT, StopReason.SIGTERM, StopReason.CANCELLED})


def most_severe(reasons: Iterable[StopReason]) -> StopReason | None:
    """Return the reason whose exit code is the most severe; of equal ones the first. None where there is none."""
    return min(reasons, key=lambda reason: BY_SEVERITY.index(EXIT_CODES[reason]), default=None)


class Stop:
    """A run's stop; made inside its event loop.

    Attributes:
        soft: send nothing more.
        hurried: calls in flight have `drain_timeout_s` to end.
        hard: calls in flight are given up.
        reasons: in the order in which they came, each with the sentence of its first request.
    """

    def __init__(self) -> None:
        self.soft = asyncio.Event()
        self.hurried = asyncio.Event()
        self.hard = asyncio.Event()
        self.reasons: dict[StopReason, str] = {}

    def ask(self, reason: StopReason, detail: str = "") -> None:
        """Request that nothing more is sent; `detail` is a sentence for people."""
        self.reasons.setdefault(reason, detail)
        self.soft.set()
        if reason in HURRIED:  # also where the run is stopping already, without a time limit
            self.hurried.set()

    def force(self, reason: StopReason) -> None:
        """Request the end now: calls in flight are given up and become `unknown`."""
        self.ask(reason)
        self.hurried.set()
        self.hard.set()

    @property
    def reason(self) -> StopReason | None:
        """The reason that decides the exit code: the first, if it is a signal; else the most severe."""
        first = next(iter(self.reasons), None)
        return first if first in HURRIED else most_severe(self.reasons)

    @property
    def detail(self) -> str:
        """The sentences of all reasons, the deciding one's first; may be empty."""
        ordered = sorted(self.reasons, key=lambda reason: reason is not self.reason)
        return "; ".join(detail for reason in ordered if (detail := self.reasons[reason]))

    @property
    def asked(self) -> bool:
        """Whether a stop was requested."""
        return self.soft.is_set()
