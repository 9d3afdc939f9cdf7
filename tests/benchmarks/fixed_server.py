"""A loopback server that costs next to nothing: prebuilt replies after a fixed latency, on bare asyncio.

What is measured beside it is then the client. `python -m tests.benchmarks.fixed_server REPLY_AUDIO_BYTES LATENCY_S`
prints its origin and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import sys
import time

import numpy as np

RATE_HZ = 24_000


def reply_body(audio_bytes: int) -> bytes:
    """A chat completion whose WAV has this many bytes of sound, with the service's open-ended sizes."""
    frames = audio_bytes // 2
    samples = (np.sin(np.arange(frames) * 0.05) * 9000).astype("<i2").tobytes()
    header = b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE_HZ, RATE_HZ * 2, 2, 16)
    wav = header + b"data\xff\xff\xff\xff" + samples
    seconds = frames / RATE_HZ
    audio_tokens = round(seconds * 20)
    words = "this is what was said " * max(1, round(seconds * 15 / 22))
    return json.dumps(
        {
            "id": "chatcmpl-fixed",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": "gpt-audio-1.5",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "logprobs": None,
                    "message": {
                        "role": "assistant",
                        "content": None,
                        "refusal": None,
                        "annotations": [],
                        "audio": {
                            "id": "audio_fixed",
                            "data": base64.b64encode(wav).decode(),
                            "expires_at": int(time.time()) + 3600,
                            "transcript": words.strip(),
                        },
                    },
                }
            ],
            "usage": {
                "prompt_tokens": 20,
                "completion_tokens": audio_tokens + 40,
                "total_tokens": audio_tokens + 60,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0, "text_tokens": 20},
                "completion_tokens_details": {"audio_tokens": audio_tokens, "text_tokens": 40},
            },
        }
    ).encode()


async def serve(audio_bytes: int, latency_s: float) -> None:
    body = reply_body(audio_bytes)
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "x-request-id: fixed\r\n\r\n"
    ).encode()
    answer = head + body

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in request.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    ),
                    0,
                )
                await reader.readexactly(length)
                await asyncio.sleep(latency_s)
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, limit=2**26)
    port = server.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}", flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
