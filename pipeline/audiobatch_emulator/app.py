"""The server: its routes, its two ports, the line that says it is ready, and its end."""

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

from audiobatch_emulator import page_guard
from audiobatch_emulator.admin import PREFIX, Admin
from audiobatch_emulator.chat import Chat
from audiobatch_emulator.config import EmulatorConfig
from audiobatch_emulator.identity import APP_SERVICE_PATH
from audiobatch_emulator.realtime import Realtime
from audiobatch_emulator.service import Service
from audiobatch_emulator.service_errors import by_status, no_such_path
from audiobatch_emulator.surface import reply_headers, surface_of
from audiobatch_emulator.tls import make_certificate
from audiobatch_emulator.transcriptions import Transcriptions

#: 20 MB of audio are 27 MB of base64, and a conversation may hold a few.
MOST_BODY_BYTES = 256 * 1024 * 1024
SHUTDOWN_S = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(service: Service) -> web.Application:
    """Builds the application with every route of the emulator."""
    hosts = page_guard.allowed_hosts(service.config.host, service.config.allowed_hosts)
    app = web.Application(
        client_max_size=MOST_BODY_BYTES, middlewares=[_guard_of(hosts), _in_the_services_words]
    )
    for part in (Chat(service), Realtime(service), Transcriptions(service), service.identity, Admin(service)):
        part.register(app)
    return app


@web.middleware
async def _in_the_services_words(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers what aiohttp refuses by itself (no such path, wrong method) in the body of the service."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        surface = surface_of(request.path)
        refusal = (
            no_such_path(surface, request.method, request.path)
            if error.status in (404, 405)
            else by_status(surface, error.status)
        )
        return web.Response(
            status=refusal.status,
            body=orjson.dumps(refusal.body(surface)),
            headers=reply_headers(surface, model=None, elapsed_s=0.0, rate=None),
            content_type="application/json",
        )


def _guard_of(hosts: frozenset[str]) -> Middleware:
    """Keeps web pages away from the administrative surface, which has no key."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(PREFIX):
            why = page_guard.refusal(
                hosts=hosts,
                host=request.headers.getall("Host", []),
                origin=request.headers.getall("Origin", []),
                fetch_site=request.headers.get("Sec-Fetch-Site", ""),
            )
            if why:
                return web.Response(status=403, text=f"audiobatch emulator: {why}\n")
        return await handler(request)

    return guard


def _not_the_clients_fault(record: logging.LogRecord) -> bool:
    """Returns whether a log record matters: what is no HTTP is answered with 400, and that is all."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError)


@asynccontextmanager
async def running(config: EmulatorConfig) -> AsyncIterator[dict[str, Any]]:
    """Runs the server; yields the ready line's content.

    Raises:
        EmulatorError: the speech engines are not installed.
        OSError: a port is taken.
    """
    service = Service.open(config)
    server_log = logging.getLogger("audiobatch_emulator.http")
    server_log.addFilter(_not_the_clients_fault)
    runner = web.AppRunner(
        build_app(service),
        access_log=None,
        shutdown_timeout=SHUTDOWN_S,
        logger=server_log,
        # A body that says it is compressed is none to us: it would be refused in the middle of reading.
        auto_decompress=False,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="audiobatch-emulator-") as folder:
            context, certificate = make_certificate(Path(folder), host=config.host)
            await runner.setup()
            base_url = "http://" + await _listen(runner, config.host, config.port, None)
            https_base_url = "https://" + await _listen(runner, config.host, config.tls_port, context)
            yield {
                "base_url": base_url,
                "https_base_url": https_base_url,
                "api_key": config.api_key,
                "certificate": str(certificate),
                "identity_endpoint": base_url + APP_SERVICE_PATH,
                "identity_header": service.identity.header,
                "journal": None if config.journal is None else str(config.journal.absolute()),
                "pid": os.getpid(),
            }
    finally:
        await runner.cleanup()
        await service.aclose()


async def _listen(runner: web.AppRunner, host: str, port: int, context: ssl.SSLContext | None) -> str:
    """Opens a port; gives the address at which it is reached, as it stands in a URL."""
    known = len(runner.addresses)
    await web.TCPSite(runner, host, port, ssl_context=context, backlog=1024).start()
    address, bound_port = runner.addresses[known][:2]
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - shown, not bound
    return f"[{address}]:{bound_port}" if ":" in address else f"{address}:{bound_port}"


async def serve(config: EmulatorConfig) -> None:
    """Runs until SIGINT, SIGTERM, or (where the settings say so) the end of standard input.

    Prints the ready line, one JSON object, on standard output as soon as requests are taken.
    """
    if not page_guard.is_loopback(config.host):
        print(
            f"warning: the emulator listens on {config.host}, where others can reach it; its administrative "
            "surface has no key",
            file=sys.stderr,
        )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Windows has no loop signal handlers; there Ctrl-C raises KeyboardInterrupt.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    async with running(config) as ready:
        if config.exit_on_stdin_close:
            _watch_stdin(lambda: loop.call_soon_threadsafe(stop.set))
        print(orjson.dumps(ready).decode(), flush=True)
        await stop.wait()


def _watch_stdin(closed: Callable[[], object]) -> None:
    """Calls `closed` when standard input ends: whoever started us is gone."""

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            closed()

    threading.Thread(target=watch, name="stdin", daemon=True).start()
