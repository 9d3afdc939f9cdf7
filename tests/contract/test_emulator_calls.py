"""The three calls, by the official Python clients, on every URL form."""

import base64
import io
import wave
from typing import Any

import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import (
    API_VERSION,
    MODEL,
    PROMPT,
    SPOKEN,
    SURFACES,
    ask,
    client,
    heard,
    recording,
    tone_wav,
)
from tests.narrowing import present


@pytest.mark.parametrize("surface", SURFACES)
def test_a_text_prompt_is_answered_by_voice(server: EmulatorProcess, surface: str) -> None:
    with client(server, surface) as openai:
        reply = ask(openai)
    choice = reply.choices[0]
    message = choice.message
    assert reply.object == "chat.completion"
    assert reply.model == MODEL
    assert (choice.finish_reason, message.role, message.content, message.refusal) == (
        *("stop", "assistant"),
        *(None, None),
    )
    assert "golden retriever" in message.audio.transcript
    assert message.audio.id.startswith("audio_")
    assert len(message.audio.id) == len("audio_") + 32
    assert int(message.audio.id[6:14], 16) == pytest.approx(reply.created, abs=2)
    assert message.audio.expires_at == pytest.approx(reply.created + 3600, abs=2)
    audio = base64.b64decode(message.audio.data, validate=True)
    assert audio[:4] == b"RIFF"
    samples = len(audio) - 44
    usage = reply.usage
    assert usage.completion_tokens_details.audio_tokens == pytest.approx(20 * samples / 48_000, abs=1)
    assert usage.completion_tokens == (
        usage.completion_tokens_details.audio_tokens + usage.completion_tokens_details.text_tokens
    )
    assert usage.prompt_tokens_details.audio_tokens == 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("surface", SURFACES)
def test_a_recording_is_answered_by_voice(server: EmulatorProcess, surface: str) -> None:
    with client(server, surface) as openai:
        reply = ask(openai, messages=heard(recording(tone_wav(2.0))))
    assert "2.0 seconds" in reply.choices[0].message.audio.transcript
    assert reply.usage.prompt_tokens_details.audio_tokens == 20


def test_a_recording_is_answered_in_text(server: EmulatorProcess) -> None:
    with client(server) as openai:
        reply = ask(openai, messages=heard(recording(tone_wav())), modalities=["text"], audio=None)
    message = reply.choices[0].message
    assert "1.0 seconds" in message.content
    assert message.audio is None
    assert reply.usage.completion_tokens_details.audio_tokens == 0


@pytest.mark.parametrize("surface", SURFACES)
def test_a_follow_up_answers_from_the_conversation(server: EmulatorProcess, surface: str) -> None:
    first = heard(recording(tone_wav()))
    with client(server, surface) as openai:
        spoken = ask(openai, messages=first).choices[0].message.audio
        follow_up: list[Any] = [
            *first,
            {"role": "assistant", "audio": {"id": spoken.id}},
            {"role": "user", "content": "How long was it?"},
        ]
        # No modalities, as in Azure's own sample.
        reply = openai.chat.completions.create(model=MODEL, messages=follow_up)
    answer = reply.choices[0].message.content
    assert "How long was it?" in present(answer)
    assert "1.0 seconds" in present(answer)
    assert (
        present(present(present(reply.usage).prompt_tokens_details).audio_tokens) > 10
    )  # the recording and the earlier reply


def test_an_earlier_reply_alone_is_audio_enough(server: EmulatorProcess) -> None:
    with client(server) as openai:
        spoken = ask(openai).choices[0].message.audio
        reply = openai.chat.completions.create(
            model=MODEL,
            messages=[
                *PROMPT,
                {"role": "assistant", "audio": {"id": spoken.id}},
                {"role": "user", "content": "Why?"},
            ],
        )
    assert "golden retriever" in present(reply.choices[0].message.content)


async def test_the_async_clients_get_the_same(server: EmulatorProcess) -> None:
    async with (
        AsyncAzureOpenAI(
            azure_endpoint=server.base_url,
            azure_deployment="my-audio",
            api_version=API_VERSION,
            api_key=server.api_key,
            max_retries=0,
        ) as azure,
        AsyncOpenAI(base_url=f"{server.base_url}/openai/v1/", api_key=server.api_key, max_retries=0) as v1,
    ):
        replies = [
            await connected.chat.completions.create(model="my-audio", messages=PROMPT, **SPOKEN)
            for connected in (azure, v1)
        ]
    data = {present(reply.choices[0].message.audio).data for reply in replies}
    assert len(data) == 1
    assert {reply.model for reply in replies} == {MODEL}


def test_the_same_request_gets_the_same_audio_with_fresh_ids(server: EmulatorProcess) -> None:
    with client(server) as openai:
        one, two = ask(openai), ask(openai)
    assert one.choices[0].message.audio.data == two.choices[0].message.audio.data
    assert one.choices[0].message.audio.transcript == two.choices[0].message.audio.transcript
    assert one.id != two.id
    assert one.choices[0].message.audio.id != two.choices[0].message.audio.id


def test_reading_aloud_is_word_for_word(server: EmulatorProcess) -> None:
    system = {"role": "system", "content": "Read the user's text aloud, word for word. Add nothing."}
    with client(server) as openai:
        reply = ask(openai, messages=[system, {"role": "user", "content": "Mind the gap,\nplease."}])
    assert reply.choices[0].message.audio.transcript == "Mind the gap,\nplease."


def test_several_choices_have_an_id_each(server: EmulatorProcess) -> None:
    with client(server) as openai:
        reply = ask(openai, n=2)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert len({choice.message.audio.id for choice in reply.choices}) == 2
    single = reply.usage.completion_tokens / 2
    assert single == int(single)


def test_max_completion_tokens_cuts_words_and_audio(server: EmulatorProcess) -> None:
    with client(server) as openai:
        whole, cut = ask(openai), ask(openai, max_completion_tokens=60)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens <= 60
    audio = base64.b64decode(cut.choices[0].message.audio.data)
    assert len(audio) - 44 == pytest.approx(cut.usage.completion_tokens_details.audio_tokens * 2400, abs=2)
    assert whole.choices[0].message.audio.transcript.startswith(cut.choices[0].message.audio.transcript)
    assert base64.b64decode(whole.choices[0].message.audio.data)[44:].startswith(audio[44:])


def test_a_text_reply_is_cut_too(server: EmulatorProcess) -> None:
    with client(server) as openai:
        reply = ask(
            openai, messages=heard(recording(tone_wav())), modalities=["text"], audio=None, max_tokens=3
        )
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 3


def test_python_s_wave_module_is_misled_as_by_the_real_header(server: EmulatorProcess) -> None:
    with client(server) as openai:
        audio = base64.b64decode(ask(openai).choices[0].message.audio.data)
    assert audio[4:8] == audio[40:44] == b"\xff\xff\xff\xff"
    with wave.open(io.BytesIO(audio)) as file:
        assert file.getnframes() == 2_147_483_647
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)


@pytest.mark.parametrize("surface", SURFACES)
def test_the_headers_are_the_surface_s_own(server: EmulatorProcess, surface: str) -> None:
    with client(server, surface) as openai:
        raw = openai.chat.completions.with_raw_response.create(model=MODEL, messages=PROMPT, **SPOKEN)
    assert raw.headers["x-request-id"]
    if surface == "openai":
        assert raw.headers["openai-version"] == "2020-10-01"
        assert "apim-request-id" not in raw.headers
    else:
        assert raw.headers["apim-request-id"] == raw.headers["x-ms-client-request-id"]
        assert raw.headers["x-ms-region"] == "East US"


def test_every_known_model_is_a_deployment_of_its_own_name(server: EmulatorProcess) -> None:
    models = [
        "gpt-4o-audio-preview",
        "gpt-4o-mini-audio-preview",
        "gpt-audio",
        "gpt-audio-mini",
        "gpt-audio-1.5",
    ]
    with client(server) as openai:
        assert [ask(openai, model=model).model for model in models] == models
