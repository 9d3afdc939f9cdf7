"""What one would write by hand with Prefect: a task an item, gathered under a semaphore; the SDK, plain writes."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from pathlib import Path

from openai import AsyncAzureOpenAI
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from tests.benchmarks.contender import report
from tests.narrowing import present


@task(cache_policy=NO_CACHE, persist_result=False)
async def speak(number: int) -> None:
    path = PATHS[number]
    reply = await CLIENT.chat.completions.create(
        model="gpt-audio-1.5",
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "wav"},
        messages=[{"role": "user", "content": path.read_text()}],
    )
    audio = reply.choices[0].message.audio
    (OUTPUT / f"{path.name}.wav").write_bytes(base64.b64decode(present(audio).data))


@flow
async def all_items(concurrency: int) -> float:
    semaphore = asyncio.Semaphore(concurrency)

    async def one(number: int) -> None:
        async with semaphore:
            await speak(number)

    started_s = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(len(PATHS))))
    return time.perf_counter() - started_s


if __name__ == "__main__":
    CLIENT = AsyncAzureOpenAI(
        azure_endpoint=sys.argv[1],
        azure_deployment="gpt-audio-1.5",
        api_version="2025-01-01-preview",
        api_key="key",
        max_retries=5,  # without any, one connection that takes too long ends the flow
    )
    PATHS = sorted(Path(sys.argv[2]).glob("*.txt"))
    OUTPUT = Path(sys.argv[3])
    OUTPUT.mkdir(parents=True)
    report(loop_s=asyncio.run(all_items(int(sys.argv[4]))), items=len(PATHS))
