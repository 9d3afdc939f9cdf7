"""What is said on a socket: ids, the shape of each event, and errors.

Every event has an `event_id` and a `type`. An error says what was wrong and with which of the client's
events; the session stays open after it.

Source: the Realtime reference (server events). November 2026.
"""

import secrets
import string
from typing import Any

from audiobatch_emulator.service_errors import Refusal
from audiobatch_emulator.surface import RateState

#: What is shown where no quota is set.
_REQUESTS_A_MINUTE, _TOKENS_A_MINUTE = 1_000, 250_000
_ALPHABET = string.ascii_letters + string.digits


def new_id(kind: str) -> str:
    """Returns `item_` and 21 letters and digits, and so on for `sess`, `event`, `resp` and `conv`."""
    return f"{kind}_" + "".join(secrets.choice(_ALPHABET) for _ in range(21))


def event(kind: str, **fields: Any) -> dict[str, Any]:
    """Returns an event of the server's."""
    return {"type": kind, "event_id": new_id("event")} | fields


def error_event(refusal: Refusal, client_event_id: str | None) -> dict[str, Any]:
    """Returns an `error` event; `client_event_id` is that of the event it is about."""
    return event(
        "error",
        error={
            "type": refusal.type or "invalid_request_error",
            "code": refusal.code,
            "message": refusal.message,
            "param": refusal.param,
            "event_id": client_event_id,
        },
    )


def content_event(kind: str, response_id: str, item_id: str, **fields: Any) -> dict[str, Any]:
    """Returns an event about the one content part of a response's one item."""
    place = {
        "response_id": response_id,
        "item_id": item_id,
        "output_index": 0,
        "content_index": 0,
    }
    return event(kind, **place, **fields)


def token_pieces(text: str) -> list[str]:
    """Returns a text cut about where tokens end: words with the space before them, long ones in two."""
    pieces: list[str] = []
    for index, word in enumerate(text.split(" ") if text else []):
        spaced = word if index == 0 else " " + word
        cut = 6 if len(spaced) > 8 else len(spaced)
        pieces += [piece for piece in (spaced[:cut], spaced[cut:]) if piece]
    return pieces


def limits_of(rate: RateState | None) -> list[dict[str, Any]]:
    """Returns the `rate_limits` of `rate_limits.updated`."""
    known = rate or RateState()
    return [
        {
            "name": name,
            "limit": standard if limit is None else limit,
            "remaining": standard if remaining is None else remaining,
            "reset_seconds": round(reset_s, 3),
        }
        for name, standard, limit, remaining, reset_s in (
            (
                *("requests", _REQUESTS_A_MINUTE),
                *(
                    known.limit_requests,
                    known.remaining_requests,
                    known.reset_requests_s,
                ),
            ),
            (
                "tokens",
                _TOKENS_A_MINUTE,
                known.limit_tokens,
                known.remaining_tokens,
                known.reset_tokens_s,
            ),
        )
    ]
