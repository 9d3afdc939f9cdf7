"""What one would write by hand against a quota. `python -m tests.benchmarks.quota_by_hand WAY CONCURRENCY TOLD`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Any

from openai import APIConnectionError, AsyncAzureOpenAI, InternalServerError, RateLimitError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential


async def main(way: str, concurrency: int, told: dict[str, Any]) -> None:
    client = AsyncAzureOpenAI(
        azure_endpoint=told["origin"],
        azure_deployment="gpt-audio-1.5",
        api_version="2025-01-01-preview",
        api_key=told["key"],
        max_retries=0,
    )

    @retry(
        retry=retry_if_exception_type((RateLimitError, APIConnectionError, InternalServerError)),
        wait=wait_random_exponential(max=30),
        stop=stop_after_attempt(6),
    )
    async def call(number: int) -> None:
        await client.chat.completions.create(
            model="gpt-audio-1.5",
            modalities=["text", "audio"],
            audio={"voice": "alloy", "format": "wav"},
            messages=[{"role": "user", "content": f"Say the number {number:06d} aloud."}],
        )

    items = iter(range(1_000_000))

    async def worker() -> None:
        for number in items:
            # An item that fails for good is one that this script would have to run again.
            with contextlib.suppress(Exception):
                await call(number)

    async def sleeper() -> None:
        for number in items:
            await call(number)
            await asyncio.sleep(60 / told["rpm"])

    work = [worker() for _ in range(concurrency)] if way == "semaphore" else [sleeper()]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*work), told["seconds"])
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))
