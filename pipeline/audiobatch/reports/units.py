"""Amounts as people read them."""

from __future__ import annotations

from decimal import Decimal

_MINUTE_S = 60
_HOUR_S = 3_600
_CENT = Decimal("0.01")


def duration_text(seconds: float) -> str:
    """`4.2 s`, `3:07 min`, `2:05 h`."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < _HOUR_S:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    minutes = int(seconds) // 60
    return f"{minutes // 60:,}:{minutes % 60:02d} h"


def money_text(usd: Decimal) -> str:
    """Dollars with as many places as it takes to see that it is not nothing."""
    if not usd:
        return "$0"
    if usd >= 1:
        return f"${usd:,.2f}"
    return f"${usd:.3f}" if usd >= _CENT else f"${usd:.5f}"
