"""The wire beneath the SDK: what goes over it is the SDK's own request, what breaks on it has the usual names."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
import orjson
import pytest

from audiobatch.errors import Disconnected, OutcomeUnknown, RateLimited
from audiobatch.model import AudioPart, Exchange, PriorReply, Request
from audiobatch.transports import http, reply_body
from audiobatch.transports.base import ServiceAccess
from audiobatch.transports.chat_request import body_of, encoded_body
from audiobatch.transports.error_mapping import translate
from audiobatch.transports.http import ServiceClient

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Service:
    """A loopback socket: keeps the heads and bodies of requests, answers as the test says."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.origin = ""
        self.connections = 0
        self.heads: list[str] = []
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    line for line in head.split("\r\n") if line.lower().startswith("content-length")
                )
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(int(length.split(":")[1])))
                await self.answer(reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def headers(self, number: int = -1) -> dict[str, str]:
        lines = self.heads[number].rstrip("\r\n").split("\r\n")
        named = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
        return {"": lines[0], **named}


@asynccontextmanager
async def service(answer: Answer) -> AsyncIterator[Service]:
    one = Service(answer)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        server.close()


@asynccontextmanager
async def client(origin: str, **settings: Any) -> AsyncIterator[ServiceClient]:
    known = {
        "provider": "azure",
        "endpoint": origin,
        "api_version": "2025-01-01-preview",
        "deployment": "my-audio",
        "key": "the-key",
        "tokens": None,
        "timeout_s": 20.0,
    }
    opened = ServiceClient(ServiceAccess(**{**known, **settings}))
    try:
        yield opened
    finally:
        await opened.aclose()


def ok(body: bytes = b'{"a": 1}', head: bytes = b"HTTP/1.1 200 OK\r\nx-request-id: r1\r\n") -> Answer:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)

    return answer


class Tokens:
    """Stands for Entra's: a token until it is told another."""

    def __init__(self) -> None:
        self.token = "first"

    async def __call__(self) -> str:
        return self.token


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "POST /openai/deployments/my-audio/chat/completions?api-version=2025-01-01-preview HTTP/1.1"),
        ({"api_version": "v1"}, "POST /openai/v1/chat/completions HTTP/1.1"),
        ({"provider": "openai"}, "POST /v1/chat/completions HTTP/1.1"),
    ],
)
async def test_a_request_is_the_sdk_s_own(settings: dict[str, Any], line: str) -> None:
    async with service(ok()) as there:
        endpoint = f"{there.origin}/v1" if settings.get("provider") == "openai" else there.origin
        async with client(endpoint, **settings) as ours:
            await ours.sdk.post("/chat/completions", content=b'{"n": 1}', cast_to=httpx2.Response)
            await ours.post("/chat/completions", b'{"n": 1}')
            await ours.post("/chat/completions", b'{"n": 22}')
        # The same by the SDK over the connections that it opens itself.
        common: dict[str, Any] = {"max_retries": 0, "timeout": 20.0}
        if settings:
            base = endpoint if "provider" in settings else f"{there.origin}/openai/v1"
            sdk = openai.AsyncOpenAI(api_key="the-key", base_url=base, **common)
        else:
            sdk = openai.AsyncAzureOpenAI(
                azure_endpoint=endpoint,
                azure_deployment="my-audio",
                api_version="2025-01-01-preview",
                api_key="the-key",
                **common,
            )
        async with sdk:
            await sdk.post("/chat/completions", content=b'{"n": 1}', cast_to=httpx2.Response)
    first, second, third, plain = (there.headers(at) for at in range(4))
    assert first == second == plain
    assert second[""] == line
    assert third == {**second, "content-length": "9"}
    assert there.bodies[2] == b'{"n": 22}'
    assert {"api-key": "the-key", "authorization": "Bearer the-key"}.items() & second.items()
    assert there.connections == 2  # ours was kept between its calls


async def test_a_new_token_makes_a_new_request() -> None:
    tokens = Tokens()
    async with service(ok()) as there, client(there.origin, key=None, tokens=tokens) as ours:
        for tokens.token in ("first", "first", "second"):
            await ours.post("/chat/completions", b"{}")
    sent = [there.headers(at)["authorization"] for at in range(3)]
    assert sent == ["Bearer first", "Bearer first", "Bearer second"]
    assert all("api-key" not in there.headers(at) for at in range(3))


async def test_an_error_of_the_service_is_told_in_its_words() -> None:
    said = json.dumps({"error": {"code": "429", "message": "slow down"}}).encode()
    head = b"HTTP/1.1 429 Too Many\r\nRetry-After-Ms: 1500\r\nX-Request-Id: r7\r\n"
    async with service(ok(said, head)) as there, client(there.origin) as ours:
        with pytest.raises(RateLimited, match="slow down") as caught:
            await ours.post("/chat/completions", b"{}")
    assert (caught.value.retry_after_s, caught.value.request_id) == (1.5, "r7")


async def test_a_body_of_megabytes_goes_out_and_comes_in_whole() -> None:
    large = bytes(range(256)) * 20_000
    async with service(ok(large)) as there, client(there.origin) as ours:
        response = await ours.post("/chat/completions", large)
    assert response.content == there.bodies[0] == large


def recording(size_bytes: int, seed: int) -> AudioPart:
    data = bytes((seed + 7 * at) % 256 for at in range(1000)) * (size_bytes // 1000) + b"x" * (
        size_bytes % 1000
    )
    return AudioPart(data=data, format="wav", duration_s=1.0)


@pytest.mark.parametrize("size_bytes", [1000, 1_048_577, 3_000_002])
async def test_a_recording_goes_out_in_pieces_as_it_would_whole(size_bytes: int) -> None:
    before = Exchange(
        text='What is "this"?',
        audio=recording(size_bytes + 1, 3),
        reply=PriorReply(audio_id=None, audio_expires_at=None, text="A bell."),
    )
    asked = Request(
        item_id="bell.wav",
        turn=2,
        system="Be brief.",
        history=(before,),
        text="And this?",
        audio=recording(size_bytes, 5),
        modalities=("text",),
        voice="",
        format="",
    )
    whole = orjson.dumps(body_of(asked, "my-audio", 0.0))
    body = encoded_body(asked, "my-audio", 0.0)
    assert isinstance(body, bytes) == (size_bytes == 1000)
    async with service(ok()) as there, client(there.origin) as ours:
        for _ in range(2):  # a token that was refused has it go again
            await ours.post("/chat/completions", body)
    assert there.bodies == [whole, whole]
    assert there.headers()["content-length"] == str(len(whole))
    assert "transfer-encoding" not in there.headers()


async def test_nobody_there_means_that_nothing_was_sent() -> None:
    async with service(ok()) as there:
        gone = there.origin
    async with client(gone) as ours:
        with pytest.raises(httpx2.ConnectError) as caught:
            await ours.post("/chat/completions", b"{}")
    assert isinstance(translate(caught.value), Disconnected)


async def before(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def in_the_body(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n0123456789")
    await writer.drain()
    writer.close()


async def nonsense(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"no HTTP at all\r\n\r\n")


@pytest.mark.parametrize("answer", [before, in_the_body, nonsense])
async def test_what_breaks_after_sending_has_an_unknown_end(answer: Answer) -> None:
    async with service(answer) as there, client(there.origin) as ours:
        with pytest.raises((httpx2.HTTPError, OutcomeUnknown)) as caught:
            await ours.post("/chat/completions", b"{}")
    unknown = translate(caught.value)
    assert isinstance(unknown, OutcomeUnknown)
    assert unknown.error_type == "disconnected"


async def test_a_body_that_trickles_is_given_up_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_body, "PROGRESS_WINDOW_S", 0.3)

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + b"." * 2000)
        while not reader.at_eof() and not writer.is_closing():
            writer.write(b".")
            await asyncio.sleep(0.02)

    async with service(trickle) as there, client(there.origin) as ours:
        with pytest.raises(OutcomeUnknown, match="trickled in") as caught:
            await ours.post("/chat/completions", b"{}")
    assert caught.value.error_type == "timed_out"
    assert caught.value.raw.startswith(b"." * 2000)


async def test_a_body_that_grows_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_body, "PROGRESS_WINDOW_S", 0.2)
    monkeypatch.setattr(reply_body, "MIN_PROGRESS_BYTES", 10)

    async def grow(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(10):
            writer.write(b"." * 100)
            await writer.drain()
            await asyncio.sleep(0.06)

    async with service(grow) as there, client(there.origin) as ours:
        assert (await ours.post("/chat/completions", b"{}")).content == b"." * 1000


def test_every_error_of_aiohttp_has_its_usual_name() -> None:
    """The table ends in the base of them all; those of the connection itself say that nothing was sent."""
    unsent = {httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol}
    by_name = {theirs.__name__: usual for theirs, usual in http.ERRORS}
    assert by_name["ClientError"] is httpx2.ReadError
    assert {name for name, usual in by_name.items() if usual in unsent} == {
        *("ConnectionTimeoutError", "ClientConnectorError", "ClientConnectorCertificateError"),
        *("ClientHttpProxyError", "InvalidURL"),
    }
    assert isinstance(http.translated(aiohttp.ServerDisconnectedError()), httpx2.RemoteProtocolError)
    assert isinstance(http.translated(aiohttp.SocketTimeoutError()), httpx2.ReadTimeout)
    assert isinstance(http.translated(ConnectionResetError(104, "reset")), httpx2.ReadError)


async def test_a_service_that_is_not_there_is_named_without_the_client_s_own_objects() -> None:
    async with httpx2.AsyncClient(transport=http.AiohttpTransport()) as ours:
        with pytest.raises(httpx2.ConnectError, match=r"^Cannot connect to host 127.0.0.1:9 \[") as failed:
            await ours.get("https://127.0.0.1:9/")
    assert "ssl" not in str(failed.value).lower()


def test_proxies_are_the_standard_variables_and_never_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "all_proxy", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    assert http.proxy_for("https", "my.openai.azure.com") == "http://proxy.example:3128"
    assert http.proxy_for("https", "inside.example") is None
    assert http.proxy_for("https", "127.0.0.1") is None
    assert http.proxy_for("http", "my.openai.azure.com") is None


async def test_a_proxy_is_asked_for_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with service(ok()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.origin)
        async with client("http://service.example") as ours:
            await ours.post("/chat/completions", b"{}")
    assert proxy.headers()[""].startswith("POST http://service.example/openai/deployments/my-audio/")


def test_a_client_is_made_while_another_thread_imports_httpx(tmp_path: Path) -> None:
    """As under Prefect, which imports it meanwhile: the SDK asks it for a name that it has not yet."""
    (tmp_path / "httpx.py").write_text("import time\ntime.sleep(1.0)\nclass URL: pass\nclass Timeout: pass\n")
    program = (
        "import importlib, sys, threading, time\n"
        "from audiobatch.transports.base import ServiceAccess\n"
        "from audiobatch.transports.http import ServiceClient\n"
        "sys.modules.pop('httpx', None)\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "threading.Thread(target=importlib.import_module, args=('httpx',)).start()\n"
        "while 'httpx' not in sys.modules: time.sleep(0.001)\n"
        "settings = dict(provider='azure', endpoint='http://127.0.0.1:9', api_version='v1')\n"
        "ServiceClient(ServiceAccess(**settings, deployment='a', key='k', timeout_s=5))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
