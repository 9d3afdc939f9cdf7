"""What goes on the wire for a call: a status, a body, headers. Refusals become one here."""

from dataclasses import dataclass, field

import orjson
from aiohttp import web

from audiobatch_emulator.service import Call
from audiobatch_emulator.service_errors import Refusal
from audiobatch_emulator.surface import lower_keys, reply_headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`pieces` are the body in order; `chunked`: its length is not said."""

    status: int
    content_type: str
    pieces: list[bytes]
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    billed: bool = False
    audio_s: float = 0.0


def refused(call: Call, refusal: Refusal) -> Outcome:
    """Returns a refusal in the body of the call's surface."""
    call.rate = refusal.rate or call.rate
    body = refusal.body(call.surface)
    if isinstance(body, str):
        kind = "html" if body.lstrip().startswith("<") else "plain"
        content_type, encoded = f"text/{kind}; charset=utf-8", body.encode("utf-8", "replace")
    else:
        content_type, encoded = "application/json", orjson.dumps(body)
    return Outcome(
        status=refusal.status,
        content_type=content_type,
        pieces=[encoded],
        headers=refusal.headers,
        billed=refusal.billed,
    )


def headers_of(call: Call, outcome: Outcome) -> dict[str, str]:
    """Returns the surface's headers, the outcome's, and those that a fault sets: the later win."""
    headers = reply_headers(call.surface, model=call.model, elapsed_s=call.elapsed_s, rate=call.rate)
    headers |= {"content-type": outcome.content_type}
    headers |= lower_keys(outcome.headers)
    return headers | lower_keys(call.fault.do.headers)


def refused_upgrade(call: Call, refusal: Refusal) -> web.Response:
    """Returns a refusal as an ordinary response: for a WebSocket handler that declines the upgrade."""
    outcome = refused(call, refusal)
    return web.Response(
        status=outcome.status, body=b"".join(outcome.pieces), headers=headers_of(call, outcome)
    )
