"""Read the service's headers about limits and waits. Nothing here raises: a header may hold any text.

Services send, and this module takes: `retry-after-ms`; `retry-after` in seconds or as an HTTP date; Go durations
(`1s`, `6m0s`, `12ms`) and bare integers in `x-ratelimit-reset-*`. Services also send, and this module ignores: 0,
negative numbers, nan, inf, and texts that are no number.
Source: developers.openai.com/api/docs/guides/rate-limits; github.com/openai/openai-dotnet/issues/838 (2026-11).
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_GO_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_GO_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s)")
_GO = re.compile(rf"(?:{_GO_PART.pattern})+")
#: Longer waits are cut to this: services send up to 86400, and a year means a wrong clock.
LONGEST_S = 7 * 86_400.0


def retry_after_s(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Return the wait that a 429 or 503 asks for, in seconds; None where it names none.

    Args:
        headers: with lower-case names.
        now: for HTTP dates; aware. None: the current time.
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return _bounded(milliseconds / 1000)
    text = headers.get("retry-after", "").strip()
    if text:
        seconds = _number(text)
        return _bounded(seconds) if seconds is not None else _until(text, now or datetime.now(UTC))
    resets = [
        wait
        for counter in ("requests", "tokens")
        if _number(headers.get(f"x-ratelimit-remaining-{counter}"), least=0) == 0
        and (wait := duration_s(headers.get(f"x-ratelimit-reset-{counter}", ""))) is not None
    ]
    return _bounded(max(resets)) if resets else None


def duration_s(text: str) -> float | None:
    """Read a Go duration or a bare number of seconds; None for anything else, and for 0 or less."""
    text = text.strip()
    if _GO.fullmatch(text):
        total = sum(float(amount) * _GO_UNITS_S[unit] for amount, unit in _GO_PART.findall(text))
        return _bounded(total)
    return _bounded(_number(text))


def limit_a_minute(headers: Mapping[str, str], counter: str) -> int | None:
    """Read `x-ratelimit-limit-requests` or `-tokens`; None where absent, 0, -1 or no number."""
    value = _number(headers.get(f"x-ratelimit-limit-{counter}"))
    return None if value is None or not 1 <= value <= 1e12 else int(value)


def tokens_left(headers: Mapping[str, str]) -> int | None:
    """Read `x-ratelimit-remaining-tokens`; None where absent, negative or no number."""
    value = _number(headers.get("x-ratelimit-remaining-tokens"), least=0)
    return None if value is None or value > 1e12 else int(value)


def limits_in(headers: Mapping[str, str]) -> dict[str, str]:
    """Select the headers about limits and waits."""
    return {name: value for name, value in headers.items() if name.startswith(("x-ratelimit", "retry-"))}


def _number(text: str | None, *, least: float = -math.inf) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= least else None


def _bounded(seconds: float | None) -> float | None:
    if seconds is None or not seconds > 0:
        return None
    return min(seconds, LONGEST_S)


def _until(date: str, now: datetime) -> float | None:
    """Return the seconds until an HTTP date; None where it is past or no date."""
    try:
        parsed = parsedate_to_datetime(date)
        aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
        return _bounded((aware - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
