"""Streams, as the official client reads them."""

import base64
from typing import Any

import httpx2
import openai as sdk
import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import SURFACES, ask, client, heard, raw_post, recording, tone_wav

PCM16 = {"voice": "alloy", "format": "pcm16"}


def stream(server: EmulatorProcess, surface: str = "azure", **changes: Any) -> list[Any]:
    with client(server, surface) as openai:
        return list(ask(openai, **{"stream": True, "audio": PCM16, **changes}))


@pytest.mark.parametrize("surface", SURFACES)
def test_a_stream_is_the_reply_in_pieces(server: EmulatorProcess, surface: str) -> None:
    with client(server, surface) as openai:
        whole = ask(openai, audio=PCM16).choices[0].message.audio
    chunks = stream(server, surface)
    if surface != "openai":
        first = chunks.pop(0)
        assert (first.choices, first.id, first.model) == ([], "", "")
        assert first.model_extra["prompt_filter_results"]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert deltas[0].audio.id.startswith("audio_")
    parts = [delta.audio for delta in deltas[1:-1]]
    assert "".join(part.transcript or "" for part in parts) == whole.transcript
    assert "".join(part.data or "" for part in parts) == whole.data
    # Each piece of data can be decoded by itself, to whole samples.
    assert all(len(base64.b64decode(part.data, validate=True)) % 2 == 0 for part in parts if part.data)
    assert [part.expires_at is not None for part in parts] == [False] * (len(parts) - 1) + [True]
    assert deltas[-1].audio is None
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_in_a_last_chunk_of_its_own(server: EmulatorProcess) -> None:
    chunks = stream(server, "openai", stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens_details.audio_tokens > 0
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])


def test_a_text_stream_carries_content(server: EmulatorProcess) -> None:
    messages = heard(recording(tone_wav()))
    with client(server) as openai:
        whole = ask(openai, messages=messages, modalities=["text"], audio=None).choices[0].message.content
    chunks = stream(server, "openai", messages=messages, modalities=["text"], audio=None)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_azure_s_first_chunk_is_a_switch() -> None:
    with EmulatorProcess("--speech", "tone", "--no-azure-first-chunk") as other:
        assert stream(other)[0].choices


def test_the_bytes_are_server_sent_events(server: EmulatorProcess) -> None:
    body = {"model": "gpt-audio", "modalities": ["text", "audio"], "audio": PCM16, "stream": True}
    reply = raw_post(server, json={**body, "messages": [{"role": "user", "content": "Hi"}]})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])


def test_a_stream_without_done_ends_quietly(server: EmulatorProcess) -> None:
    whole = len(stream(server))
    server.put_faults({"do": {"corrupt": "no_done"}})
    assert len(stream(server)) == whole


def test_a_stream_cut_in_the_middle_is_a_connection_error(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"reset": "in"}})
    with pytest.raises((sdk.APIConnectionError, httpx2.HTTPError)):
        stream(server)
    record = server.settled_journal(1)[0]
    assert (record["billed"], record["delivered"], record["fault"]) == (True, False, "reset in")
