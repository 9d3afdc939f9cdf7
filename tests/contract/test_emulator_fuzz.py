"""No request, however broken, gets a 500 that was not asked for, or ends the emulator."""

import copy
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import API_VERSION, MODEL, PROMPT, SPOKEN, heard, recording, tone_wav

FAST = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PATHS = (
    "/v1/chat/completions",
    "/openai/v1/chat/completions",
    f"/openai/deployments/{MODEL}/chat/completions?api-version={API_VERSION}",
)
WAV = tone_wav(0.1)
GOOD: dict[str, Any] = {
    "model": MODEL,
    **SPOKEN,
    "messages": [
        {"role": "system", "content": "Be brief."},
        *heard(recording(WAV)),
        {"role": "assistant", "content": "A tone.", "refusal": None},
        *PROMPT,
    ],
    "temperature": 1,
    "n": 1,
    "max_completion_tokens": 100,
    "metadata": {"a": "b"},
    "stream": False,
    "stop": ["x"],
    "seed": 1,
    "response_format": {"type": "text"},
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["text", "audio", "input_audio", "user", "assistant", "tool", "wav", "pcm16", "alloy", MODEL]
    )
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, as the keys that lead to it."""
    if at:
        yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*at, key))


@st.composite
def nearly_good(draw: st.DrawFn) -> dict[str, Any]:
    """A good request in which a few places are gone, changed or new."""
    request = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(places(request))))
        parent = request
        for key in way:
            parent = parent[key]
        match draw(st.sampled_from(["change", "remove", "add"])):
            case "remove":
                del parent[last]
            case "add" if isinstance(parent, dict):
                parent[
                    draw(
                        st.text(max_size=8) | st.sampled_from(["audio", "refusal", "tools", "stream_options"])
                    )
                ] = draw(anything)
            case _:
                parent[last] = draw(anything)
    return request


@pytest.fixture(scope="module")
def plain() -> Iterator[httpx2.Client]:
    with httpx2.Client(trust_env=False, timeout=120) as client:
        yield client


def post(server: EmulatorProcess, plain: httpx2.Client, path: str, content: bytes) -> httpx2.Response:
    headers = {"api-key": server.api_key, "Content-Type": "application/json"}
    if path.startswith("/v1"):
        headers["Authorization"] = f"Bearer {server.api_key}"
    return plain.post(server.base_url + path, content=content, headers=headers)


def sane(reply: httpx2.Response) -> None:
    """A good reply, or a refusal of the request with a body that says why."""
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, (reply.status_code, reply.text)
    if reply.status_code != 200:
        error = reply.json().get("error", reply.json())
        assert isinstance(error["message"], str)
        assert error["message"]
    elif reply.headers["content-type"] == "application/json":
        assert reply.json()["choices"]


@FAST
@given(body=nearly_good(), path=st.sampled_from(PATHS))
@example(body={**GOOD, "n": 2, "max_completion_tokens": 1}, path=PATHS[0])
@example(
    body={**GOOD, "audio": {"voice": "alloy", "format": "opus"}, "max_completion_tokens": 1}, path=PATHS[1]
)
@example(body={**GOOD, "messages": [{"role": "system", "content": ""}]}, path=PATHS[2])
@example(body={**GOOD, "messages": [{"role": "user", "content": []}]}, path=PATHS[2])
@example(body={**GOOD, "model": "\x00\r\n\ud83d\ude00"}, path=PATHS[0])
def test_a_request_that_is_nearly_good(
    server: EmulatorProcess, plain: httpx2.Client, body: dict[str, Any], path: str
) -> None:
    sane(post(server, plain, path, json.dumps(body).encode()))


@FAST
@given(body=anything, path=st.sampled_from(PATHS))
def test_any_json(server: EmulatorProcess, plain: httpx2.Client, body: Any, path: str) -> None:
    sane(post(server, plain, path, json.dumps(body).encode()))


@FAST
@given(content=st.binary(max_size=200), path=st.sampled_from(PATHS))
def test_any_bytes(server: EmulatorProcess, plain: httpx2.Client, content: bytes, path: str) -> None:
    sane(post(server, plain, path, content))


@FAST
@given(
    start=st.sampled_from([WAV[:44], WAV[:12], b"RIFF", b"ID3\x04", b"\xff\xfb\x90\x64"]),
    rest=st.binary(max_size=400),
)
def test_any_bytes_as_a_recording(
    server: EmulatorProcess, plain: httpx2.Client, start: bytes, rest: bytes
) -> None:
    audio_format = "wav" if start.startswith(b"RIFF") else "mp3"
    body = {**GOOD, "messages": heard(recording(start + rest, audio_format))}
    sane(post(server, plain, PATHS[0], json.dumps(body).encode()))


@FAST
@given(
    headers=st.dictionaries(
        st.sampled_from(
            ["Authorization", "api-key", "x-stainless-retry-count", "Content-Encoding", "Expect"]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
        | st.sampled_from(
            ["Bearer a.b.c", "Bearer e30.e30.x", "Bearer ..", "Bearer W10.W10.x", "gzip", "9" * 30]
        ),
    ),
    path=st.sampled_from(
        [*PATHS, "/openai/deployments/%00/chat/completions", "/_emulator/identity", "/v1/%ff"]
    ),
)
def test_any_headers(
    server: EmulatorProcess, plain: httpx2.Client, headers: dict[str, str], path: str
) -> None:
    headers = {name: value.strip() for name, value in headers.items()}
    reply = plain.post(server.base_url + path, content=json.dumps(GOOD).encode(), headers=headers)
    assert reply.status_code < 500, reply.text


@FAST
@given(content=st.binary(max_size=120) | st.text(max_size=60).map(str.encode), started=st.booleans())
def test_anything_on_the_wire(server: EmulatorProcess, content: bytes, started: bool) -> None:
    host, _, port = server.base_url.removeprefix("http://").rpartition(":")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" if started else b""
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(head + content)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while piece := connection.recv(1 << 16):
                received += piece
        except ConnectionResetError:
            pass
    assert b"HTTP/1.1 5" not in received


@settings(parent=FAST, max_examples=60)
@given(body=anything, what=st.sampled_from(["faults", "quotas"]))
def test_any_administration(server: EmulatorProcess, plain: httpx2.Client, body: Any, what: str) -> None:
    reply = plain.put(f"{server.base_url}/_emulator/{what}", content=json.dumps(body).encode())
    assert reply.status_code in (200, 400), reply.text
    server.reset()


def test_it_is_alive_after_all_this(server: EmulatorProcess, plain: httpx2.Client) -> None:
    sane(post(server, plain, PATHS[0], json.dumps(GOOD).encode()))
    assert server.health()["status"] == "ok"
    assert "Traceback" not in server.stderr()
