"""A loopback service that keeps what it is sent and answers what a test says: what the emulator does not show."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


@dataclass
class BareServer:
    """Requests in the order they came.

    Attributes:
        reply: the body to answer with, from the path, the body, and how many came before.
    """

    url: str = ""
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    reply: Callable[[str, bytes, int], object] = lambda *_: completion("Yes.")


def completion(text: str, *, sound_s: float = 0.0, finish_reason: str = "stop") -> dict[str, Any]:
    """A chat completion; with sound if it has a length."""
    message: dict[str, Any] = {"role": "assistant", "content": None if sound_s else text, "refusal": None}
    if sound_s:
        data = base64.b64encode(voice(sound_s)).decode()
        message["audio"] = {"id": "audio_1", "data": data, "transcript": text, "expires_at": 9e9}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-audio-1.5",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 40,
            "total_tokens": 60,
            "prompt_tokens_details": {"audio_tokens": 10},
            "completion_tokens_details": {"audio_tokens": round(20 * sound_s)},
        },
    }


def voice(seconds: float, rate_hz: int = 24_000) -> bytes:
    """A WAV with a tone that swells and ends softly."""
    at = np.arange(round(seconds * rate_hz)) / rate_hz
    sound = 0.3 * np.sin(2 * np.pi * 180 * at) * np.minimum(1, np.minimum(at, seconds - at) / 0.05)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return out.getvalue()


@contextmanager
def bare_server(reply: Callable[[str, bytes, int], object] | None = None) -> Iterator[BareServer]:
    """Runs one; the key for it is set."""
    server = BareServer()
    if reply is not None:
        server.reply = reply
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with lock:
                before = len(server.bodies)
                server.paths.append(self.path)
                server.bodies.append(body)
            answer = server.reply(self.path, body, before)
            status, content = answer if isinstance(answer, tuple) else (200, answer)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    os.environ["OPENAI_API_KEY"] = "bare-key"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
