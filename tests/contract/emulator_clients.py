"""Official clients for the emulator, and the requests that the tests make with them."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from openai import AzureOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from audiobatch_emulator.process import EmulatorProcess
from tests.bare_server import voice

API_VERSION = "2025-01-01-preview"
MODEL = "gpt-audio-1.5"
SPOKEN: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
PROMPT: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "Is a golden retriever a good family dog?"}
]
SURFACES = ("azure", "azure_v1", "openai")


def origin(surface: str, base: str) -> str:
    """The base URL of a surface for a client of OpenAI's."""
    return base + ("/openai/v1/" if surface == "azure_v1" else "/v1/")


@contextmanager
def client(
    server: EmulatorProcess, surface: str = "azure", *, key: str | None = None, **settings: Any
) -> Iterator[OpenAI]:
    """The official client as it is used for this surface. It does not retry unless told to."""
    settings.setdefault("max_retries", 0)
    api_key = server.api_key if key is None else key
    made: OpenAI
    if surface == "azure":
        made = AzureOpenAI(
            azure_endpoint=server.base_url, api_version=API_VERSION, api_key=api_key, **settings
        )
    else:
        made = OpenAI(base_url=origin(surface, server.base_url), api_key=api_key, **settings)
    with made:
        yield made


def ask(connected: OpenAI, **changes: Any) -> Any:
    """A text prompt answered by voice, unless changed."""
    request: dict[str, Any] = {"model": MODEL, "messages": PROMPT, **SPOKEN, **changes}
    return connected.chat.completions.create(**{k: v for k, v in request.items() if v is not None})


def recording(data: str | bytes, audio_format: str = "wav") -> dict[str, Any]:
    """An `input_audio` part."""
    packed = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return {"type": "input_audio", "input_audio": {"data": packed, "format": audio_format}}


def heard(*parts: dict[str, Any], prompt: str = "Describe the recording.") -> list[dict[str, Any]]:
    """Messages with a text and recordings."""
    return [{"role": "user", "content": [{"type": "text", "text": prompt}, *parts]}]


def tone_wav(duration_s: float = 1.0, rate_hz: int = 16_000) -> bytes:
    """A WAV file with a tone."""
    return voice(duration_s, rate_hz)


def raw_post(
    server: EmulatorProcess,
    path: str = "/v1/chat/completions",
    *,
    headers: dict[str, str] | None = None,
    **content: Any,
) -> httpx2.Response:
    """A bare request, with the key as a bearer unless other headers are given."""
    given = {"Authorization": f"Bearer {server.api_key}"} if headers is None else headers
    with httpx2.Client(trust_env=False, timeout=60) as plain:
        return plain.post(server.base_url + path, headers=given, **content)
