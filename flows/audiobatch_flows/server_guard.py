"""Prefect's server behind `page_guard`: an ASGI application around another, for `audiobatch server` and for `run`.

Prefect answers every origin and accepts any `Host`: a page open in a browser could read the jobs, start runs with
parameters of its own, and have commands run.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from audiobatch_emulator import page_guard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

#: No other site shows these pages within its own, where a click could be led astray.
_NO_FRAMES = (b"content-security-policy", b"frame-ancestors 'self'")


class ServerGuard:
    """Lets requests through that name this server and come from its own pages, or from programs."""

    def __init__(self, app: App, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI has it."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        if why := self._refusal(scope):
            await _refuse(scope, receive, send, why)
            return
        await self._app(scope, receive, partial(_without_cors, send))

    def _refusal(self, scope: Message) -> str:
        def values(name: bytes) -> list[str]:
            return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]

        shows_page = "navigate" in values(b"sec-fetch-mode") and "document" in values(b"sec-fetch-dest")
        return page_guard.refusal(
            hosts=self._hosts,
            host=values(b"host"),
            origin=values(b"origin"),
            fetch_site=",".join(values(b"sec-fetch-site")),
            is_link=scope.get("method") == "GET" and shows_page,
        )


def prefect_app(hosts: frozenset[str]) -> App:
    """Prefect's API server and pages, guarded; imports Prefect."""
    from prefect.server.api.server import create_app

    return ServerGuard(create_app(), hosts)


async def _refuse(scope: Message, receive: Receive, send: Send, why: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": why})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": f"audiobatch: {why}\n".encode()})


async def _without_cors(send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        prefix = page_guard.CORS_PREFIX.encode()
        allowed = [(key, value) for key, value in message["headers"] if not key.lower().startswith(prefix)]
        message = {**message, "headers": [*allowed, _NO_FRAMES]}
    await send(message)
