"""A call as the ledger knows it: written down before it is sent, and again when its end is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from audiobatch.errors import ErrorType
    from audiobatch.model import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One call, as written down before it is sent.

    Attributes:
        part: that of a long recording, from 1.
        worst_usd: what it costs at most; None: its price is not known.
    """

    attempt_id: str
    item_id: str
    turn: int
    fingerprint: str
    run_id: str
    number: int
    started_at: datetime
    deployment: str
    provider: str
    transport: str
    model: str
    voice: str
    format: str
    prompt: str
    input_sha256: str
    settings_key: str
    part: int | None = None
    worst_usd: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How a call ended: `succeeded`, `failed` (not billed, or billed and useless), or `unknown`.

    Attributes:
        cost_usd: 0 where it was certainly not billed; None: not known, so its worst case counts.
    """

    attempt_id: str
    state: Status
    finished_at: datetime
    error_type: ErrorType | None = None
    request_id: str = ""
    cost_usd: Decimal | None = None
