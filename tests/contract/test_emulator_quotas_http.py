"""Quotas as clients meet them: status, bodies and headers of both styles."""

import time

import openai as sdk
import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import MODEL, SURFACES, ask, client


@pytest.mark.parametrize("surface", SURFACES)
def test_too_many_requests_are_refused(server: EmulatorProcess, surface: str) -> None:
    server.put_quotas(**{MODEL: {"rpm": 60}})
    with client(server, surface) as openai:
        ask(openai)
        with pytest.raises(sdk.RateLimitError) as caught:
            ask(openai)
        error = caught.value
        headers = error.response.headers
        wait_s = int(headers["retry-after-ms"]) / 1000
        assert 0 < wait_s <= 1
        assert int(headers["retry-after"]) == 1
        assert headers["x-ratelimit-limit-requests"] == "60"
        if surface == "openai":
            assert (error.type, error.code) == ("requests", "rate_limit_exceeded")
            assert headers["x-ratelimit-reset-requests"].endswith("s")
        else:
            assert isinstance(error.body, dict)
            assert set(error.body) == {"code", "message"}
            assert error.body["code"] == "429"
            assert "call rate limit" in error.body["message"]
            assert "Please retry after 1 seconds" in error.body["message"]
            assert "x-ratelimit-reset-requests" not in headers
        time.sleep(wait_s)
        assert ask(openai)
    refused = [record for record in server.journal() if record["status"] == 429]
    assert refused
    assert not any(record["billed"] for record in refused)


@pytest.mark.parametrize("surface", SURFACES)
def test_tokens_are_an_estimate_with_the_maximum_in_it(server: EmulatorProcess, surface: str) -> None:
    server.put_quotas(**{MODEL: {"tpm": 5000}})
    with client(server, surface) as openai:
        raw = openai.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            modalities=["text", "audio"],
            audio={"voice": "alloy", "format": "wav"},
            max_completion_tokens=4096,
        )
        assert raw.headers["x-ratelimit-limit-tokens"] == "5000"
        assert 890 < int(raw.headers["x-ratelimit-remaining-tokens"]) < 904
        with pytest.raises(sdk.RateLimitError) as caught:
            ask(openai, max_completion_tokens=4096)
    headers = caught.value.response.headers
    assert 50 <= int(headers["retry-after"]) <= 60
    if surface == "openai":
        assert caught.value.type == "tokens"
        assert headers["x-ratelimit-reset-tokens"].endswith("s")
    else:
        assert "token rate limit" in caught.value.message
        assert 50 <= int(headers["x-ratelimit-reset-tokens"]) <= 60  # a bare integer


def test_quotas_are_per_deployment_and_can_be_lifted(server: EmulatorProcess) -> None:
    server.put_quotas(**{MODEL: {"rpm": 1}})
    with client(server) as openai:
        assert ask(openai)
        with pytest.raises(sdk.RateLimitError):
            ask(openai)
        assert ask(openai, model="my-audio")
        server.put_quotas(**{MODEL: {"rpm": None, "tpm": None}})
        assert ask(openai)


def test_without_a_quota_there_are_no_headers_of_one(server: EmulatorProcess) -> None:
    with client(server) as openai:
        raw = openai.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            modalities=["text", "audio"],
            audio={"voice": "alloy", "format": "wav"},
        )
    assert not [name for name in raw.headers if name.startswith("x-ratelimit")]


def test_quotas_are_set_by_flag_and_come_back_at_a_reset() -> None:
    flags = ("--speech", "tone", "--deployment", "small=gpt-audio-mini", "--quota", "small=rpm:1,tpm:100000")
    with EmulatorProcess(*flags) as server, client(server) as openai:
        assert ask(openai, model="small").model == "gpt-audio-mini"
        with pytest.raises(sdk.RateLimitError):
            ask(openai, model="small")
        server.reset()
        assert ask(openai, model="small")
