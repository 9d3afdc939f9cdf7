"""The wish to stop, as everything that sends can see it.

Three levels: *soft* (send nothing more; what is in flight may end), *hurried* (somebody waits for the end: what is
in flight has `drain_timeout_s`) and *hard* (at once). Each only ever goes from unset to set, so whoever reads them
needs no lock. All reasons are kept: the most severe decides the exit code.
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
#: Somebody waits for the process to end.
HURRIED = frozenset({StopReason.SIGINT, StopReason.SIGTERM, StopReason.CANCELLED})


def most_severe(reasons: Iterable[StopReason]) -> StopReason | None:
    """By the exit codes' own order; of equal ones the first. None where there is none."""
    return min(reasons, key=lambda one: BY_SEVERITY.index(EXIT_CODES[one]), default=None)


class Stop:
    """One per run; made inside its event loop.

    Attributes:
        reasons: why, once `soft` is set, in the order in which they came; each with its first caller's sentence.
    """

    def __init__(self) -> None:
        self.soft = asyncio.Event()
        self.hurried = asyncio.Event()
        self.hard = asyncio.Event()
        self.reasons: dict[StopReason, str] = {}

    def ask(self, reason: StopReason, detail: str = "") -> None:
        """Send nothing more, for one more reason."""
        self.reasons.setdefault(reason, detail)
        self.soft.set()
        if reason in HURRIED:  # also where the run stops already, and has all the time it wants
            self.hurried.set()

    def force(self, reason: StopReason) -> None:
        """End now: calls in flight are given up and become `unknown`."""
        self.ask(reason)
        self.hurried.set()
        self.hard.set()

    @property
    def reason(self) -> StopReason | None:
        """The one that decides the exit code. Whoever was the first to stop the run by hand stopped it."""
        first = next(iter(self.reasons), None)
        return first if first in HURRIED else most_severe(self.reasons)

    @property
    def detail(self) -> str:
        """What a person should know of all reasons, the deciding one first; empty where there is nothing."""
        ordered = sorted(self.reasons, key=lambda one: one is not self.reason)
        return "; ".join(detail for one in ordered if (detail := self.reasons[one]))

    @property
    def asked(self) -> bool:
        return self.soft.is_set()
