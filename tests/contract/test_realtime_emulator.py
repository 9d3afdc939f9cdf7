"""The emulator's Realtime API, as the official Python client meets it."""

import asyncio
import time
from typing import Any, cast

import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.realtime_sessions import (
    MODEL,
    QUICKSTART,
    audio_of,
    kinds,
    no_vad,
    packed,
    say,
    session,
    tone,
    until,
    update,
    words_of,
)

RESPONSE = [
    "response.created",
    "rate_limits.updated",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
]
ENDED = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]


def patch(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {**value, name: patch(value[name], rest, new) if rest else new}


async def test_the_quickstart_s_session_is_taken_as_it_stands(server: EmulatorProcess) -> None:
    async with session(server) as connection:
        created = (await until(connection, "session.created"))[0]["session"]
        await connection.session.update(session=cast("Any", QUICKSTART))
        updated = (await until(connection, "session.updated"))[0]["session"]
        await say(connection, "Please assist the user.")
        await connection.response.create()
        events = await until(connection, "response.done")
    assert created["id"] == updated["id"]
    assert created["id"].startswith("sess_")
    assert created["audio"]["output"]["voice"] == "marin"
    assert created["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 200
    assert updated["audio"]["output"] == {**created["audio"]["output"], "voice": "alloy"}
    assert updated["audio"]["input"]["transcription"]["model"] == "whisper-1"
    assert created["expires_at"] - time.time() == pytest.approx(1800, abs=10)
    found = kinds(events)
    assert found[:2] == ["conversation.item.added", "conversation.item.done"]
    assert found[2:7] == RESPONSE
    assert found[-6:] == ENDED
    assert set(found[7:-6]) == {"response.output_audio_transcript.delta", "response.output_audio.delta"}
    assert found[7] == "response.output_audio_transcript.delta"  # the words run ahead
    sizes = [len(piece) for piece in audio_of(events)]
    assert sizes[:3] == [4800, 7200, 12000]
    assert sizes[-1] <= 28_800
    done = events[-1]["response"]
    part = done["output"][0]["content"][0]
    assert part == {"type": "output_audio", "transcript": words_of(events)}
    assert "Please assist the user." in part["transcript"]
    assert done["status"] == "completed"
    usage = done["usage"]
    assert usage["output_token_details"]["audio_tokens"] == pytest.approx(sum(sizes) / 48_000 * 20, abs=1)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    (record,) = server.settled_journal(1)
    assert (record["transport"], record["status"], record["billed"]) == ("realtime", 200, True)
    assert record["delivered"]
    assert record["output_audio_tokens"] == usage["output_token_details"]["audio_tokens"]


@pytest.mark.parametrize("path", ["/openai/v1", "/v1"])
async def test_a_key_is_let_in_on_every_path(server: EmulatorProcess, path: str) -> None:
    async with session(server, path) as connection:
        assert (await connection.recv()).type == "session.created"


async def test_azure_s_own_client_finds_its_path(server: EmulatorProcess) -> None:
    async with (
        asyncio.timeout(20),
        AsyncAzureOpenAI(
            azure_endpoint=server.base_url,
            api_version="2025-04-01-preview",
            api_key=server.api_key,
            websocket_base_url=server.base_url.replace("http", "ws") + "/openai",
        ) as client,
        client.realtime.connect(model=MODEL) as connection,
    ):
        assert (await connection.recv()).type == "session.created"


async def test_a_key_may_stand_in_the_query_and_an_api_key_wins(server: EmulatorProcess) -> None:
    async with session(server, key="wrong", extra_query={"api-key": server.api_key}) as connection:
        assert (await connection.recv()).type == "session.created"
    headers = {"api-key": server.api_key}
    async with session(server, key="wrong", extra_headers=headers) as connection:
        assert (await connection.recv()).type == "session.created"
    with pytest.raises(InvalidStatus):
        async with session(server, extra_headers={"api-key": "wrong"}):
            pass


async def test_a_token_is_let_in(server: EmulatorProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.identity.aio import ManagedIdentityCredential, get_bearer_token_provider

    for name, value in server.identity_env.items():
        monkeypatch.setenv(name, value)
    async with ManagedIdentityCredential() as credential:
        provider = get_bearer_token_provider(credential, "https://cognitiveservices.azure.com/.default")
        async with session(server, key=provider) as connection:
            assert (await connection.recv()).type == "session.created"


@pytest.mark.parametrize(
    ("path", "settings", "status", "words"),
    [
        ("/openai/v1", {"key": "wrong"}, 401, "Access denied"),
        ("/openai/v1", {"key": "a.b.c"}, 401, "Access denied"),
        ("/v1", {"key": "wrong"}, 401, "invalid_api_key"),
        ("/openai/v1", {"model": "nobody"}, 404, "DeploymentNotFound"),
        ("/v1", {"model": "nobody"}, 404, "model_not_found"),
        ("/v1", {"model": "gpt-audio"}, 400, "not supported in realtime mode"),
        ("/openai/v1", {"extra_query": {"api-version": "2025-04-01-preview"}}, 401, "Access denied"),
        ("/openai", {"extra_headers": {"api-key": "emulator-key"}}, 404, "Resource not found"),
    ],
)
async def test_an_upgrade_is_refused_as_a_request_is(
    server: EmulatorProcess, path: str, settings: dict[str, Any], status: int, words: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with session(server, path, **settings):
            pass
    response = refused.value.response
    assert response.status_code == status
    assert words in bytes(response.body or b"").decode()
    assert response.headers["x-request-id"]
    assert [(r["status"], r["billed"]) for r in server.settled_journal(1)] == [(status, False)]


async def test_the_beta_is_told_to_move_on(server: EmulatorProcess) -> None:
    async with session(server, extra_headers={"OpenAI-Beta": "realtime=v1"}) as connection:
        event: Any = await connection.recv()
        assert event.error.code == "beta_api_shape_disabled"
        with pytest.raises(ConnectionClosedError) as closed:
            await connection.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (
        4000,
        "invalid_request_error.beta_api_shape_disabled",
    )


@pytest.mark.parametrize(
    ("path", "value", "param", "code"),
    [
        ("voice", "alloy", "session.voice", "unknown_parameter"),  # the beta's
        ("modalities", ["text", "audio"], "session.modalities", "unknown_parameter"),
        ("input_audio_format", "pcm16", "session.input_audio_format", "unknown_parameter"),
        ("type", "transcription", "session.type", "invalid_value"),
        ("output_modalities", ["text", "audio"], "session.output_modalities", "invalid_value"),
        ("max_output_tokens", 5000, "session.max_output_tokens", "integer_above_max_value"),
        ("audio.output.voice", "bob", "session.audio.output.voice", "invalid_value"),
        ("audio.output.format", {"type": "mp3"}, "session.audio.output.format.type", "invalid_value"),
        (
            "audio.input.format",
            {"type": "audio/pcm", "rate": 16000},
            "session.audio.input.format.rate",
            "invalid_value",
        ),
        (
            "audio.input.turn_detection.threshold",
            2,
            "session.audio.input.turn_detection.threshold",
            "decimal_above_max_value",
        ),
        ("model", "gpt-realtime-mini", "session.model", "invalid_value"),
    ],
)
async def test_a_wrong_setting_is_an_error_and_changes_nothing(
    server: EmulatorProcess, path: str, value: Any, param: str, code: str
) -> None:
    async with session(server) as connection:
        before: Any = await connection.recv()
        wrong = patch(QUICKSTART, path, value)
        event: Any = {"type": "session.update", "session": wrong, "event_id": "mine"}
        await connection.send(event)
        error: Any = await connection.recv()
        assert error.type == "error"
        assert (error.error.param, error.error.code) == (param, code)
        assert error.error.event_id == "mine"
        after = await update(connection, instructions="Be brief.")
        assert after == {**before.session.to_dict(), "instructions": "Be brief."}


async def test_a_session_without_a_type_is_no_session(server: EmulatorProcess) -> None:
    async with session(server) as connection:
        await until(connection, "session.created")
        await connection.send_raw('{"type": "session.update", "session": {"instructions": "Hi"}}')
        event: Any = await connection.recv()
        assert (event.error.code, event.error.param) == ("missing_required_parameter", "session.type")


async def test_updates_are_partial_and_the_voice_is_frozen_after_it_spoke(server: EmulatorProcess) -> None:
    async with session(server) as connection:
        await until(connection, "session.created")
        first = await update(connection, audio={"output": {"voice": "cedar"}})
        second = await update(connection, audio={"input": {"turn_detection": None}})
        assert second["audio"]["output"] == first["audio"]["output"]
        assert second["audio"]["input"]["turn_detection"] is None
        await say(connection, "Hello")
        await connection.response.create()
        await until(connection, "response.done")
        await connection.send(
            {
                "type": "session.update",
                "session": {"type": "realtime", "audio": {"output": {"voice": "alloy"}}},
            }
        )
        event: Any = await connection.recv()
        assert event.error.code == "cannot_update_voice"


@pytest.mark.parametrize("audio_format", ["audio/pcm", "audio/pcmu", "audio/pcma"])
async def test_audio_in_is_committed_by_hand_and_heard(server: EmulatorProcess, audio_format: str) -> None:
    rate = 24_000 if audio_format == "audio/pcm" else 8_000
    sent = tone(1.5) if audio_format == "audio/pcm" else b"\xd5\x2a" * 6_000
    async with session(server) as connection:
        await until(connection, "session.created")
        await update(
            connection,
            audio={
                "input": {
                    "format": {"type": audio_format},
                    "turn_detection": None,
                    "transcription": {"model": "gpt-4o-mini-transcribe"},
                },
                "output": {"format": {"type": audio_format}},
            },
        )
        for start in range(0, len(sent), 8_000):
            await connection.input_audio_buffer.append(audio=packed(sent[start : start + 8_000]))
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        events = await until(connection, "response.done")
        found = kinds(events)
        if "conversation.item.input_audio_transcription.completed" not in found:
            events += await until(connection, "conversation.item.input_audio_transcription.completed")
    assert found[:3] == ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
    item = events[1]["item"]
    assert (item["role"], item["content"][0]["type"]) == ("user", "input_audio")
    assert events[0]["item_id"] == item["id"]
    assert "audio" not in item["content"][0]
    assert "1.5 seconds" in words_of(events)
    done = next(event for event in events if event["type"] == "response.done")["response"]
    assert done["usage"]["input_token_details"]["audio_tokens"] == 15
    seconds = sum(map(len, audio_of(events))) / (rate * (2 if rate == 24_000 else 1))
    assert done["usage"]["output_token_details"]["audio_tokens"] == pytest.approx(20 * seconds, abs=1)
    transcribed = next(e for e in events if e["type"].endswith("transcription.completed"))
    assert transcribed["item_id"] == item["id"]
    assert transcribed["usage"]["type"] == "tokens"


async def test_whisper_is_billed_by_length(server: EmulatorProcess) -> None:
    async with session(server) as connection:
        await until(connection, "session.created")
        await update(connection, **no_vad(transcription={"model": "whisper-1"}))
        await connection.input_audio_buffer.append(audio=packed(tone(2.0)))
        await connection.input_audio_buffer.commit()
        events = await until(connection, "conversation.item.input_audio_transcription.completed")
    assert events[-1]["usage"] == {"type": "duration", "seconds": 2.0}


async def test_voice_detection_finds_each_speech_and_answers(server: EmulatorProcess) -> None:
    quiet = bytes(48_000)
    async with session(server) as connection:
        await until(connection, "session.created")
        detection = {**QUICKSTART["audio"]["input"]["turn_detection"], "interrupt_response": False}
        await update(connection, audio={"input": {"turn_detection": detection}})
        for piece in (quiet, tone(1.0), quiet):
            await connection.input_audio_buffer.append(audio=packed(piece))
        events = await until(connection, "response.done")
    found = kinds(events)
    assert found[:3] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ]
    started, stopped, committed = events[:3]
    assert started["audio_start_ms"] == pytest.approx(700, abs=40)  # 300 ms of padding
    assert stopped["audio_end_ms"] == pytest.approx(2200, abs=40)  # 200 ms of silence
    assert started["item_id"] == stopped["item_id"] == committed["item_id"]
    assert events[-1]["response"]["usage"]["input_token_details"]["audio_tokens"] == pytest.approx(15, abs=1)


async def test_speech_interrupts_a_response(server: EmulatorProcess) -> None:
    server.put_faults({"when": {"nth": 1}, "do": {"stall_s": 15}})
    async with session(server) as connection:
        await until(connection, "session.created")
        await say(connection, "Tell me a long story.")
        await connection.response.create()
        await until(connection, "response.output_audio.delta")
        await connection.input_audio_buffer.append(audio=packed(tone(1.0) + bytes(48_000)))
        first = (await until(connection, "response.done"))[-1]["response"]
        second = (await until(connection, "response.done"))[-1]["response"]
    assert (first["status"], first["status_details"]) == (
        "cancelled",
        {"type": "cancelled", "reason": "turn_detected"},
    )
    assert first["output"][0]["status"] == "incomplete"
    assert second["status"] == "completed"


async def test_a_response_can_be_cancelled(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"stall_s": 15}})
    async with session(server) as connection:
        await until(connection, "session.created")
        await say(connection, "Tell me a long story.")
        await connection.response.create()
        await until(connection, "response.output_audio.delta")
        await connection.response.create()
        busy = (await until(connection, "error"))[-1]["error"]
        await connection.response.cancel()
        done = (await until(connection, "response.done"))[-1]["response"]
        await connection.response.cancel()
        idle = (await until(connection, "error"))[-1]["error"]
    assert busy["code"] == "conversation_already_has_active_response"
    assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert idle["code"] == "response_cancel_not_active"


async def test_errors_name_the_event_and_leave_the_session_open(server: EmulatorProcess) -> None:
    async with session(server) as connection:
        await until(connection, "session.created")
        for sent, code, param in (
            ('{"type": "input_audio_buffer.commit"}', "input_audio_buffer_commit_empty", None),
            ('{"type": "input_audio_buffer.append", "audio": "?"}', "invalid_value", "audio"),
            ('{"type": "nonsense"}', "invalid_value", "type"),
            ("{nonsense", "invalid_json", None),
            ('{"type": "conversation.item.delete", "item_id": "x"}', "item_not_found", "item_id"),
            ('{"type": "response.create", "response": {"temperature": 1}}', "unknown_parameter", None),
            (
                '{"type": "conversation.item.create", "item": {"type": "function_call"}}',
                "invalid_value",
                None,
            ),
        ):
            await connection.send_raw(sent)
            error = (await until(connection, "error"))[-1]["error"]
            assert error["code"] == code, error
            assert param is None or error["param"] == param
        await say(connection, "Still there?")
        await connection.response.create()
        assert (await until(connection, "response.done"))[-1]["response"]["status"] == "completed"


async def test_items_are_placed_shown_and_deleted(server: EmulatorProcess) -> None:
    async with session(server) as connection:
        await until(connection, "session.created")
        for identity, after in (("one", None), ("two", None), ("zero", "root")):
            created: Any = {
                "type": "conversation.item.create",
                "previous_item_id": after,
                "item": {
                    "id": identity,
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": identity}],
                },
            }
            await connection.send(created)
        added = await until(connection, "conversation.item.done", also=lambda e: e.item.id == "zero")
        places = [e.get("previous_item_id") for e in added if e["type"] == "conversation.item.added"]
        assert places == [None, "one", None]
        await connection.conversation.item.delete(item_id="two")
        assert (await until(connection, "conversation.item.deleted"))[-1]["item_id"] == "two"
        await connection.conversation.item.retrieve(item_id="one")
        shown = (await until(connection, "conversation.item.retrieved"))[-1]["item"]
        assert shown["content"] == [{"type": "input_text", "text": "one"}]


async def test_a_response_can_be_of_its_own(server: EmulatorProcess) -> None:
    async with session(server) as connection:
        await until(connection, "session.created")
        own: Any = {
            "conversation": "none",
            "output_modalities": ["text"],
            "metadata": {"purpose": "test"},
            "max_output_tokens": 5,
            "input": [
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "What is a recorder?"}],
                }
            ],
        }
        await connection.response.create(response=own)
        events = await until(connection, "response.done")
    done = events[-1]["response"]
    assert "conversation.item.added" not in kinds(events)
    assert done["conversation_id"] is None
    assert done["metadata"] == {"purpose": "test"}
    assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    assert done["output"][0]["content"][0]["type"] == "output_text"
    assert done["usage"]["output_tokens"] == 5


async def test_a_session_ends_in_time() -> None:
    with EmulatorProcess("--speech", "tone", "--session-life", "1") as brief:
        async with session(brief) as connection:
            await until(connection, "session.created")
            error = (await until(connection, "error"))[-1]["error"]
            kinds_left = [event.type async for event in connection]  # the iterator ends quietly
    assert error["code"] == "session_expired"
    assert kinds_left == []


async def test_quotas_and_blocked_words_fail_a_response(server: EmulatorProcess) -> None:
    async with session(server) as connection:
        await until(connection, "session.created")
        server.put_quotas(**{MODEL: {"rpm": 1}})
        answers = []
        for text in ("One", "Two"):
            await say(connection, text)
            await connection.response.create()
            answers.append(await until(connection, "response.done"))
        server.put_quotas(**{MODEL: {"rpm": None}})
        for word in ("emulator_block_prompt", "emulator_block_reply"):
            await say(connection, word)
            await connection.response.create()
            answers.append(await until(connection, "response.done"))
    statuses = [events[-1]["response"]["status"] for events in answers]
    assert statuses == ["completed", "failed", "failed", "failed"]
    assert answers[1][-1]["response"]["status_details"]["error"]["code"] == "rate_limit_exceeded"
    limits = next(e for e in answers[1] if e["type"] == "rate_limits.updated")["rate_limits"]
    assert limits[0]["remaining"] == 0
    assert limits[0]["reset_seconds"] > 0
    assert answers[2][-1]["response"]["status_details"]["error"]["code"] == "content_filter"
    assert [r["billed"] for r in server.settled_journal(4)] == [True, False, False, False]


async def test_a_client_that_goes_away_takes_nothing_with_it(server: EmulatorProcess) -> None:
    client = AsyncOpenAI(base_url=server.base_url + "/v1", api_key=server.api_key)
    connection = await client.realtime.connect(model=MODEL).enter()
    await connection.send({"type": "response.create"})
    transport: Any = connection._connection.transport
    transport.abort()
    await client.close()
    async with session(server) as other:
        assert (await other.recv()).type == "session.created"
