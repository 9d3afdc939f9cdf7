"""An engine that fails is one failed request."""

from collections.abc import AsyncIterator
from typing import Any

import openai as sdk
import pytest
from aiohttp.test_utils import TestServer

from audiobatch_emulator.app import build_app
from audiobatch_emulator.config import EmulatorConfig
from audiobatch_emulator.hearing import Hearing
from audiobatch_emulator.recognition import EngineCrashed, MeasuringRecognizer
from audiobatch_emulator.service import Service
from audiobatch_emulator.tones import ToneSpeech
from tests.contract.emulator_clients import MODEL, PROMPT, SPOKEN, heard, recording, tone_wav


class BrittleSpeech(ToneSpeech):
    """Dies of one word."""

    async def say(self, text: str, voice: str) -> bytes:
        if "kryptonite" in text:
            raise EngineCrashed("the speech engine died")
        if "surprise" in text:
            raise ZeroDivisionError
        return await super().say(text, voice)


class BrittleRecognizer(MeasuringRecognizer):
    """Dies of long recordings."""

    async def hear(self, audio: bytes) -> Hearing:
        if len(audio) > 50_000:
            raise EngineCrashed("the recognizer died")
        return await super().hear(audio)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service(EmulatorConfig(speech="tone"), speech=BrittleSpeech(), recognizer=BrittleRecognizer())
    yield made
    await made.aclose()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[sdk.AsyncOpenAI]:
    async with (
        TestServer(build_app(service)) as server,
        sdk.AsyncOpenAI(
            base_url=str(server.make_url("/v1")), api_key=service.config.api_key, max_retries=0
        ) as made,
    ):
        yield made


@pytest.mark.parametrize("word", ["kryptonite", "surprise"])
async def test_a_voice_that_dies_fails_one_request(
    service: Service, client: sdk.AsyncOpenAI, word: str
) -> None:
    deadly: list[Any] = [{"role": "user", "content": f"Say {word}"}]
    with pytest.raises(sdk.InternalServerError) as caught:
        await client.chat.completions.create(model=MODEL, messages=deadly, **SPOKEN)
    assert "The server had an error while processing your request" in caught.value.message
    assert (await client.chat.completions.create(model=MODEL, messages=PROMPT, **SPOKEN)).choices
    failed, good = service.journal.records()
    assert (failed["status"], failed["billed"], failed["delivered"]) == (500, False, True)
    assert (good["status"], good["billed"], good["delivered"]) == (200, True, True)


async def test_a_recognizer_that_dies_fails_one_request(service: Service, client: sdk.AsyncOpenAI) -> None:
    for duration_s, status in ((5.0, 500), (0.5, 200)):
        messages: list[Any] = heard(recording(tone_wav(duration_s)))
        if status == 500:
            with pytest.raises(sdk.InternalServerError):
                await client.chat.completions.create(model=MODEL, messages=messages)
        else:
            await client.chat.completions.create(model=MODEL, messages=messages)
        assert service.journal.records()[-1]["status"] == status
