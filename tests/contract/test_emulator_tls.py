"""The TLS port does all that the plain one does."""

import ssl
from collections.abc import Iterator

import httpx2
import openai as sdk
import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import API_VERSION, ask


@pytest.fixture
def secure(server: EmulatorProcess) -> Iterator[sdk.AzureOpenAI]:
    context = ssl.create_default_context(cafile=server.certificate)
    with (
        httpx2.Client(verify=context, trust_env=False, timeout=120) as http,
        sdk.AzureOpenAI(
            azure_endpoint=server.https_base_url,
            api_version=API_VERSION,
            api_key=server.api_key,
            http_client=http,
            max_retries=0,
        ) as client,
    ):
        yield client


def test_many_replies_and_streams_come_over_one_connection(
    server: EmulatorProcess, secure: sdk.AzureOpenAI
) -> None:
    pcm16 = {"voice": "alloy", "format": "pcm16"}
    for _ in range(5):
        whole = ask(secure, audio=pcm16).choices[0].message.audio.data
        chunks = [chunk for chunk in ask(secure, audio=pcm16, stream=True) if chunk.choices]
        deltas = [chunk.choices[0].delta.audio for chunk in chunks]
        assert "".join(delta.data or "" for delta in deltas if delta) == whole
    records = server.settled_journal(10)
    assert all(record["delivered"] for record in records)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [{"reset": "in"}, {"reset": "before"}, {"corrupt": "close"}])
def test_connections_break_there_too(
    server: EmulatorProcess, secure: sdk.AzureOpenAI, fault: dict[str, str], stream: bool
) -> None:
    server.put_faults({"do": fault})
    with pytest.raises((sdk.APIConnectionError, httpx2.HTTPError)):
        list(ask(secure, stream=stream, audio={"voice": "alloy", "format": "pcm16"}))
    assert not server.settled_journal(1)[0]["delivered"]


def test_a_stalled_body_ends_all_the_same(server: EmulatorProcess, secure: sdk.AzureOpenAI) -> None:
    server.put_faults({"do": {"stall_s": 0.6}})
    assert ask(secure).choices[0].message.audio.data
    assert server.settled_journal(1)[0]["delivered"]
