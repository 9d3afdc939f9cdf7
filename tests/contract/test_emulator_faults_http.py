"""Every fault, as a client meets it."""

import base64
import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx2
import openai as sdk
import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import MODEL, PROMPT, SPOKEN, SURFACES, ask, client, raw_post

BODY = {"model": MODEL, "messages": PROMPT, **SPOKEN}


def post(server: EmulatorProcess, **changes: Any) -> httpx2.Response:
    return raw_post(server, json={**BODY, **changes})


def fault_of(server: EmulatorProcess) -> dict[str, Any]:
    """The journal's one record."""
    (record,) = server.settled_journal(1)
    return record


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (400, sdk.BadRequestError),
        (401, sdk.AuthenticationError),
        (403, sdk.PermissionDeniedError),
        (404, sdk.NotFoundError),
        (408, sdk.APIStatusError),
        (409, sdk.ConflictError),
        (413, sdk.APIStatusError),
        (422, sdk.UnprocessableEntityError),
        (429, sdk.RateLimitError),
        (500, sdk.InternalServerError),
        (503, sdk.InternalServerError),
        (529, sdk.InternalServerError),
    ],
)
def test_a_status_comes_with_the_service_s_words(
    server: EmulatorProcess, surface: str, status: int, raised: type[sdk.APIStatusError]
) -> None:
    server.put_faults({"do": {"status": status}})
    with client(server, surface) as openai, pytest.raises(raised) as caught:
        ask(openai)
    assert caught.value.status_code == status
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]
    assert "retry-after" not in caught.value.response.headers
    record = fault_of(server)
    assert (record["status"], record["fault"]) == (status, f"status {status}")
    # Only a time-out was worked on before it failed.
    assert record["billed"] == (status == 408)


def test_a_body_and_headers_of_one_s_own(server: EmulatorProcess) -> None:
    error = {
        "message": "You exceeded your current quota",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }
    server.put_faults(
        {"do": {"status": 429, "body": {"error": error}, "headers": {"Retry-After": "121", "X-Mine": "1"}}}
    )
    with client(server, "openai") as openai, pytest.raises(sdk.RateLimitError) as caught:
        ask(openai)
    assert caught.value.body == error
    assert caught.value.response.headers["retry-after"] == "121"
    assert caught.value.response.headers["x-mine"] == "1"


def test_headers_can_be_put_on_a_good_reply(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"headers": {"x-ratelimit-remaining-tokens": "0"}}})
    reply = post(server)
    assert reply.status_code == 200
    assert reply.headers["x-ratelimit-remaining-tokens"] == "0"


def test_the_sdk_s_own_retries_are_told_apart(server: EmulatorProcess) -> None:
    server.put_faults(
        {"when": {"attempt_below": 2}, "do": {"status": 500, "headers": {"retry-after-ms": "1"}}}
    )
    with client(server, max_retries=2) as openai:
        assert ask(openai).choices
    assert [(r["attempt"], r["status"]) for r in server.journal()] == [(0, 500), (1, 500), (2, 200)]


def test_retries_of_others_are_told_by_the_body(server: EmulatorProcess) -> None:
    server.put_faults({"when": {"attempt_below": 1}, "do": {"status": 503}})
    other = [{"role": "user", "content": "Something else"}]
    statuses = [post(server).status_code, post(server).status_code, post(server, messages=other).status_code]
    assert statuses == [503, 200, 503]


def test_faults_are_by_text_and_deployment(server: EmulatorProcess) -> None:
    server.put_faults(
        {"when": {"text": "retriever", "deployment": "my-audio"}, "do": {"status": 500}},
    )
    assert post(server).status_code == 200
    assert post(server, model="my-audio").status_code == 500
    assert post(server, model="my-audio", messages=[{"role": "user", "content": "x"}]).status_code == 200


def test_latency_delays_the_answer(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"latency_s": 0.4}})
    started = time.monotonic()
    assert post(server).status_code == 200
    assert 0.4 <= time.monotonic() - started < 3
    assert fault_of(server)["fault"] == "latency"


def test_latency_can_follow_the_audio_s_length(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"latency_s": {"per_audio_s": 0.05}}})
    started = time.monotonic()
    audio_s = post(server).json()["usage"]["completion_tokens_details"]["audio_tokens"] / 20
    assert time.monotonic() - started >= 0.049 * audio_s


@pytest.mark.parametrize(
    ("reset", "billed", "delivered"), [("before", False, False), ("in", True, False), ("after", True, True)]
)
def test_connections_are_reset(server: EmulatorProcess, reset: str, billed: bool, delivered: bool) -> None:
    server.put_faults({"do": {"reset": reset}})
    with client(server) as openai:
        if delivered:
            assert ask(openai).choices
        else:
            with pytest.raises(sdk.APIConnectionError):
                ask(openai)
    record = fault_of(server)
    assert (record["billed"], record["delivered"], record["fault"]) == (billed, delivered, f"reset {reset}")


def exchange(server: EmulatorProcess, payload: bytes) -> tuple[bytes, type[Exception] | None]:
    """What came over the wire, and how it ended: None is an orderly close."""
    host, _, port = server.base_url.removeprefix("http://").rpartition(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(payload)
        try:
            while piece := connection.recv(1 << 20):
                received += piece
        except OSError as error:
            return received, type(error)
    return received, None


def wire(server: EmulatorProcess) -> bytes:
    body = json.dumps(BODY).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.api_key}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_reset_is_a_tcp_reset_in_the_middle_of_the_body(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"reset": "in"}})
    received, ended = exchange(server, wire(server))
    assert ended is ConnectionResetError
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert len(body) == length // 2


def test_a_close_is_orderly_and_without_an_answer(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"corrupt": "close"}})
    assert exchange(server, wire(server)) == (b"", None)
    record = fault_of(server)
    assert (record["billed"], record["delivered"]) == (True, False)


def test_a_stalled_body_trickles(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"stall_s": 1.0}})
    started = time.monotonic()
    # Each read is quick enough for a short read time-out; only the whole is slow.
    with client(server, timeout=0.8) as openai:
        assert ask(openai).choices[0].message.audio.data
    assert time.monotonic() - started >= 1.0
    assert fault_of(server)["delivered"]


def reply_of(server: EmulatorProcess, corrupt: str, **changes: Any) -> Any:
    server.put_faults({"do": {"corrupt": corrupt}})
    with client(server) as openai:
        reply = ask(openai, **changes)
    record = fault_of(server)
    assert (record["status"], record["billed"], record["fault"]) == (200, True, f"corrupt {corrupt}")
    return reply


def test_base64_is_cut_so_that_nobody_can_read_it(server: EmulatorProcess) -> None:
    data = reply_of(server, "base64").choices[0].message.audio.data
    with pytest.raises(ValueError, match="base64"):
        base64.b64decode(data)


def test_json_is_cut(server: EmulatorProcess) -> None:
    with pytest.raises(json.JSONDecodeError):
        reply_of(server, "json")


def test_html_is_a_string_to_the_sdk(server: EmulatorProcess) -> None:
    assert "<html>" in reply_of(server, "html")


def test_no_audio_is_nothing_at_all(server: EmulatorProcess) -> None:
    message = reply_of(server, "no_audio").choices[0].message
    assert (message.audio, message.content) == (None, None)


def test_silence_is_as_long_as_the_speech(server: EmulatorProcess) -> None:
    message = reply_of(server, "silent").choices[0].message
    samples = base64.b64decode(message.audio.data)[44:]
    assert len(samples) > 48_000
    assert not any(samples)
    assert message.audio.transcript


def test_text_only_is_an_answer_in_words(server: EmulatorProcess) -> None:
    reply = reply_of(server, "text_only")
    assert "retriever" in reply.choices[0].message.content
    assert reply.choices[0].message.audio is None
    assert reply.usage.completion_tokens_details.audio_tokens == 0


def test_wav_headers_break_in_more_than_one_way(server: EmulatorProcess) -> None:
    heads = set()
    server.put_faults({"do": {"corrupt": "wav_header"}})
    with client(server) as openai:
        for n in range(24):
            reply = ask(openai, messages=[{"role": "user", "content": f"Number {n}"}])
            audio = base64.b64decode(reply.choices[0].message.audio.data)
            size = int.from_bytes(audio[40:44], "little")
            kind = (
                "none"
                if audio[:4] != b"RIFF"
                else "zero"
                if size == 0
                else "more"
                if size > len(audio)
                else "less"
            )
            heads.add(kind)
            assert size != 0xFFFFFFFF
    assert heads == {"none", "zero", "more", "less"}


@pytest.mark.parametrize("corrupt", ["base64", "json", "html", "no_audio", "silent", "text_only", "close"])
def test_streams_are_corrupted_as_well(server: EmulatorProcess, corrupt: str) -> None:
    server.put_faults({"do": {"corrupt": corrupt}})
    with client(server) as openai, contextlib.suppress(sdk.OpenAIError, httpx2.HTTPError, ValueError):
        stream = ask(openai, stream=True, audio={"voice": "alloy", "format": "pcm16"})
        parts = [chunk.choices[0].delta.audio for chunk in stream if chunk.choices]
        data = "".join(part.data or "" for part in parts if part)
        if corrupt == "silent":
            assert not any(base64.b64decode(data))
            return
        if corrupt in ("no_audio", "text_only"):
            assert not data
            return
        if corrupt == "html":
            assert not parts
            return
        assert corrupt == "base64"
        base64.b64decode(data)  # raises
        pytest.fail("the stream was not corrupted")
    assert fault_of(server)["fault"] == f"corrupt {corrupt}"


def test_faults_are_read_from_a_file_at_start(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps([{"when": {"nth": 1}, "do": {"status": 503}}]))
    with EmulatorProcess("--speech", "tone", "--faults", str(path)) as server:
        assert [post(server).status_code for _ in range(2)] == [503, 200]
        server.put_faults()
        server.reset()  # back to the file's
        assert post(server).status_code == 503


def test_a_wrong_rule_is_refused_and_changes_nothing(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"status": 503}})
    with httpx2.Client(trust_env=False) as plain:
        reply = plain.put(f"{server.base_url}/_emulator/faults", json=[{"do": {"status": "x"}}])
        assert reply.status_code == 400
        assert "status" in reply.json()["error"]["message"]
        assert plain.get(f"{server.base_url}/_emulator/faults").json() == [{"do": {"status": 503}}]
