"""Each fault of a socket, as the transport tells it; and its sessions. Nothing may hang."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from audiobatch.errors import (
    AudioBatchError,
    AuthenticationFailed,
    BadReply,
    ContentFiltered,
    CreditExhausted,
    DeploymentGone,
    Disconnected,
    OutcomeUnknown,
    PermissionMissing,
    RateLimited,
    RequestRejected,
    ServiceError,
    Unavailable,
)
from audiobatch.model import AudioPart, Exchange, PriorReply, Reply, Request
from audiobatch.transports.auth import EntraTokens
from audiobatch.transports.base import ServiceAccess
from audiobatch.transports.realtime import RealtimeTransport
from audiobatch.transports.realtime_request import InputAudioSettings
from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import tone_wav

QUIET_S = 1.0
SOUND = AudioPart(data=tone_wav(), format="wav", duration_s=1.0)


CANCELLED = {"status": "cancelled", "status_details": {"reason": "turn_detected"}}
FAILED = {"status": "failed", "status_details": {"error": {"message": "Sorry"}}}


class Kept:
    """A sink that holds what it is given."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []

    async def restart(self) -> None:
        self.calls.append(b"")

    async def write(self, piece: bytes) -> None:
        self.calls[-1] += piece


@asynccontextmanager
async def transport(address: str, **settings: Any) -> AsyncIterator[RealtimeTransport]:
    access = ServiceAccess(
        provider="azure",
        endpoint=address,
        deployment="gpt-realtime",
        key=settings.pop("key", "emulator-key"),
        tokens=settings.pop("tokens", None),
        timeout_s=settings.pop("timeout_s", 15.0),
    )
    made = RealtimeTransport(access, **{"quiet_s": QUIET_S, **settings})
    try:
        yield made
    finally:
        await made.aclose()


def request(text: str = "Is tea better than coffee?", item_id: str = "a", **changes: Any) -> Request:
    settings: dict[str, Any] = {
        "turn": 1,
        "system": "",
        "history": (),
        "audio": None,
        "modalities": ("text", "audio"),
        "voice": "alloy",
        "format": "wav",
    }
    return Request(item_id=item_id, text=text, **(settings | changes))


def follow_up(first: Request, reply: Reply, text: str = "Why?", **changes: Any) -> Request:
    prior = PriorReply(audio_id=None, audio_expires_at=None, text=reply.transcript_or_text)
    told = (*first.history, Exchange(text=first.text, audio=first.audio, reply=prior))
    return request(text, first.item_id, turn=first.turn + 1, history=told, **changes)


async def failure(server: EmulatorProcess, *rules: dict[str, Any], **settings: Any) -> tuple[Any, bytes]:
    """What one call fails with, and what the sink got."""
    server.put_faults(*rules)
    sink = Kept()
    began_s = time.monotonic()
    async with transport(server.base_url, **settings) as made:
        with pytest.raises(AudioBatchError) as failed:
            await made.send(request(), sink)
    assert time.monotonic() - began_s < 6
    assert made.sessions._open == 0
    return failed.value, sink.calls[-1]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestRejected),
        (401, AuthenticationFailed),
        (403, PermissionMissing),
        (404, DeploymentGone),
        (429, RateLimited),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
async def test_a_refused_upgrade_is_what_a_refused_request_is(
    server: EmulatorProcess, status: int, error: type[AudioBatchError]
) -> None:
    headers = {"retry-after-ms": "2500"}
    failed, received = await failure(server, {"do": {"status": status, "headers": headers}})
    assert type(failed) is error
    assert isinstance(failed, ServiceError)
    assert failed.status == status
    assert getattr(failed, "retry_after_s", 2.5) == 2.5
    assert failed.request_id
    assert received == b""
    assert [(r["status"], r["billed"]) for r in server.settled_journal(1)] == [(status, False)]


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1008, 1011, 1012, 1013, 3000, 4000])
@pytest.mark.parametrize("position", ["before", "in"])
async def test_a_close_before_the_end_leaves_the_outcome_unknown(
    server: EmulatorProcess, code: int, position: str
) -> None:
    failed, received = await failure(server, {"do": {"close_code": code, "reset": position}})
    assert type(failed) is OutcomeUnknown
    assert failed.error_type == "disconnected"
    assert ("no close frame" if code == 1006 else str(code)) in failed.message
    assert (b"response.output_audio.delta" in received) == (position == "in")
    assert [r["billed"] for r in server.settled_journal(1)] == [position == "in"]


@pytest.mark.parametrize("code", [1000, 1006, 1011])
async def test_a_close_after_the_end_costs_no_reply(server: EmulatorProcess, code: int) -> None:
    server.put_faults({"when": {"nth": 1}, "do": {"close_code": code, "reset": "after"}})
    async with transport(server.base_url) as made:
        first = request()
        reply = await made.send(first)
        second = await made.send(follow_up(first, reply))  # its session is gone: told again in a new one
    assert reply.audio is not None
    assert reply.transcript_or_text[:40] in second.transcript_or_text
    assert made.sessions.peak <= 2


@pytest.mark.parametrize(
    ("do", "error", "words", "timed_out"),
    [
        ({"reset": "before"}, OutcomeUnknown, "before response.done", False),
        ({"reset": "in"}, OutcomeUnknown, "of the reply, before response.done", False),
        ({"corrupt": "close"}, OutcomeUnknown, "1000", False),
        ({"corrupt": "no_done"}, OutcomeUnknown, "said nothing for 1 s", True),
        ({"stall_s": 30}, OutcomeUnknown, "said nothing for 1 s", True),
        ({"latency_s": 30}, OutcomeUnknown, "said nothing for 1 s", True),
        ({"corrupt": "json"}, BadReply, "no event", False),
        ({"corrupt": "html"}, BadReply, "no event", False),
        ({"corrupt": "base64"}, BadReply, "broken base64", False),
        ({"body": CANCELLED}, BadReply, "turn_detected", False),
        ({"body": FAILED}, OutcomeUnknown, "Sorry", False),
        ({"body": {"status": None}}, BadReply, "None", False),
    ],
)  # fmt: skip
async def test_half_a_reply_is_kept_and_told(
    server: EmulatorProcess, do: dict[str, Any], error: type[AudioBatchError], words: str, timed_out: bool
) -> None:
    failed, received = await failure(server, {"do": do})
    assert type(failed) is error
    assert words in failed.message
    if error is OutcomeUnknown:
        assert failed.error_type == ("timed_out" if timed_out else "disconnected")
    begun = do not in ({"reset": "before"}, {"latency_s": 30})
    assert (b"response.output_audio.delta" in received) == begun


@pytest.mark.parametrize(
    ("do", "error"),
    [
        ({"status": 500}, Unavailable),
        ({"status": 503}, Unavailable),
        ({"status": 429}, RateLimited),
        ({"status": 429, "body": {"error": {"type": "x", "code": "insufficient_quota"}}}, CreditExhausted),
        ({"status": 400}, RequestRejected),
        ({"status": 404}, Unavailable),
        ({"corrupt": "no_audio", "body": {"output": []}}, BadReply),
    ],
)
async def test_a_response_that_fails_is_told_by_its_error(
    server: EmulatorProcess, do: dict[str, Any], error: type[AudioBatchError]
) -> None:
    failed, _ = await failure(server, {"when": {"text": "tea"}, "do": do})
    if do != {"status": 404}:
        assert type(failed) is error
    assert [r["billed"] for r in server.settled_journal(1)] == ["corrupt" in do]


@pytest.mark.parametrize("word", ["emulator_block_prompt", "emulator_block_reply"])
async def test_the_content_filter_is_final(server: EmulatorProcess, word: str) -> None:
    async with transport(server.base_url) as made:
        with pytest.raises(ContentFiltered):
            await made.send(request(word))


async def test_a_reply_in_text_alone_and_one_cut_short_are_replies(server: EmulatorProcess) -> None:
    server.put_faults({"when": {"nth": 1}, "do": {"corrupt": "text_only"}})
    async with transport(server.base_url) as made:
        written = await made.send(request())
        short = await made.send(request(item_id="b", max_completion_tokens=60))
    assert (written.audio, written.finish_reason) == (None, "stop")
    assert "tea" in written.transcript_or_text
    assert short.finish_reason == "length"
    assert short.usage is not None
    assert short.usage.output_audio_tokens + short.usage.output_text_tokens == 60


async def test_a_short_stall_is_sat_through_and_a_long_turn_has_a_deadline(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"stall_s": 0.5}})
    async with transport(server.base_url) as made:
        assert (await made.send(request())).audio is not None
    failed, _ = await failure(server, {"do": {"stall_s": 30}}, quiet_s=60.0, timeout_s=1.5)
    assert failed.error_type == "timed_out"


async def test_a_quota_names_its_wait(server: EmulatorProcess) -> None:
    server.put_quotas(**{"gpt-realtime": {"rpm": 1}})
    async with transport(server.base_url) as made:
        reply = await made.send(request())
        with pytest.raises(RateLimited) as limited:
            await made.send(request(item_id="b"))
    assert limited.value.retry_after_s == pytest.approx(60, abs=5)
    assert reply.limits["x-ratelimit-limit-requests"] == "1"
    assert limited.value.limits["x-ratelimit-limit-requests"] == "1", "a refusal tells them as well"


async def test_nobody_there_is_told_as_that() -> None:
    async with transport("http://127.0.0.1:9") as made:
        with pytest.raises(Disconnected):
            await made.send(request())


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [("closes", Unavailable), ("is silent", Unavailable), ("forgets", Unavailable), ("babbles", Unavailable)],
)
async def test_a_session_that_goes_wrong_before_the_question_cost_nothing(
    behaviour: str, error: type[AudioBatchError]
) -> None:
    async def strange(socket: ServerConnection) -> None:
        if behaviour == "forgets":
            await socket.send('{"type": "session.created", "session": {}}')
        if behaviour == "babbles":
            await socket.send("<html>")
        if behaviour != "closes":
            await socket.wait_closed()

    async with serve(strange, "127.0.0.1", 0) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        async with transport(f"http://127.0.0.1:{port}") as made:
            began_s = time.monotonic()
            with pytest.raises(error):
                await made.send(request())
    assert time.monotonic() - began_s < 6


async def test_an_item_s_turns_share_a_session(server: EmulatorProcess) -> None:
    async with transport(
        server.base_url, input_audio=InputAudioSettings(transcription_model="whisper-1")
    ) as made:
        first = request("What do you hear?", audio=SOUND)
        reply = await made.send(first)
        second = await made.send(follow_up(first, reply, "How long was it?", modalities=("text",)))
        assert made.sessions.peak == 1
        made.end_item("a")
        again = await made.send(follow_up(first, reply, "How long was it?", modalities=("text",)))
        session = made.sessions.take("a")
        assert session is not None
        assert session.turns == 2
        made.sessions.put_back(session)
    assert "1.0 seconds" in reply.transcript_or_text
    # A new session gets the recording and the texts again.
    assert second.transcript_or_text == again.transcript_or_text
    assert "1.0 seconds" in second.transcript_or_text
    assert (second.audio, second.audio_id) == (None, None)
    # The recording was sent twice, once a session; no turn was answered twice in one.
    assert [r["input_audio_tokens"] > 0 for r in server.settled_journal(3)] == [True] * 3


async def test_sessions_are_never_more_than_the_limit(server: EmulatorProcess) -> None:
    async with transport(server.base_url, max_sessions=3) as made:
        firsts = [request(item_id=str(number)) for number in range(8)]
        replies = await asyncio.gather(*(made.send(first) for first in firsts))
        seconds = await asyncio.gather(
            *(made.send(follow_up(one, reply)) for one, reply in zip(firsts, replies, strict=True))
        )
        assert made.sessions.peak == 3
    assert all("Why?" in second.transcript_or_text for second in seconds)
    assert made.sessions._open == 0


async def test_a_voice_is_a_session_s_own(server: EmulatorProcess) -> None:
    async with transport(server.base_url) as made:
        first = request()
        reply = await made.send(first)
        other = await made.send(follow_up(first, reply, voice="cedar"))
    assert other.audio is not None


async def test_a_session_too_old_for_another_turn_is_left() -> None:
    with EmulatorProcess("--speech", "tone", "--session-life", "4") as brief:
        async with transport(brief.base_url, timeout_s=3.0) as made:
            first = request()
            reply = await made.send(first)
            await asyncio.sleep(1.2)
            second = await made.send(follow_up(first, reply))
            session = made.sessions.take("a")
            assert session is not None
            assert session.ends_at_s - time.time() > 2.9  # a new one
            made.sessions.put_back(session)
            brief.put_faults({"do": {"stall_s": 20}})
            made._timeout_s = made._quiet_s = 10.0
            with pytest.raises(OutcomeUnknown, match="maximum duration"):
                await made.send(request(item_id="b"))
    assert reply.transcript_or_text[:40] in second.transcript_or_text


async def test_a_refused_token_is_renewed_once(
    server: EmulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.identity_env.items():
        monkeypatch.setenv(name, value)
    tokens = EntraTokens()
    async with transport(server.base_url, key=None, tokens=tokens) as made:
        await made.send(request())
        made.end_item("a")
        server.put_faults({"when": {"nth": 1}, "do": {"expire_tokens": True}})
        assert (await made.send(request())).audio is not None
    assert tokens.fetched == 2


async def test_voice_detection_sends_what_was_spoken_and_refuses_silence(server: EmulatorProcess) -> None:
    quiet = AudioPart(data=tone_wav()[:44] + bytes(32_000), format="wav", duration_s=1.0)
    async with transport(server.base_url, input_audio=InputAudioSettings(voice_detection=True)) as made:
        heard = await made.send(request("What do you hear?", audio=SOUND))
        with pytest.raises(RequestRejected, match="no speech"):
            await made.send(request(item_id="b", audio=quiet))
    assert "I could make out no words" in heard.transcript_or_text


async def test_a_cancelled_call_leaves_no_session_open(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"stall_s": 20}})
    async with transport(server.base_url) as made:
        call = asyncio.create_task(made.send(request()))
        await asyncio.sleep(0.5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert made.sessions._open == 0
