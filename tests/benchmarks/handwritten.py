"""What one would write by hand: the SDK, a semaphore, tenacity, gather, pandas. No ledger, no checks, no fsync."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
from openai import APIConnectionError, AsyncAzureOpenAI, InternalServerError, RateLimitError
from openai.types.chat import ChatCompletion
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from tests.benchmarks.contender import lateness_ms, report
from tests.narrowing import present


async def main(origin: str, prompts: Path, output: Path, concurrency: int) -> None:
    client = AsyncAzureOpenAI(
        azure_endpoint=origin,
        azure_deployment="gpt-audio-1.5",
        api_version="2025-01-01-preview",
        api_key="key",
        max_retries=0,
    )
    semaphore = asyncio.Semaphore(concurrency)
    (output / "audio").mkdir(parents=True)
    (output / "transcripts").mkdir()

    @retry(
        retry=retry_if_exception_type((RateLimitError, APIConnectionError, InternalServerError)),
        wait=wait_random_exponential(max=30),
        stop=stop_after_attempt(6),
    )
    async def call(content: Any) -> ChatCompletion:
        return await client.chat.completions.create(
            model="gpt-audio-1.5",
            modalities=["text", "audio"],
            audio={"voice": "alloy", "format": "wav"},
            messages=[{"role": "user", "content": content}],
        )

    async def one(path: Path) -> dict[str, object]:
        async with semaphore:
            reply = await call(said(path))
        audio = present(reply.choices[0].message.audio)
        (output / "audio" / f"{path.name}.wav").write_bytes(base64.b64decode(audio.data))
        (output / "transcripts" / path.name).write_text(audio.transcript)
        return {
            "item_id": path.name,
            "status": "succeeded",
            "transcript": audio.transcript,
            "tokens": present(reply.usage).total_tokens,
        }

    started_s = time.perf_counter()
    async with lateness_ms() as late_ms:
        rows = await asyncio.gather(*(one(path) for path in sorted(prompts.iterdir())))
    loop_s = time.perf_counter() - started_s
    pd.DataFrame(rows).to_csv(output / "manifest.csv", index=False)
    await client.close()
    report(loop_s=loop_s, items=len(rows), late_ms=late_ms)


def said(path: Path) -> str | list[dict[str, object]]:
    """A prompt, or a recording as the service takes it."""
    if path.suffix == ".txt":
        return path.read_text()
    data = base64.b64encode(path.read_bytes()).decode()
    return [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
