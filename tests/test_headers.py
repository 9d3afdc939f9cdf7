"""What headers say about waiting: never an error, never less than asked, never for ever."""

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiobatch.transports.rate_limit_headers import (
    LONGEST_S,
    duration_s,
    limit_a_minute,
    limits_in,
    retry_after_s,
    tokens_left,
)
from tests.narrowing import present

NAMES = st.sampled_from(
    [
        "retry-after",
        "retry-after-ms",
        *(
            f"x-ratelimit-{what}-{kind}"
            for what in ("limit", "remaining", "reset")
            for kind in ("requests", "tokens")
        ),
    ]
)
ODD = st.one_of(
    st.text(max_size=20),
    st.floats().map(str),
    st.integers().map(str),
    st.sampled_from(
        ["nan", "-inf", "1e999", "0", "-1", "6m0s", "1h", "Fri, 31 Dec 9999 23:59:59 GMT", "١٢", "1_0"]
    ),
)
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@given(st.dictionaries(NAMES, ODD))
def test_no_header_makes_it_raise_or_wait_for_ever_or_for_nothing(headers: dict[str, str]) -> None:
    wait_s = retry_after_s(headers, now=NOW)
    assert wait_s is None or 0 < wait_s <= LONGEST_S
    for counter in ("requests", "tokens"):
        limit = limit_a_minute(headers, counter)
        assert limit is None or limit >= 1
    left = tokens_left(headers)
    assert left is None or left >= 0
    assert limits_in(headers) == headers


@given(st.floats(min_value=1e-3, max_value=LONGEST_S))
def test_a_wait_is_never_shorter_than_asked(seconds: float) -> None:
    assert present(retry_after_s({"retry-after": repr(seconds)})) >= seconds * (1 - 1e-9)
    assert present(retry_after_s({"retry-after-ms": repr(seconds * 1000)})) >= seconds * (1 - 1e-9)


@given(st.integers(1, int(LONGEST_S)))
def test_a_date_is_waited_for(seconds: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert retry_after_s({"retry-after": date}, now=NOW) == pytest.approx(seconds, abs=1)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_go_durations_are_read_as_go_prints_them(
    hours: int, minutes: int, seconds: int, milliseconds: int
) -> None:
    total_s = hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
    text = f"{hours}h{minutes}m{seconds}s{milliseconds}ms"
    assert duration_s(text) == (None if total_s == 0 else pytest.approx(min(total_s, LONGEST_S)))


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after-ms": "300", "retry-after": "9"}, 0.3),
        ({"retry-after": "86400"}, 86_400),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 11:00:00 GMT"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m2s"}, 62),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "17"}, 17),
        ({"x-ratelimit-remaining-tokens": "12", "x-ratelimit-reset-tokens": "17"}, None),
        ({}, None),
    ],
)
def test_waits_in_the_wild(headers: dict[str, Any], wait_s: float | None) -> None:
    assert retry_after_s(headers, now=NOW) == wait_s


@pytest.mark.parametrize("text", ["-1", "0", "", "many", "inf"])
def test_limits_that_mean_nothing_are_none(text: str) -> None:
    assert limit_a_minute({"x-ratelimit-limit-requests": text}, "requests") is None


def test_the_longest_wait_is_believed_no_further() -> None:
    assert retry_after_s({"retry-after": "1e300"}) == LONGEST_S
    assert math.isfinite(LONGEST_S)
