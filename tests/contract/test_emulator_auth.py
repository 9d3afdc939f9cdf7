"""Keys, tokens and the identity endpoints, with the official clients."""

import base64
import json
import time
from typing import Any

import pytest
from azure.identity import (
    CredentialUnavailableError,
    DefaultAzureCredential,
    ManagedIdentityCredential,
    get_bearer_token_provider,
)
from azure.identity.aio import DefaultAzureCredential as AsyncDefaultAzureCredential
from azure.identity.aio import get_bearer_token_provider as async_token_provider
from openai import AsyncAzureOpenAI, AuthenticationError, AzureOpenAI, OpenAI

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import (
    API_VERSION,
    MODEL,
    PROMPT,
    SPOKEN,
    SURFACES,
    ask,
    client,
    raw_post,
)

SCOPE = "https://cognitiveservices.azure.com/.default"
DATED = f"/openai/deployments/{MODEL}/chat/completions?api-version={API_VERSION}"
BODY = {"model": MODEL, "messages": PROMPT, **SPOKEN}


@pytest.fixture
def keyless(server: EmulatorProcess, monkeypatch: pytest.MonkeyPatch) -> EmulatorProcess:
    """The environment of a machine with a managed identity."""
    for name in (
        "AZURE_CLIENT_ID",
        "AZURE_TENANT_ID",
        "AZURE_OPENAI_API_KEY",
        "OPENAI_API_KEY",
        "HTTP_PROXY",
        "HTTPS_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.identity_env.items():
        monkeypatch.setenv(name, value)
    return server


def token(**claims: Any) -> str:
    """A token that nobody signed."""
    now = time.time()
    parts: list[dict[str, Any]] = [
        {"alg": "none", "typ": "JWT"},
        {"aud": "https://cognitiveservices.azure.com", "nbf": now - 60, "exp": now + 600, **claims},
    ]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2ln"])


def test_a_keyless_client_gets_its_token_from_the_identity_endpoint(keyless: EmulatorProcess) -> None:
    with DefaultAzureCredential() as credential:
        provider = get_bearer_token_provider(credential, SCOPE)
        with AzureOpenAI(
            azure_endpoint=keyless.base_url, api_version=API_VERSION, azure_ad_token_provider=provider
        ) as azure:
            assert ask(azure).choices[0].message.audio.data
        with OpenAI(base_url=f"{keyless.base_url}/openai/v1/", api_key=provider) as v1:
            assert ask(v1).choices[0].message.audio.data


async def test_an_async_keyless_client_does_too(keyless: EmulatorProcess) -> None:
    async with AsyncDefaultAzureCredential() as credential:
        provider = async_token_provider(credential, SCOPE)
        async with AsyncAzureOpenAI(
            azure_endpoint=keyless.base_url, api_version=API_VERSION, azure_ad_token_provider=provider
        ) as azure:
            reply = await azure.chat.completions.create(model=MODEL, messages=PROMPT, **SPOKEN)
    assert reply.choices[0].message.audio is not None


def test_a_virtual_machine_s_identity_works_as_well(
    server: EmulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IDENTITY_ENDPOINT", raising=False)
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", server.base_url)
    with ManagedIdentityCredential() as credential:
        shown = credential.get_token(SCOPE).token
    assert raw_post(server, DATED, headers={"Authorization": f"Bearer {shown}"}, json=BODY).status_code == 200


def test_a_wrong_identity_header_gets_no_token(
    keyless: EmulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDENTITY_HEADER", "wrong")
    with ManagedIdentityCredential() as credential, pytest.raises(CredentialUnavailableError):
        credential.get_token(SCOPE)


@pytest.mark.parametrize("surface", SURFACES)
def test_a_wrong_key_is_refused_in_the_surface_s_words(server: EmulatorProcess, surface: str) -> None:
    with (
        client(server, surface, key="wrong-key-wrong-key") as openai,
        pytest.raises(AuthenticationError) as raised,
    ):
        ask(openai)
    error = raised.value
    assert error.status_code == 401
    if surface == "openai":
        assert error.code == "invalid_api_key"
        assert "Incorrect API key provided" in error.message
        assert "wrong-key-wrong-key" not in error.message
    else:
        assert error.body == {
            "code": "401",
            "message": "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide "
            "a valid key for an active subscription and use a correct regional API endpoint for your resource.",
        }
        assert error.response.headers["apim-request-id"] == error.request_id


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({}, True),
        ({"aud": "https://cognitiveservices.azure.com/"}, True),
        ({"aud": "7d312290-28c8-473c-a0ed-8e53749b6d6d"}, True),
        ({"aud": "https://management.azure.com"}, False),
        ({"exp": 1}, False),
        ({"nbf": 4e9}, False),
        ({"exp": None}, False),
        ({"aud": None}, False),
    ],
)
@pytest.mark.parametrize("path", [DATED, "/openai/v1/chat/completions"])
def test_a_token_must_be_for_this_service_and_for_now(
    server: EmulatorProcess, claims: dict[str, Any], good: bool, path: str
) -> None:
    reply = raw_post(server, path, headers={"Authorization": f"Bearer {token(**claims)}"}, json=BODY)
    if good:
        assert reply.status_code == 200
    else:
        assert reply.status_code == 401
        # The one body of Azure's that has no `error`.
        assert set(reply.json()) == {"statusCode", "message"}
        assert reply.json()["message"].startswith("Unauthorized. Access token is missing, invalid")


def test_a_token_without_the_role_is_a_401(server: EmulatorProcess) -> None:
    reply = raw_post(server, DATED, headers={"Authorization": f"Bearer {token(roles=[])}"}, json=BODY)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "PermissionDenied"


@pytest.mark.parametrize("path", [DATED, "/openai/v1/chat/completions"])
@pytest.mark.parametrize(
    ("key", "bearer", "status"),
    [
        ("good", "bad", 200),
        ("bad", "good", 401),
        ("bad", "token", 401),
        ("good", None, 200),
        (None, None, 401),
    ],
)
def test_the_api_key_header_wins_over_a_bearer(
    server: EmulatorProcess, path: str, key: str | None, bearer: str | None, status: int
) -> None:
    headers = {}
    if key:
        headers["api-key"] = server.api_key if key == "good" else "bad"
    if bearer:
        shown = {"good": server.api_key, "token": token()}.get(bearer, "bad")
        headers["Authorization"] = f"Bearer {shown}"
    assert raw_post(server, path, headers=headers, json=BODY).status_code == status


def test_a_key_as_bearer_is_taken_on_v1_only(server: EmulatorProcess) -> None:
    headers = {"Authorization": f"Bearer {server.api_key}"}
    assert raw_post(server, "/openai/v1/chat/completions", headers=headers, json=BODY).status_code == 200
    dated = raw_post(server, DATED, headers=headers, json=BODY)
    assert dated.status_code == 401
    assert "statusCode" in dated.json()


def test_openai_s_own_surface_takes_no_api_key_header(server: EmulatorProcess) -> None:
    reply = raw_post(server, headers={"api-key": server.api_key}, json=BODY)
    assert reply.status_code == 401
    assert "didn't provide an API key" in reply.json()["error"]["message"]


def test_tokens_live_as_long_as_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmulatorProcess("--speech", "tone", "--token-life", "1.5") as server:
        for name, value in server.identity_env.items():
            monkeypatch.setenv(name, value)
        with ManagedIdentityCredential() as credential:
            shown = credential.get_token(SCOPE).token
        headers = {"Authorization": f"Bearer {shown}"}
        assert raw_post(server, DATED, headers=headers, json=BODY).status_code == 200
        time.sleep(1.6)
        assert raw_post(server, DATED, headers=headers, json=BODY).status_code == 401


def test_tokens_can_be_made_to_expire_in_mid_run(keyless: EmulatorProcess) -> None:
    keyless.put_faults({"when": {"nth": 2}, "do": {"expire_tokens": True}})
    with ManagedIdentityCredential() as credential:
        old = {"Authorization": f"Bearer {credential.get_token(SCOPE).token}"}
    statuses = [raw_post(keyless, DATED, headers=old, json=BODY).status_code for _ in range(3)]
    with ManagedIdentityCredential() as credential:
        fresh = {"Authorization": f"Bearer {credential.get_token(SCOPE).token}"}
    statuses.append(raw_post(keyless, DATED, headers=fresh, json=BODY).status_code)
    assert statuses == [200, 401, 401, 200]
    assert keyless.journal()[1]["fault"] == "expire_tokens"
