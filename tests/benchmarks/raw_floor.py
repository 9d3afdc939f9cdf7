"""The least that any client can do: aiohttp, orjson, base64, a plain write. No retries, no record of anything."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from pathlib import Path

import aiohttp
import orjson

from tests.benchmarks.contender import report


async def main(origin: str, prompts: Path, output: Path, concurrency: int) -> None:
    output.mkdir(parents=True)
    semaphore = asyncio.Semaphore(concurrency)
    address = f"{origin}/openai/deployments/gpt-audio-1.5/chat/completions?api-version=2025-01-01-preview"
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, headers={"api-key": "key"}) as session:

        async def one(path: Path) -> None:
            body = {
                "model": "gpt-audio-1.5",
                "modalities": ["text", "audio"],
                "audio": {"voice": "alloy", "format": "wav"},
                "messages": [{"role": "user", "content": path.read_text()}],
            }
            async with semaphore, session.post(address, data=orjson.dumps(body)) as reply:
                raw = await reply.read()
            audio = orjson.loads(raw)["choices"][0]["message"]["audio"]
            (output / f"{path.name}.wav").write_bytes(base64.b64decode(audio["data"]))

        paths = sorted(prompts.glob("*.txt"))
        started_s = time.perf_counter()
        await asyncio.gather(*(one(path) for path in paths))
        report(loop_s=time.perf_counter() - started_s, items=len(paths))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
