"""Transcriptions as the official clients ask for them: three URLs, five formats, and what is refused."""

import json
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, OpenAI

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import SURFACES, client, raw_post, tone_wav

WAV = tone_wav(1.5)


def transcribe(
    connected: OpenAI,
    content: bytes = WAV,
    *,
    name: str = "memo.wav",
    model: str = "whisper-1",
    **settings: Any,
) -> Any:
    return connected.audio.transcriptions.create(file=(name, content), model=model, **settings)


@pytest.mark.parametrize("surface", SURFACES)
def test_a_recording_is_written_down_on_every_url(surface: str, server: EmulatorProcess) -> None:
    with client(server, surface) as connected:
        reply = transcribe(connected)
    assert reply.text == ""
    assert reply.usage.type == "duration"
    assert reply.usage.seconds == pytest.approx(1.5, abs=0.6)
    (record,) = server.settled_journal(1)
    assert (record["transport"], record["status"], record["billed"]) == ("transcription", 200, True)


def test_the_gpt_models_are_charged_by_tokens(server: EmulatorProcess) -> None:
    with client(server) as connected:
        usage = transcribe(connected, model="gpt-4o-transcribe").usage
    assert usage.type == "tokens"
    assert usage.input_token_details.audio_tokens == 15
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


@pytest.mark.parametrize("wanted", ["json", "text", "srt", "verbose_json", "vtt"])
def test_every_response_format_is_given(wanted: str, server: EmulatorProcess) -> None:
    with client(server, "openai") as connected:
        reply = transcribe(connected, response_format=wanted)
    match wanted:
        case "verbose_json":
            assert (reply.duration, reply.language, reply.segments) == (1.5, "english", [])
        case "vtt":
            assert reply.startswith("WEBVTT")
        case "json":
            assert reply.text == ""
        case _:
            assert reply.strip() == ""


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "a format that only Whisper gives": (
        {"model": "gpt-4o-transcribe", "response_format": "verbose_json"},
        400,
        "response_format 'verbose_json' is not compatible with model 'gpt-4o-transcribe'",
    ),
    "an unknown format": ({"response_format": "docx"}, 400, "Invalid value: 'docx'"),
    "times without verbose_json": ({"timestamp_granularities": ["word"]}, 400, "granularities"),
    "a name that is no recording's": ({"name": "memo.doc"}, 400, "Invalid file format"),
    "no recording": ({"content": b"this is text"}, 400, "Invalid file format"),
    "a temperature of 2": ({"temperature": 2}, 400, "temperature"),
    "a chat model": ({"model": "gpt-audio-1.5"}, 400, "gpt-audio-1.5"),
    "more than 25 MB": (
        {"content": bytes(26_300_000)},
        413,
        "Maximum content size limit (26214400) exceeded",
    ),
    "longer than 1400 s": (
        {"content": tone_wav(1401, 4000), "model": "gpt-4o-mini-transcribe"},
        400,
        "longer than 1400 seconds",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_transcription_is_refused_in_the_service_s_words(case: str, server: EmulatorProcess) -> None:
    settings, status, words = REFUSED[case]
    with client(server, "openai") as connected, pytest.raises(APIStatusError) as refused:
        transcribe(connected, **settings)
    assert refused.value.status_code == status
    assert words in refused.value.message
    assert not server.settled_journal(1)[0]["billed"]


def test_the_code_of_a_format_that_does_not_fit_is_unsupported_value(server: EmulatorProcess) -> None:
    with client(server, "azure_v1") as connected, pytest.raises(BadRequestError) as refused:
        transcribe(connected, model="gpt-4o-transcribe", response_format="srt")
    assert (refused.value.code, refused.value.param) == ("unsupported_value", "response_format")


def test_a_transcription_model_makes_no_chat_completion(server: EmulatorProcess) -> None:
    body = {"model": "whisper-1", "messages": [{"role": "user", "content": "hello"}]}
    assert raw_post(server, json=body).status_code == 404


def test_a_body_that_is_no_form_is_refused(server: EmulatorProcess) -> None:
    path = "/v1/audio/transcriptions"
    assert raw_post(server, path, json={"model": "whisper-1"}).status_code == 400
    assert raw_post(server, path, data={"model": "whisper-1"}).status_code == 400


def test_faults_and_quotas_hold_here_too(server: EmulatorProcess) -> None:
    server.put_faults(
        {"when": {"nth": 1}, "do": {"status": 503}}, {"when": {"nth": 2}, "do": {"corrupt": "json"}}
    )
    with client(server, "openai") as connected:
        with pytest.raises(APIStatusError) as failed:
            transcribe(connected)
        assert failed.value.status_code == 503
        with pytest.raises(json.JSONDecodeError):
            transcribe(connected)
    server.put_quotas(**{"whisper-1": {"rpm": 1}})
    with client(server) as connected:
        transcribe(connected)
        with pytest.raises(APIStatusError) as refused:
            transcribe(connected)
    assert refused.value.status_code == 429
    assert int(refused.value.response.headers["retry-after"]) >= 1
