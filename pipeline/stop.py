"""The wish to stop, as everything that sends can see it.

Three levels: *soft* (send nothing more; what is in flight may end), *hurried* (somebody waits for the end: what is
in flight has `drain_timeout_s`) and *hard* (at once). Each only ever goes from unset to set, so whoever reads them
needs no lock. The first reason is kept: it decides the exit code.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum


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


#: Somebody waits for the process to end.
HURRIED = frozenset({StopReason.SIGINT, StopReason.SIGTERM, StopReason.CANCELLED})


class Stop:
    """One per run; made inside its event loop.

    Attributes:
        reason: why, once `soft` is set.
        detail: a sentence for the person who reads the summary.
    """

    def __init__(self) -> None:
        self.soft = asyncio.Event()
        self.hurried = asyncio.Event()
        self.hard = asyncio.Event()
        self.reason: StopReason | None = None
        self.detail = ""

    def ask(self, reason: StopReason, detail: str = "") -> None:
        """Send nothing more. The first caller's reason holds."""
        if self.reason is None:
            self.reason = reason
            self.detail = detail
        self.soft.set()
        if reason in HURRIED:  # also where the run stops already, and has all the time it wants
            self.hurried.set()

    def force(self, reason: StopReason) -> None:
        """End now: calls in flight are given up and become `unknown`."""
        self.ask(reason)
        self.hurried.set()
        self.hard.set()

    @property
    def asked(self) -> bool:
        return self.soft.is_set()
