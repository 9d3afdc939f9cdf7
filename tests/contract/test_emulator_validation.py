"""What the service refuses, and in which words."""

import base64
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import (
    MODEL,
    PROMPT,
    SPOKEN,
    ask,
    client,
    heard,
    raw_post,
    recording,
    tone_wav,
)

WAV = tone_wav(0.5)
MP3_MARK = b"\xff\xfb\x90\x64" + bytes(600)
VOICES = (
    "'alloy', 'ash', 'ballad', 'coral', 'echo', 'fable', 'nova', 'onyx', 'sage', 'shimmer', 'verse', 'marin'"
)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


REFUSED: list[tuple[str, dict[str, Any], str, str | None, str | None]] = [
    # what is wrong, the change, how the message begins, param, code
    (
        "an unknown voice",
        {"audio": {"voice": "bob", "format": "wav"}},
        f"Invalid value: 'bob'. Supported values are: {VOICES}, and 'cedar'.",
        *("audio.voice", "invalid_value"),
    ),
    (
        "an unknown format",
        {"audio": {"voice": "ash", "format": "ogg"}},
        "Invalid value: 'ogg'. Supported values are: 'wav', 'aac', 'mp3', 'flac', 'opus', and 'pcm16'.",
        *("audio.format", "invalid_value"),
    ),
    (
        "no format",
        {"audio": {"voice": "ash"}},
        "Missing required parameter: 'audio.format'.",
        "audio.format",
        "missing_required_parameter",
    ),
    (
        "no audio settings",
        {"audio": None},
        "Missing required parameter: 'audio'.",
        "audio",
        "missing_required_parameter",
    ),
    (
        "an unknown modality",
        {"modalities": ["text", "video"]},
        "Invalid value: 'video'. Supported values are: 'text' and 'audio'.",
        *("modalities[1]", "invalid_value"),
    ),
    (
        "audio alone",
        {"modalities": ["audio"]},
        "Invalid modalities: ['audio'].",
        "modalities",
        "invalid_value",
    ),
    (
        "a streamed wav",
        {"stream": True},
        "Unsupported value: 'audio.format' does not support 'wav' when stream=true. Supported values are: 'pcm16'.",
        *("audio.format", "unsupported_value"),
    ),
    (
        "audio on neither side",
        {"modalities": ["text"], "audio": None},
        "This model requires that either input content or output modality contain audio.",
        *("model", "invalid_value"),
    ),
    (
        "bytes that are no audio",
        {"messages": heard(recording(b"no audio at all, but text"))},
        "The audio file could not be decoded or its format is not supported.",
        *("messages", "unsupported_format"),
    ),
    (
        "base64 that is none",
        {"messages": heard(recording("!!!"))},
        "The audio file could not be decoded or its format is not supported.",
        *("messages", "unsupported_format"),
    ),
    (
        "a wav without samples in it",
        {"messages": heard(recording(WAV[:20]))},
        "The audio file could not be decoded or its format is not supported.",
        *("messages", "unsupported_format"),
    ),
    (
        "an mp3 called wav",
        {"messages": heard(recording(MP3_MARK, "wav"))},
        "This model does not support the format you provided.",
        *("messages", "unsupported_format"),
    ),
    (
        "a wav called mp3",
        {"messages": heard(recording(WAV, "mp3"))},
        "This model does not support the format you provided.",
        *("messages", "unsupported_format"),
    ),
    (
        "a data URL",
        {"messages": heard(recording("data:audio/wav;base64," + base64.b64encode(WAV).decode()))},
        "This model does not support the format you provided.",
        *("messages", "unsupported_format"),
    ),
    (
        "an input format that is not taken",
        {"messages": heard(recording(WAV, "flac"))},
        "Invalid value: 'flac'. Supported values are: 'wav' and 'mp3'.",
        *("messages[0].content[1].input_audio.format", "invalid_value"),
    ),
    (
        "an unknown audio id",
        {"messages": [*PROMPT, {"role": "assistant", "audio": {"id": "audio_abc"}}, *PROMPT]},
        "Assistant audio audio_abc not found.",
        *("content.messages[1].audio.id", "audio_not_found"),
    ),
    ("no messages", {"messages": []}, "Invalid 'messages': empty array.", "messages", "empty_array"),
    (
        "an unknown role",
        {"messages": [{"role": "boss", "content": "hi"}]},
        "Invalid value: 'boss'. Supported values are: 'system', 'assistant', 'user', 'function', 'tool', and",
        *("messages[0].role", "invalid_value"),
    ),
    (
        "no content",
        {"messages": user(None)},
        "Invalid value for 'content': expected a string, got null.",
        "messages[0].content",
        None,
    ),
    (
        "an unknown part",
        {"messages": user([{"type": "smell"}])},
        "Invalid value: 'smell'. Supported values are: 'text', 'image_url', and 'input_audio'.",
        *("messages[0].content[0].type", "invalid_value"),
    ),
    (
        "too hot",
        {"temperature": 3},
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
        *("temperature", "decimal_above_max_value"),
    ),
    (
        "a temperature in words",
        {"temperature": "hot"},
        "Invalid type for 'temperature': expected a decimal, but got a string instead.",
        *("temperature", "invalid_type"),
    ),
    ("no choices", {"n": 0}, "Invalid 'n': integer below minimum value.", "n", "integer_below_min_value"),
    ("many choices", {"n": 129}, "Invalid 'n': integer above maximum value.", "n", "integer_above_max_value"),
    (
        "more tokens than the model has",
        {"max_completion_tokens": 20_000},
        "Invalid 'max_completion_tokens': integer above maximum value.",
        *("max_completion_tokens", "integer_above_max_value"),
    ),
    (
        "a seed in words",
        {"seed": "x"},
        "Invalid type for 'seed': expected an integer",
        "seed",
        "invalid_type",
    ),
    (
        "too much metadata",
        {"metadata": {str(n): "x" for n in range(17)}},
        "Invalid 'metadata': too many properties.",
        *("metadata", "object_above_max_properties"),
    ),
    (
        "a long metadata key",
        {"metadata": {"k" * 65: "x"}},
        "Invalid 'metadata': string too long.",
        "metadata",
        "string_above_max_length",
    ),
    (
        "a long metadata value",
        {"metadata": {"k": "x" * 513}},
        "Invalid 'metadata.k': string too long.",
        "metadata.k",
        "string_above_max_length",
    ),
    (
        "structured output",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
        *("response_format", None),
    ),
    (
        "tools",
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "The emulator does not emulate tools",
        *("tools", "unsupported_parameter"),
    ),
    (
        "stream options without a stream",
        {"stream_options": {"include_usage": True}},
        "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        *("stream_options", None),
    ),
    (
        "too long a conversation",
        {"messages": user("word " * 110_000)},
        "This model's maximum context length is 128000 tokens.",
        *("messages", "context_length_exceeded"),
    ),
]


@pytest.mark.parametrize(
    ("change", "message", "param", "code"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_wrong_request_is_refused(
    server: EmulatorProcess, change: dict[str, Any], message: str, param: str | None, code: str | None
) -> None:
    with client(server, "openai") as openai, pytest.raises(BadRequestError) as raised:
        ask(openai, **change)
    error = raised.value
    assert isinstance(error.body, dict)
    assert error.body["message"].startswith(message)
    assert (error.type, error.param, error.code) == ("invalid_request_error", param, code)
    record = server.journal()[-1]
    assert (record["status"], record["delivered"]) == (400, True)
    # A prompt that was read before it was refused is charged.
    assert record["billed"] == (code == "context_length_exceeded")


def test_the_azure_surfaces_have_the_four_fields_too(server: EmulatorProcess) -> None:
    for surface in ("azure", "azure_v1"):
        with client(server, surface) as openai, pytest.raises(BadRequestError) as raised:
            ask(openai, temperature=3)
        assert isinstance(raised.value.body, dict)
        assert set(raised.value.body) == {"message", "type", "param", "code"}


def test_unknown_arguments_are_named(server: EmulatorProcess) -> None:
    for surface, message in (
        ("azure", "Unrecognized request argument supplied: colour"),
        ("openai", "Unknown parameter: 'colour'."),
    ):
        with client(server, surface) as openai, pytest.raises(BadRequestError) as raised:
            ask(openai, extra_body={"colour": "red"})
        assert message in raised.value.message


def test_what_is_optional_may_be_null_or_said(server: EmulatorProcess) -> None:
    with client(server) as openai:
        reply = ask(
            openai,
            temperature=0.5,
            top_p=1,
            seed=7,
            stop=["\n"],
            user="u",
            store=False,
            metadata={"job": "1"},
            service_tier="auto",
            response_format={"type": "text"},
            extra_body={"max_tokens": None, "logit_bias": None, "tools": []},
        )
    assert reply.choices[0].finish_reason == "stop"
    assert reply.system_fingerprint.startswith("fp_")


def test_a_custom_voice_is_taken(server: EmulatorProcess) -> None:
    with client(server) as openai:
        custom = ask(openai, audio={"voice": {"id": "voice_abc"}, "format": "wav"})
        known = ask(openai)
    assert custom.choices[0].message.audio.data != known.choices[0].message.audio.data


def test_an_unknown_deployment_is_a_404(server: EmulatorProcess) -> None:
    for surface, code in (
        ("azure", "DeploymentNotFound"),
        ("azure_v1", "DeploymentNotFound"),
        ("openai", "model_not_found"),
    ):
        with client(server, surface) as openai, pytest.raises(NotFoundError) as raised:
            ask(openai, model="nobody-deployed-this")
        assert raised.value.code == code


def test_a_realtime_model_makes_no_chat_completion(server: EmulatorProcess) -> None:
    with client(server) as openai, pytest.raises(BadRequestError) as raised:
        ask(openai, model="gpt-realtime")
    assert raised.value.code == "OperationNotSupported"


@pytest.mark.parametrize("query", ["", "?api-version=", "?api-version=v1", "?api-version=2025-13-01"])
def test_a_dated_path_needs_a_dated_version(server: EmulatorProcess, query: str) -> None:
    path = f"/openai/deployments/{MODEL}/chat/completions{query}"
    reply = raw_post(server, path, headers={"api-key": server.api_key}, json={"messages": PROMPT, **SPOKEN})
    assert reply.status_code == 404
    assert reply.json() == {"error": {"code": "404", "message": "Resource not found"}}


def test_versions_before_audio_do_not_know_it(server: EmulatorProcess) -> None:
    path = f"/openai/deployments/{MODEL}/chat/completions?api-version=2024-06-01"
    headers = {"api-key": server.api_key}
    spoken = raw_post(server, path, headers=headers, json={"messages": PROMPT, **SPOKEN})
    assert spoken.json()["error"]["message"] == "Unrecognized request argument supplied: modalities"
    given = raw_post(server, path, headers=headers, json={"messages": heard(recording(WAV))})
    error = given.json()["error"]
    assert error["message"] == "Invalid value: 'input_audio'. Supported values are: 'text' and 'image_url'."
    assert error["param"] == "messages[0].content[1].type"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/openai/elsewhere", "Resource not found"),
        ("/v1/elsewhere", "Invalid URL (POST /v1/elsewhere)"),
        ("/", "Resource not found"),
    ],
)
def test_unknown_paths_are_404_with_a_body(server: EmulatorProcess, path: str, said: str) -> None:
    reply = raw_post(server, path)
    assert reply.status_code == 404
    assert reply.json()["error"]["message"] == said
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"model": NaN}', b"[" * 5000, b'"\xed\xa0\x80"']
)
def test_a_body_that_is_no_json_is_a_400(server: EmulatorProcess, content: bytes) -> None:
    reply = raw_post(server, content=content)
    assert reply.status_code == 400
    assert "could not parse the JSON body" in reply.json()["error"]["message"]


@pytest.mark.parametrize("body", [[], "x", 5, None, {}])
def test_json_that_is_no_request_is_a_400(server: EmulatorProcess, body: Any) -> None:
    assert raw_post(server, json=body).status_code == 400


def test_the_size_limit_is_of_the_decoded_audio(server: EmulatorProcess) -> None:
    with (
        EmulatorProcess("--speech", "tone", "--max-audio-bytes", str(len(WAV))) as small,
        client(small) as openai,
    ):
        assert ask(openai, messages=heard(recording(WAV)))
        with pytest.raises(BadRequestError) as raised:
            ask(openai, messages=heard(recording(WAV + b"\0\0")))
    assert raised.value.code == "file_too_large"


def test_twenty_megabytes_pass_and_more_do_not(server: EmulatorProcess) -> None:
    megabytes = 20 * 1024 * 1024
    long_wav = WAV[:44] + bytes(megabytes)
    messages = heard(recording(long_wav[:megabytes]))
    with client(server) as openai:
        assert ask(openai, messages=messages, modalities=["text"], audio=None).choices[0].message.content
        with pytest.raises(BadRequestError) as raised:
            ask(openai, messages=heard(recording(long_wav)))
    assert raised.value.code == "file_too_large"


def test_audio_ids_live_as_long_as_was_set() -> None:
    import time

    with EmulatorProcess("--speech", "tone", "--audio-id-life", "1.0") as short, client(short) as openai:
        spoken = ask(openai).choices[0].message.audio
        follow_up: list[Any] = [
            *PROMPT,
            {"role": "assistant", "audio": {"id": spoken.id}},
            {"role": "user", "content": "Why?"},
        ]
        assert openai.chat.completions.create(model=MODEL, messages=follow_up)
        time.sleep(1.1)
        with pytest.raises(BadRequestError) as raised:
            openai.chat.completions.create(model=MODEL, messages=follow_up)
    assert raised.value.status_code == 400
    assert raised.value.code == "audio_not_found"
    assert raised.value.param == "content.messages[1].audio.id"


def test_the_prompt_s_filter_refuses_and_is_billed(server: EmulatorProcess) -> None:
    messages = user("Please emulator_block_prompt now")
    with client(server) as openai, pytest.raises(BadRequestError) as raised:
        ask(openai, messages=messages)
    error = raised.value
    assert error.code == "content_filter"
    assert isinstance(error.body, dict)
    inner = error.body["innererror"]
    assert inner["code"] == "ResponsibleAIPolicyViolation"
    assert inner["content_filter_result"]["violence"] == {"filtered": True, "severity": "high"}
    record = server.journal()[-1]
    assert record["billed"]
    assert record["input_text_tokens"] > 0
    assert record["output_audio_tokens"] == 0


def test_the_reply_s_filter_empties_it(server: EmulatorProcess) -> None:
    for surface in ("azure", "openai"):
        with client(server, surface) as openai:
            reply = ask(openai, messages=user("Please emulator_block_reply now"))
        choice = reply.choices[0]
        assert (choice.finish_reason, choice.message.content, choice.message.audio) == (
            "content_filter",
            "",
            None,
        )
        results = (choice.model_extra or {}).get("content_filter_results")
        assert bool(results) == (surface == "azure")


def test_a_refusal_has_its_own_field(server: EmulatorProcess) -> None:
    with client(server) as openai:
        message = ask(openai, messages=user("Please emulator_refuse now")).choices[0].message
    assert message.refusal
    assert message.content is None
    assert message.audio is None


def test_azure_filter_results_are_a_switch(server: EmulatorProcess) -> None:
    with client(server) as openai:
        assert "prompt_filter_results" not in (ask(openai).model_extra or {})
    for mode in ("on", "down"):
        with (
            EmulatorProcess("--speech", "tone", "--azure-filter-results", mode) as other,
            client(other) as openai,
        ):
            reply = ask(openai)
        results = reply.choices[0].model_extra["content_filter_results"]
        assert ("error" in results) == (mode == "down")
        assert reply.model_extra["prompt_filter_results"][0]["prompt_index"] == 0


def test_preview_voices_are_a_switch() -> None:
    with EmulatorProcess("--speech", "tone", "--preview-voices-only") as strict, client(strict) as openai:
        with pytest.raises(BadRequestError) as raised:
            ask(openai, model="gpt-4o-audio-preview", audio={"voice": "ash", "format": "wav"})
        assert ask(openai, model="gpt-4o-audio-preview")
        assert ask(openai, audio={"voice": "ash", "format": "wav"})
    assert "'alloy', 'echo', and 'shimmer'" in raised.value.message
