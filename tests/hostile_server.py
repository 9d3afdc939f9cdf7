"""Loopback services that answer in bytes of the test's own: what no orderly server would send."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from tests.bare_server import completion, voice


@dataclass(frozen=True)
class Call:
    """A request as it came."""

    method: str
    path: str
    body: bytes

    @property
    def is_streamed(self) -> bool:
        return b'"stream":true' in self.body

    @property
    def is_transcription(self) -> bool:
        return self.path.endswith("/audio/transcriptions")


@dataclass
class HostileServer:
    """What came.

    Attributes:
        connections: also those in which nothing was asked.
        asks: of a Realtime server: the replies that were asked for.
        ended: set when the test is over.
    """

    url: str = ""
    connections: int = 0
    calls: list[Call] = field(default_factory=list)
    asks: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def posts(self) -> int:
        return sum(call.method == "POST" for call in self.calls)


def head(*fields: bytes, status: int = 200, reason: bytes = b"OK") -> bytes:
    """A reply's head without its length."""
    lines = [b"HTTP/1.1 %d %s" % (status, reason), b"Content-Type: application/json", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def whole(body: bytes, *fields: bytes, status: int = 200, reason: bytes = b"OK") -> bytes:
    """Return a reply with its length and its body."""
    return head(b"Content-Length: %d" % len(body), *fields, status=status, reason=reason) + body


def chunk(piece: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def as_events(*events: object) -> bytes:
    """Server-sent events as a streamed chat completion has them."""
    return (
        b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    )


def good_body(call: Call, words: str = "Hello there.", sound_s: float = 0.5) -> bytes:
    """The body that the call asks for."""
    if call.is_transcription:
        return json.dumps({"text": words, "duration": 1.0, "segments": []}).encode()
    if not call.is_streamed:
        return json.dumps(completion(words, sound_s=sound_s)).encode()
    pcm = base64.b64encode(voice(sound_s)[44:]).decode()
    audio = {"id": "audio_1", "expires_at": 9e9, "transcript": words, "data": pcm}
    return as_events(
        {"model": "gpt-audio-1.5", "choices": [{"index": 0, "delta": {"audio": audio}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": completion(words, sound_s=sound_s)["usage"]},
    )


def good(call: Call) -> Iterable[bytes]:
    """Return the reply that a well-behaved service gives."""
    return [whole(good_body(call))]


@contextmanager
def hostile_server(answer: Callable[[Call], Iterable[bytes]]) -> Iterator[HostileServer]:
    """Runs one; what it answers with goes on the wire as it is, for as long as the client takes it."""
    server, lock = HostileServer(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(OSError):
                super().handle()

        def do_POST(self) -> None:
            call = Call(self.command, self.path, self.rfile.read(int(self.headers["content-length"] or 0)))
            with lock:
                server.calls.append(call)
            try:
                for piece in answer(call):
                    if server.ended.is_set():
                        break
                    self.wfile.write(piece)
            except OSError:
                self.close_connection = True

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *arguments: object) -> None:
            pass

    class Counting(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def get_request(self) -> Any:
            with lock:
                server.connections += 1
            return super().get_request()

    http = Counting(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        http.shutdown()
        http.server_close()
        thread.join()


@contextmanager
def hostile_sessions(answer: Callable[[str], Iterable[str]]) -> Iterator[HostileServer]:
    """Realtime sessions that are in order until a reply is asked for.

    Args:
        answer: the frames of that reply, from the words that the user said.
    """
    server, lock = HostileServer(), threading.Lock()

    def session(connection: ServerConnection) -> None:
        said = ""
        connection.send(json.dumps({"type": "session.created", "session": {"model": "gpt-realtime"}}))
        for frame in connection:
            event = json.loads(frame)
            match event["type"]:
                case "session.update":
                    connection.send(json.dumps({"type": "session.updated", "session": event["session"]}))
                case "conversation.item.create":
                    said = event["item"]["content"][0]["text"]
                    connection.send(json.dumps({"type": "conversation.item.added", "item": event["item"]}))
                case "response.create":
                    with lock:
                        server.asks += 1
                    for piece in answer(said):
                        if server.ended.is_set():
                            return
                        connection.send(piece)

    def guarded(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed, OSError):
            session(connection)

    with serve(guarded, "127.0.0.1", 0, max_size=None, close_timeout=1) as sockets:
        server.url = f"http://127.0.0.1:{sockets.socket.getsockname()[1]}/v1"
        thread = threading.Thread(target=sockets.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            sockets.shutdown()
            thread.join()


def spoken_frames(words: str = "Hello there.", sound_s: float = 0.5) -> list[str]:
    """A whole reply of a Realtime session."""
    pcm = base64.b64encode(voice(sound_s)[44:]).decode()
    usage = {
        "input_tokens": 20,
        "output_tokens": 40,
        "output_token_details": {"audio_tokens": round(20 * sound_s)},
    }
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": "resp_1"}},
        {"type": "response.output_audio.delta", "response_id": "resp_1", "delta": pcm},
        {"type": "response.output_audio_transcript.delta", "response_id": "resp_1", "delta": words},
        {"type": "response.done", "response": {"id": "resp_1", "status": "completed", "usage": usage}},
    ]
    return [json.dumps(event) for event in events]
