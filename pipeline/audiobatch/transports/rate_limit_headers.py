"""What the service's headers say about waiting. Nothing here raises: a header is somebody else's text.

Values seen in the wild and taken: `retry-after-ms`; `retry-after` in seconds or as an HTTP date; Go durations
(`1s`, `6m0s`, `12ms`) and bare integers in `x-ratelimit-reset-*`. Values seen in the wild and ignored: 0,
negative, nan, inf, and anything that is no number.
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
#: The longest wait that is believed; 86400 has been seen, a year is a clock that is wrong.
LONGEST_S = 7 * 86_400.0


def retry_after_s(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """The wait that a 429 or 503 asks for, in seconds; None where it names none.

    Args:
        headers: lower-case names.
        now: for HTTP dates; aware.
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return _believable(milliseconds / 1000)
    text = headers.get("retry-after", "").strip()
    if text:
        seconds = _number(text)
        return _believable(seconds) if seconds is not None else _until(text, now or datetime.now(UTC))
    resets = [
        wait
        for counter in ("requests", "tokens")
        if _number(headers.get(f"x-ratelimit-remaining-{counter}"), least=0) == 0
        and (wait := duration_s(headers.get(f"x-ratelimit-reset-{counter}", ""))) is not None
    ]
    return _believable(max(resets)) if resets else None


def duration_s(text: str) -> float | None:
    """A Go duration or a bare number of seconds; None for anything else, and for 0 or less."""
    text = text.strip()
    if _GO.fullmatch(text):
        total = sum(float(amount) * _GO_UNITS_S[unit] for amount, unit in _GO_PART.findall(text))
        return _believable(total)
    return _believable(_number(text))


def limit_a_minute(headers: Mapping[str, str], counter: str) -> int | None:
    """`x-ratelimit-limit-requests` or `-tokens`; None where absent, 0, -1 or no number."""
    value = _number(headers.get(f"x-ratelimit-limit-{counter}"))
    return None if value is None or not 1 <= value <= 1e12 else int(value)


def tokens_left(headers: Mapping[str, str]) -> int | None:
    """`x-ratelimit-remaining-tokens`; None where absent, negative or no number."""
    value = _number(headers.get("x-ratelimit-remaining-tokens"), least=0)
    return None if value is None or value > 1e12 else int(value)


def limits_in(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that speak of limits and waits, of all that came with an answer."""
    return {name: value for name, value in headers.items() if name.startswith(("x-ratelimit", "retry-"))}


def _number(text: str | None, *, least: float = -math.inf) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= least else None


def _believable(seconds: float | None) -> float | None:
    if seconds is None or not seconds > 0:
        return None
    return min(seconds, LONGEST_S)


def _until(text: str, now: datetime) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return _believable((aware - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
