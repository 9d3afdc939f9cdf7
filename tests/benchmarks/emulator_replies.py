"""How many replies of ten seconds (640 kB) the emulator makes a second, and at what cost in CPU.

    python -m tests.benchmarks.emulator_replies [REPLIES] [CONNECTIONS]

A benchmark, not a timed test: the client shares the machine with the server, so the server's own CPU time is
the figure to go by.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

import orjson

from audiobatch_emulator.process import EmulatorProcess


async def ask(port: int, key: str, prompts: list[str]) -> int:
    """One connection's requests, one after the other; gives the bytes of all bodies."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    total = 0
    for prompt in prompts:
        body = orjson.dumps(
            {
                "model": "gpt-audio-1.5",
                "modalities": ["text", "audio"],
                "audio": {"voice": "alloy", "format": "wav"},
                "messages": [{"role": "user", "content": prompt}],
            }
        )
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b" 200 " in answer[:16], answer
        left = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
        total += left
        while left:
            left -= len(await reader.read(min(left, 1 << 20)))
    writer.close()
    await writer.wait_closed()
    return total


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far (Linux)."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


async def measure(server: EmulatorProcess, replies: int, connections: int, *, same: bool) -> None:
    """Prints one line."""
    port = int(server.base_url.rpartition(":")[2])
    await ask(port, server.api_key, ["Prompt"])
    started, cpu_before = time.perf_counter(), cpu_s(server.pid)
    shares = [range(first, replies, connections) for first in range(connections)]
    sizes = await asyncio.gather(
        *(ask(port, server.api_key, ["Prompt" if same else f"Prompt {n}" for n in share]) for share in shares)
    )
    elapsed_s, used_s = time.perf_counter() - started, cpu_s(server.pid) - cpu_before
    print(
        f"{'same' if same else 'distinct'} prompts: {replies / elapsed_s:.0f} replies/s, server CPU "
        f"{1000 * used_s / replies:.2f} ms each ({replies / used_s:.0f}/s on one core), "
        f"{sum(sizes) / replies / 1000:.0f} kB each"
    )


def main() -> None:
    """Cached replies of ten seconds, then replies as long as their texts, each made anew."""
    replies, connections = (int(value) for value in (*sys.argv[1:], "2000", "16")[:2])
    for flags, same in ((("--reply-seconds", "10"), True), ((), False)):
        with EmulatorProcess("--speech", "tone", *flags) as server:
            asyncio.run(measure(server, replies, connections, same=same))


if __name__ == "__main__":
    main()
