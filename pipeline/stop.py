"""The wish to stop, as everything that sends can see it.

Two levels: *soft* (send nothing more; what is in flight may end) and *hard* (at once). Both only ever go from
unset to set, so whoever reads them needs no lock. The first reason is kept: it decides the exit code.
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


class Stop:
    """One per run; made inside its event loop.

    Attributes:
        reason: why, once `soft` is set.
        detail: a sentence for the person who reads the summary.
    """

    def __init__(self) -> None:
        self.soft = asyncio.Event()
        self.hard = asyncio.Event()
        self.reason: StopReason | None = None
        self.detail = ""

    def ask(self, reason: StopReason, detail: str = "") -> None:
        """Send nothing more. The first caller's reason holds."""
        if self.reason is None:
            self.reason = reason
            self.detail = detail
        self.soft.set()

    def force(self, reason: StopReason) -> None:
        """End now: calls in flight are given up and become `unknown`."""
        self.ask(reason)
        self.hard.set()

    @property
    def asked(self) -> bool:
        return self.soft.is_set()
